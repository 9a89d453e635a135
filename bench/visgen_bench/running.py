"""Running a plan: one cell after the other, each in a process, every outcome a row.

    plan -> job -> worker -> journal -> rows

A cell whose weights another cell makes is skipped if that one failed. A crash or a time-out is
tried once more; an error or a lack of memory is not.
"""

import contextlib
import datetime
import errno
import fcntl
import importlib.metadata
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visgen_bench import journal as journals
from visgen_bench.cell import threads_of
from visgen_bench.errors import UsageError
from visgen_bench.executors import Executor, Outcome
from visgen_bench.executors.local import Interrupts, LocalExecutor
from visgen_bench.journal import Job
from visgen_bench.plan import History, Plan, PlannedCell, decided_again
from visgen_bench.recording import (
    Recorded,
    commit,
    log_name,
    record_machine,
    record_skipped,
    recover,
)
from visgen_results.metrics import FAULTS
from visgen_results.rows import to_rows
from visgen_results.store import Store, new_run_id

RETRIED = ("crash", "timeout")
LEAST_FREE_BYTES = 16 * 2**20  # below this a cell's rows and pictures may not fit

Say = Callable[[str], None]


class OutputError(UsageError):
    """The result folder cannot take results; nothing was started."""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """What became of one planned cell."""

    planned: PlannedCell
    recorded: Recorded | None  # None: it was done before, or never begun

    @property
    def status(self) -> str:
        if self.recorded is not None:
            return self.recorded.status
        return {"done": "done", "left": "oom"}.get(self.planned.action, "pending")


@dataclass(kw_only=True)
class Summary:
    """What became of a plan. `signal` ended it early."""

    plan: Plan
    finished: list[Finished] = field(default_factory=list)
    recovered: list[Recorded] = field(default_factory=list)
    signal: int | None = None
    full: str | None = None  # why results could not be written

    def having(self, *statuses: str) -> list[Finished]:
        """The cells with one of these statuses."""
        return [one for one in self.finished if one.status in statuses]

    @property
    def failed(self) -> list[Finished]:
        """Cells that gave no result, now or when they last ran."""
        return self.having("oom", "crash", "timeout", "error", "invalid")

    @property
    def exit_code(self) -> int:
        """0 all good, 1 a cell failed or results could not be written, 130 and 143 for signals."""
        if self.signal is not None:
            return 128 + self.signal
        return 1 if self.failed or self.full else 0


def run(plan: Plan, say: Say | None = None, *, executor: Executor | None = None) -> Summary:
    """Run what a plan says and write the rows; resumes by itself what an earlier run left.

    Args:
        plan: Of `plan.plan`.
        say: Takes one line of progress at a time.
        executor: Where workers are started; this machine by default.

    Raises:
        OutputError: if the result folder cannot be written to, before anything is started.
    """
    say = say or _silent
    for note in plan.notes:
        say(note)
    store = Store(plan.options.out)
    prepare_output(plan.options.out)
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_writer(plan.options.out))
        recovered = recover(store)
        history = History(to_rows(store.read("runs")))
        plan = decided_again(plan, history)  # what was recovered, or ran meanwhile, is done
        summary = Summary(plan=plan, recovered=recovered)
        for one in recovered:
            say(f"recovered {one.run['model']}: {one.status} ({one.reason or 'its rows are kept'})")
        interrupts = stack.enter_context(Interrupts())
        if executor is None:
            executor = stack.enter_context(LocalExecutor())
        executor.listen(interrupts)
        stack.callback(executor.listen, None)
        runner = _Runner(plan, store, history, executor, interrupts, say)
        try:
            runner.run(summary)
        except OSError as error:
            if error.errno not in (
                errno.ENOSPC,
                errno.EDQUOT,
                errno.EROFS,
                errno.EACCES,
                errno.EFBIG,
            ):
                raise
            summary.full = f"{error.filename or plan.options.out}: {error.strerror}"
            say(f"cannot write results: {summary.full}; free some space and run this again")
    return summary


def _silent(_: str) -> None:
    pass


def prepare_output(root: Path) -> None:
    """Make the result folder and try it out. Raises `OutputError` naming the folder and the fix."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / f".probe-{os.getpid()}"
        probe.write_bytes(b"\0" * 4096)
        probe.replace(root / f".probe-{os.getpid()}-moved")
        (root / f".probe-{os.getpid()}-moved").unlink()
    except OSError as error:
        with contextlib.suppress(OSError):
            (root / f".probe-{os.getpid()}").unlink(missing_ok=True)
        raise OutputError(
            f"{root}: results cannot be written there ({error.strerror}); give another --out"
        ) from error
    facts = os.statvfs(root)
    free = facts.f_bavail * facts.f_frsize
    if free < LEAST_FREE_BYTES:
        raise OutputError(
            f"{root}: {free / 2**20:.0f} MiB are free and a run needs {LEAST_FREE_BYTES >> 20}; "
            "free some or give another --out"
        )


@contextlib.contextmanager
def only_writer(root: Path) -> Iterator[None]:
    """Hold the folder's lock, which dies with this process, so that no cell is run twice at once.

    Raises `OutputError` if another process has it.
    """
    handle = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(
                f"{root}: another visgen-bench is running into this folder; "
                "wait for it or give another --out"
            ) from error
        yield
    finally:
        os.close(handle)


class _Runner:
    def __init__(
        self,
        plan: Plan,
        store: Store,
        history: History,
        executor: Executor,
        interrupts: Interrupts,
        say: Say,
    ) -> None:
        self.plan = plan
        self.store = store
        self.executor = executor
        self.interrupts = interrupts
        self.say = say
        self.root = plan.options.out.resolve()
        self._facts: dict[str, Any] | None = None
        self._history = history
        self._without_weights: dict[str, str] = {}  # train cells and how they ended

    def run(self, summary: Summary) -> None:
        number, total = 0, self.plan.count("run") + self.plan.count("skip")
        for planned in self.plan.cells:
            recorded = None
            if planned.action in ("run", "skip"):
                number += 1
                recorded = self._one(planned, f"[{number}/{total}]")
            one = Finished(planned=planned, recorded=recorded)
            summary.finished.append(one)
            if self.interrupts.signal is not None:
                summary.signal = self.interrupts.signal
                return
            if planned.resolved.cell.kind == "train" and not self._has_weights(one):
                self._without_weights[planned.cell_key] = one.status
            if self.plan.options.fail_fast and recorded is not None and one in summary.failed:
                return

    def _has_weights(self, train: Finished) -> bool:
        """A skipped train cell may have been ok before, on another machine."""
        before = train.status == "skipped" and train.planned.cell_key in self._history.ok
        return before or train.status in ("ok", "done")

    def _one(self, planned: PlannedCell, label: str) -> Recorded:
        """A cell to its last attempt."""
        needs = planned.resolved.needs
        if planned.action == "skip":
            return self._skipped(planned, planned.reason, label)
        if needs in self._without_weights:
            reason = f"its train cell ended as {self._without_weights[needs]}"
            return self._skipped(planned, reason, label)
        self.say(f"{label} {planned.name} ...")
        tries = 0
        while True:
            tries += 1
            recorded = self._attempt(planned, planned.attempts + tries)
            self.say(f"{label} {planned.name}: {_said(recorded)}")
            for fault in _faults(recorded):
                self.say(f"{label} {planned.name}: {fault}")
            again = recorded.status in RETRIED and tries <= self.plan.options.retries
            if not again or self.interrupts.signal is not None:
                return recorded

    def _attempt(self, planned: PlannedCell, attempt: int) -> Recorded:
        job = self._job(planned, attempt)
        cell = planned.resolved.cell
        log = self.root / job.log
        log.parent.mkdir(parents=True, exist_ok=True)
        with journals.open_for(job) as journal:
            outcome = self._execute(job, journal, log, planned)
            recorded = commit(self.store, journal.path, outcome)
        if recorded is None:
            raise RuntimeError(f"the journal {journal.path} vanished while {planned.name} ran.")
        record_machine(self.store, self._machine(), cell.kind)
        return recorded

    def _execute(
        self, job: Job, journal: journals.Journal, log: Path, planned: PlannedCell
    ) -> Outcome:
        options = self.plan.options
        cell = planned.resolved.cell
        if options.in_process:
            return _in_this_process(job, journal)
        timeout_s = cell.timeout_s or options.timeout_s
        fresh = options.fresh or cell.device_type != "cpu"
        return self.executor.run(journal.path, log, fresh=fresh, timeout_s=timeout_s)

    def _skipped(self, planned: PlannedCell, reason: str, label: str) -> Recorded:
        """A skipped row; not repeated while the reason stays the same."""
        self.say(f"{label} {planned.name}: skipped: {reason}")
        newest = self._history.newest.get(planned.cell_key)
        known = (newest["status"], newest["invalid_reason"]) if newest else None
        if newest is not None and known == ("skipped", reason):
            return Recorded(run=dict(newest), metrics=[])
        job = self._job(planned, planned.attempts + 1)
        metrics = job.options.get("metrics", ())
        recorded = record_skipped(self.store, job, reason, metrics)
        record_machine(self.store, self._machine(), planned.resolved.cell.kind)
        return recorded

    def _job(self, planned: PlannedCell, attempt: int) -> Job:
        one, options = planned.resolved, self.plan.options
        run_id = new_run_id()
        threads = threads_of(one.cell)
        metrics = list(getattr(one.cell, "metrics", ()))
        weights = one.weights_path
        if one.needs is not None:
            weights = self._trained_weights(one.needs)
        run = {
            **self._machine_columns(),
            **one.columns,
            "run_id": run_id,
            "suite": self.plan.suite.name,
            "cell_key": one.cell_key,
            "spec_key": one.spec_key,
            "attempt": attempt,
            "code_hash": planned.code_hash,
            "threads": threads,
            "log_path": log_name(run_id),
            "started_at": datetime.datetime.now(datetime.UTC).isoformat(),
        }
        return Job(
            run_id=run_id,
            spec_key=one.spec_key,
            cell_key=one.cell_key,
            name=one.name,
            cell=one.cell.model_dump_json(),
            root=str(self.root),
            run=run,
            log=log_name(run_id),
            data_root=str(options.data_root) if options.data_root else None,
            offline=options.offline,
            limit=options.limit,
            threads=threads,
            weights_path=str(weights) if weights else None,
            options={"metrics": metrics, "timeout_s": one.cell.timeout_s or options.timeout_s},
        )

    def _trained_weights(self, train_key: str) -> Path:
        """The file that a train cell leaves in its artifacts."""
        for cell in self.plan.cells:
            if cell.cell_key == train_key:
                return trained_weights(self.root, cell.resolved.spec_key)
        return trained_weights(self.root, self._history.ok[train_key]["spec_key"])

    def _machine(self) -> dict[str, Any]:
        from visgen_bench.measure import environment

        return environment.machine_row()

    def _machine_columns(self) -> dict[str, Any]:
        """Columns that are the same for every cell of this run."""
        if self._facts is None:
            from visgen_bench.measure import environment
            from visgen_bench.provenance import kernel_hash

            commit_of = environment.commit()
            self._facts = {
                "machine_id": environment.machine_id(),
                "env_id": environment.env_id(),
                "visgen_version": version(),
                "git_commit": commit_of.sha,
                "git_dirty": commit_of.dirty,
                "kernel_hash": kernel_hash(),
            }
        return self._facts


def version() -> str | None:
    """Version of this project as installed."""
    try:
        return importlib.metadata.version("visgen-harness")
    except importlib.metadata.PackageNotFoundError:
        return None


def trained_weights(root: Path, spec_key: str) -> Path:
    """Where the train cell of that key puts its final weights."""
    return root / "artifacts" / spec_key / "weights.safetensors"


def _said(recorded: Recorded) -> str:
    seconds = f"{recorded.run['duration_s']:.1f} s"
    if recorded.status == "ok":
        return f"ok, {seconds}"
    return f"{recorded.status} after {seconds}: {recorded.reason}"


def _faults(recorded: Recorded) -> list[str]:
    """What the cell found wrong with its samples; broken files were told before it began."""
    return [
        row["reason"]
        for row in recorded.metrics
        if row["metric"] in FAULTS and row["metric"] != "broken_files"
    ]


def _in_this_process(job: Job, journal: journals.Journal) -> Outcome:
    """For tests and debuggers: no process of its own, no time limit, no isolation."""
    from visgen_bench.cell import parse
    from visgen_bench.worker import EXIT_CODES, context_of, run_cell

    status = run_cell(parse(job.cell), context_of(job, journal))
    return Outcome(
        ended="exit",
        exit_code=EXIT_CODES.get(status, 1),
        signal=None,
        start_method="in_process",
    )

"""Many tasks in several processes; a compiler that dies takes its own task with it, no other."""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection

from visgen_bench.kernels_static.examine import Finding, examine
from visgen_bench.kernels_static.request import OwnTask, Task

_IN_PROCESS = 2  # so few tasks are done before workers have imported torch
_PRELOAD = ["visgen_bench.kernels_static.examine"]

AnyTask = Task | OwnTask
Say = Callable[[str], None]
Keep = Callable[[Sequence[Finding]], None]


@dataclass(frozen=True)
class Sweep:
    """What became of the tasks; `left` were not begun before the time was over."""

    findings: list[Finding]
    left: list[AnyTask]


def sweep(
    tasks: Sequence[AnyTask],
    *,
    jobs: int,
    seconds: float | None = None,
    say: Say | None = None,
    keep: Keep | None = None,
) -> Sweep:
    """Examine tasks in `jobs` processes (0, or very few tasks: in this one).

    seconds: no task is begun after so long; those that run are waited for. say: takes a line of
    progress a task; keep: takes its findings as soon as they are there.
    """
    end = None if seconds is None else time.monotonic() + seconds
    say, keep = say or _silent, keep or _silent
    if jobs == 0 or len(tasks) <= _IN_PROCESS:
        return _here(tasks, end, say, keep)
    return _Workers(tasks, min(jobs, len(tasks)), end, say, keep).run()


class WorkerFailed(RuntimeError):
    """Worker processes cannot be had; nothing that was compiled is to blame."""


def _end_with_parent() -> None:
    """A worker whose parent was killed would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_and_end, args=(parent.sentinel,), daemon=True).start()


def _wait_and_end(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _ready() -> None:
    """What a worker does first, to show that it lives."""


def _silent(_: object) -> None:
    pass


def _over(end: float | None) -> bool:
    return end is not None and time.monotonic() >= end


def _here(tasks: Sequence[AnyTask], end: float | None, say: Say, keep: Keep) -> Sweep:
    findings: list[Finding] = []
    for place, task in enumerate(tasks):
        if _over(end):
            return Sweep(findings, list(tasks[place:]))
        found = examine(task)
        findings += found
        keep(found)
        _tell(place + 1, len(tasks), task, found, say)
    return Sweep(findings, [])


def _tell(number: int, total: int, task: AnyTask, found: Sequence[Finding], say: Say) -> None:
    failed = [one for one in found if one.analysis is None]
    seconds = sum(one.seconds for one in found)
    where = task.name if isinstance(task, Task) else f"{task.name} {task.target}"
    said = f"{len(found)} kernels, {seconds:.1f} s"
    if failed:
        said += f"; {failed[0].kernel} failed: {failed[0].error.splitlines()[0][:200]}"
    say(f"[{number}/{total}] {where}: {said}")


class _Workers:
    """One worker process for each thread, so that a dead one is known by its task."""

    def __init__(
        self, tasks: Sequence[AnyTask], jobs: int, end: float | None, say: Say, keep: Keep
    ) -> None:
        self.tasks, self.jobs, self.end, self.say, self.keep = tasks, jobs, end, say, keep
        self.waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        for place in range(len(tasks)):
            self.waiting.put(place)
        self.found: dict[int, list[Finding]] = {}
        self.fault: BaseException | None = None
        self.lock = threading.Lock()
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(_PRELOAD)

    def run(self) -> Sweep:
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(self.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.fault is not None:
            raise self.fault
        findings = [one for place in sorted(self.found) for one in self.found[place]]
        left = [task for place, task in enumerate(self.tasks) if place not in self.found]
        return Sweep(findings, left)

    def _work(self) -> None:
        try:
            self._work_off()
        except BaseException as error:  # noqa: BLE001 (raised again by `run`)
            self.fault = error

    def _work_off(self) -> None:
        pool = self._pool()
        try:
            self._start(pool)
            while self.fault is None and not _over(self.end):
                try:
                    place = self.waiting.get_nowait()
                except queue.Empty:
                    return
                task = self.tasks[place]
                try:
                    found = pool.submit(examine, task).result()
                except BrokenProcessPool:
                    died = "the process that compiled it died (a fault inside the compiler)"
                    what = task.direction if isinstance(task, Task) else task.name
                    found = [Finding(task, what, {}, None, died)]
                    pool.shutdown()
                    pool = self._pool()
                with self.lock:
                    self.found[place] = found
                    self.keep(found)
                    _tell(len(self.found), len(self.tasks), task, found, self.say)
        finally:
            pool.shutdown()

    def _start(self, pool: ProcessPoolExecutor) -> None:
        try:
            pool.submit(_ready).result()
        except BrokenProcessPool as error:
            raise WorkerFailed(
                "a worker process does not start (its messages stand above); --jobs 0 works "
                "without any"
            ) from error

    def _pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(1, mp_context=self.context, initializer=_end_with_parent)

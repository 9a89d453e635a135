"""A worker: the process that runs exactly one cell and may die without hurting anything.

    journal in (the job) -> cell's runner -> journal out (rows), exit code

It ends by writing one `end` record with a status; a process that never gets there is a crash.
"""

import gc
import os
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from visgen_bench import journal as journals
from visgen_bench.cell import Cell, PerformanceCell, QualityCell, TrainCell, parse
from visgen_bench.context import Context, Invalid, Sink, Unavailable
from visgen_bench.executors.server import clock, die_with_parent
from visgen_bench.journal import Job, Journal

EXIT_CODES = {"ok": 0, "skipped": 0, "cancelled": 143}
RANK_VARIABLE = "VISGEN_BENCH_RANKS"


class Cancelled(BaseException):
    """SIGTERM arrived: stop, say so, end."""


def main(arguments: list[str] | None = None) -> int:
    """`python -m visgen_bench.worker JOURNAL REQUESTED_AT`: a worker in its own interpreter."""
    journal, requested_at = arguments or sys.argv[1:]
    return work(Path(journal), requested_at=float(requested_at))


def work(path: Path, *, requested_at: float) -> int:
    """Run the job of a journal in this process and return the exit code."""
    process_start_s = clock() - requested_at
    job = journals.read_job(path)
    if job is None:
        raise ValueError(f"{path} has no job in it; workers are started by visgen-bench.")
    cell = parse(job.cell)
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if cell.devices > 1 and RANK_VARIABLE not in os.environ:
        return _launch_ranks(path, cell, job, requested_at)
    if world > 1:
        die_with_parent()
    with Journal(journals.rank_path(path, rank)) as journal:
        signal.signal(signal.SIGTERM, _cancel)
        _use_threads(threads_per_rank(cell, job.threads))
        if rank == 0:
            journal.write({"event": "start", "process_start_s": process_start_s})
        stop = threading.Event()
        beat = threading.Thread(target=_heartbeat, args=(journal, stop), daemon=True)
        beat.start()
        context = context_of(job, journal, rank=rank, world_size=world)
        status = run_cell(cell, context)
        stop.set()
        beat.join()
    _leave_ranks(world)
    return EXIT_CODES.get(status, 1)


def context_of(job: Job, sink: Sink, *, rank: int = 0, world_size: int = 1) -> Context:
    """The context that a job's cell runs in."""
    return Context(
        root=Path(job.root),
        spec_key=job.spec_key,
        sink=sink,
        data_root=Path(job.data_root) if job.data_root else None,
        offline=job.offline,
        code_hash=str(job.run.get("code_hash", "")),
        limit=job.limit,
        threads=job.threads,
        rank=rank,
        world_size=world_size,
        weights_path=Path(job.weights_path) if job.weights_path else None,
        options=job.options,
    )


def run_cell(cell: Cell, context: Context) -> str:
    """Run a cell and write its `end` record; every outcome but a dead process ends here."""
    end: dict[str, Any] = {"event": "end", "rank": context.rank}
    try:
        runner_of(cell)(cell, context)
        end["status"] = "ok"
    except Unavailable as reason:
        end |= {"status": "skipped", "invalid_reason": str(reason)}
    except Invalid as reason:
        end |= {"status": "invalid", "invalid_reason": str(reason), "error_type": "Invalid"}
    except Cancelled:
        end["status"] = "cancelled"
    except Exception as error:  # noqa: BLE001 - a worker's fault is a row, whatever it is
        traceback.print_exc()
        end |= {"status": "oom" if is_out_of_memory(error) else "error"}
        end |= {"error_type": type(error).__name__, "error_msg": str(error)}
        # The traceback's frames hold tensors; writing the last record needs a little memory.
        error.__traceback__ = None
        gc.collect()
    if context.rank == 0 or end["status"] not in ("ok", "skipped"):
        context.sink.write(end)
    return end["status"]


def runner_of(cell: Cell) -> Callable[[Any, Context], None]:
    """The function that runs this kind of cell; imported here, so a cell pays for its own only."""
    if isinstance(cell, QualityCell):
        from visgen_bench.cells.quality import run_quality

        return run_quality
    if isinstance(cell, TrainCell):
        from visgen_bench.cells.train import run_train

        return run_train
    return _run_performance


def _run_performance(cell: PerformanceCell, context: Context) -> None:
    from visgen_bench.cells.performance import measure
    from visgen_bench.presets import config_of

    measure(cell, config_of(cell), context)


def is_out_of_memory(error: BaseException) -> bool:
    """True for the ways in which Python and torch say that memory ran out."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _cancel(_: int, __: FrameType | None) -> None:
    raise Cancelled


def _heartbeat(journal: Journal, stop: threading.Event) -> None:
    while not stop.wait(journals.HEARTBEAT_S):
        journal.beat()


def _use_threads(threads: int) -> None:
    """Give torch and BLAS the threads that the plan states."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(limits=threads)


def _leave_ranks(world: int) -> None:
    """End the process group that a runner may have started."""
    if world > 1:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def threads_per_rank(cell: Cell, threads: int) -> int:
    """The cores of a CPU are shared out among the ranks of a cell."""
    return max(1, threads // cell.devices) if cell.device_type == "cpu" else threads


def _launch_ranks(path: Path, cell: Cell, job: Job, requested_at: float) -> int:
    """Start torchrun with one process a device; it and its ranks are this worker's group."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(cell.devices), "-m", "visgen_bench.worker"]
    # torchrun would set one thread a rank if this were left open, whatever the plan says.
    own = {"OMP_NUM_THREADS": str(threads_per_rank(cell, job.threads))}
    own |= {RANK_VARIABLE: str(cell.devices)}
    launcher = subprocess.Popen([*command, str(path), str(requested_at)], env={**os.environ, **own})
    signal.signal(signal.SIGTERM, lambda *_: launcher.terminate())
    return launcher.wait()


if __name__ == "__main__":
    sys.exit(main())

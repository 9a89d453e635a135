"""The fork server: a process that has imported what every cell imports, and forks workers.

Run as `python -m visgen_bench.executors.server [--preload]`. It reads one JSON request a line from
stdin and answers on stdout; it serves one worker at a time. It has no second thread and no tensor,
so a fork of it is clean; a worker starts in a tenth of a second instead of the 2 to 4 s that
importing torch and `torch._dynamo` takes. A request with `argv` is executed instead (a new
interpreter). If the parent dies, stdin ends: the worker's process group is killed and the server
goes.
"""

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PRELOADED = (
    # The first operation on meta and the first optimiser import this: 1.9 s in every worker.
    "torch._dynamo",
    # The cells and what they import by themselves: a quarter of a second.
    "visgen_bench.worker",
    "visgen_bench.cells.performance",
    "visgen_bench.cells.quality",
    "visgen_bench.cells.samples",
    "visgen_bench.cells.train",
    "visgen_bench.cells.workload",
    "visgen_bench.extractors.judge",
    "visgen_bench.extractors.lite0",
    "visgen_bench.metrics.evaluation",
    "visgen_bench.presets",
    "visgen.catalogue",
    "visgen.data",
    "visgen.zoo",
)


def main() -> None:
    """Serve until stdin ends."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # nothing that an import prints may look like a reply
    if "--preload" in sys.argv[1:]:
        preload()
    _say(replies, {"event": "ready", "threads": thread_count()})
    requests = Requests()
    while (request := requests.next(None)) is not None:
        _serve(request, requests, replies)


def preload() -> None:
    """Import what the cells need, and hide it from the garbage collector of every fork.

    A collection writes to all objects that it looks at. In a fork each write copies a page, which
    cost a worker half a second and 100 MB, a part of it inside timed passes.
    """
    gc.disable()
    for name in PRELOADED:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()


class Requests:
    """Lines of stdin, read without buffering more than one may wait for."""

    def __init__(self) -> None:
        self._rest = b""

    def next(self, also: int | None) -> dict[str, Any] | None:
        """The next request; None when stdin ends or the file `also` becomes readable."""
        while b"\n" not in self._rest:
            ready, _, _ = select.select([0] if also is None else [0, also], [], [])
            if also is not None and also in ready:
                return None
            block = os.read(0, 65536)
            if not block:
                if also is not None:
                    raise ParentGone
                return None
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)


class ParentGone(Exception):
    """Stdin ended while a worker was running."""


def _say(replies: Any, message: dict[str, Any]) -> None:
    try:
        replies.write(json.dumps(message) + "\n")
    except BrokenPipeError:
        raise SystemExit(0) from None


def thread_count() -> int:
    """Threads of this process, where the kernel tells; 1 elsewhere."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


def _serve(request: dict[str, Any], requests: Requests, replies: Any) -> None:
    """Fork a worker, wait for its end, report it."""
    exited, held = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(exited)
        replies.close()
        _become_worker(request)
    os.close(held)
    _say(replies, {"event": "started", "pid": pid})
    watched = exited
    if hasattr(os, "pidfd_open"):
        os.close(exited)
        watched = os.pidfd_open(pid)
    try:
        requests.next(watched)
    except ParentGone:
        _end(pid)
        raise SystemExit(0) from None
    finally:
        os.close(watched)
    _say(replies, {"event": "exited", "pid": pid, "status": _end(pid)})


def _end(pid: int) -> int:
    """Kill what is left of the worker's group, then collect its wait status."""
    try:
        # Before the wait: as long as the leader is not collected its group's id cannot be reused.
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(pid, signal.SIGKILL)
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    return os.waitpid(pid, 0)[1]


def _become_worker(request: dict[str, Any]) -> None:
    """In the child: own session, own output, then the job; never returns."""
    code = 1
    try:
        os.setsid()
        die_with_parent()
        null, log = os.open(os.devnull, os.O_RDONLY), _open_log(Path(request["log"]))
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if request.get("argv"):
            os.execve(request["argv"][0], request["argv"], request["env"])
        # The server's own BLAS was held to one thread so that it had none to lose in the fork.
        os.environ.clear()
        os.environ.update(request["env"])
        from visgen_bench.worker import work

        code = work(Path(request["journal"]), requested_at=request["requested_at"])
    except BaseException:  # noqa: BLE001 - a forked child must never run its parent's code
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _open_log(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def clock() -> float:
    """Seconds on the clock that all processes of a machine share."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


if __name__ == "__main__":
    main()

"""Workers on this machine: one process per cell, one cell at a time.

A CPU cell is forked from a server that has imported torch (`server.py`); a cell on another device,
or with `fresh`, is a new interpreter. The parent sleeps until the process ends, the time is up or a
signal arrives: it never polls, so it takes nothing from the cell that it waits for.
"""

import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Self

from visgen_bench.executors.outcome import Outcome
from visgen_bench.executors.server import clock

GRACE_S = 10.0  # between asking a worker to stop and killing it
# Turns that a thread of libgomp spins at a barrier before it sleeps; its own 300,000 hold a core
# for milliseconds. Two threads on two cores, medians: no cost seen when nearly quiet, a quarter to
# a fourteenth of the time beside a dozen others. Sleeping at once (OMP_WAIT_POLICY=PASSIVE) is
# faster still beside others, and cost 15 to 31 % when nearly quiet.
SPIN_COUNT = "30000"


class Interrupts:
    """SIGINT and SIGTERM as bytes in a pipe, so that a sleeping parent wakes up; counts them."""

    def __init__(self) -> None:
        self.count = 0
        self.signal: int | None = None
        self.wake, self._write = os.pipe()
        os.set_blocking(self._write, False)
        os.set_blocking(self.wake, False)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python forbids it
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._arrived)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self.wake)
        os.close(self._write)

    def _arrived(self, number: int, _: FrameType | None) -> None:
        self.count += 1
        self.signal = self.signal or number
        os.write(self._write, b"!")

    def drain(self) -> None:
        """Empty the pipe; the signals stay counted."""
        try:
            while os.read(self.wake, 64):
                pass
        except BlockingIOError:
            pass


class ServerLost(RuntimeError):
    """The fork server ended by itself."""


class LocalExecutor:
    """One fork server and at most one worker. Needs Unix."""

    def __init__(
        self,
        *,
        on_start: Callable[[int], None] | None = None,
        grace_s: float = GRACE_S,
    ) -> None:
        """`on_start` is called with each worker's process id."""
        self._interrupts: Interrupts | None = None
        self._busy = False
        self._on_start = on_start
        self._grace_s = grace_s
        self._server: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._ready = False
        self.server_threads: int | None = None

    def listen(self, interrupts: Interrupts | None) -> None:
        """Wake up for these signals while waiting for a worker."""
        self._interrupts = interrupts

    def warm_up(self, *, preload: bool = True) -> None:
        """Start the server without waiting for it; planning can go on while it imports torch."""
        if self._server is not None:
            return
        command = [sys.executable, "-m", "visgen_bench.executors.server"]
        self._server = subprocess.Popen(
            command + (["--preload"] if preload else []),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**worker_environment(), "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # a Ctrl-C at the terminal is the parent's to handle
        )

    def run(self, journal: Path, log: Path, *, fresh: bool, timeout_s: float | None) -> Outcome:
        """Run the job that `journal` begins with; returns when its process is gone."""
        self.warm_up(preload=not fresh)
        while not self._ready:
            message = self._message(None)
            if message is None:  # a signal before the first worker
                return Outcome(ended="cancelled", exit_code=None, signal=None)
            self._ready = message["event"] == "ready"
            self.server_threads = message["threads"]
        killed_before, handled = _oom_kills(), self._signals()
        requested_at, self._busy = clock(), True
        command = [sys.executable, "-m", "visgen_bench.worker", str(journal), str(requested_at)]
        self._ask(
            {
                "journal": str(journal),
                "log": str(log),
                "argv": command if fresh else None,
                "env": worker_environment(),
                "requested_at": requested_at,
            }
        )
        pid = self._started()
        if self._on_start is not None:
            self._on_start(pid)
        ended, status = self._wait(pid, timeout_s, handled)
        self._busy = False
        code = os.waitstatus_to_exitcode(status)
        return Outcome(
            ended=ended,
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            out_of_memory=code == -signal.SIGKILL and _oom_kills() > killed_before,
            start_method="fresh" if fresh else "fork",
        )

    def _started(self) -> int:
        while (message := self._message(None)) is None or message["event"] != "started":
            pass
        return message["pid"]

    def _wait(self, pid: int, timeout_s: float | None, handled: int) -> tuple[Any, int]:
        """Sleep until the worker is gone: (what ended it, wait status).

        `handled` signals had arrived before. The first one asks the worker to stop, as a time-out
        does; the second one, or the end of the grace, kills its whole group.
        """
        ended = "exit"
        deadline = None if timeout_s is None else clock() + timeout_s
        while True:
            message = None if self._signals() > handled else self._message(deadline)
            if message is not None:
                return ended, message["status"]
            gentle = ended == "exit"
            if self._signals() > handled:
                gentle = gentle and self._signals() == handled + 1
                handled, ended = self._signals(), "cancelled"
            elif gentle:
                ended = "timeout"
            _signal_group(pid, signal.SIGTERM if gentle else signal.SIGKILL)
            deadline = clock() + self._grace_s if gentle else None

    def _signals(self) -> int:
        return self._interrupts.count if self._interrupts else 0

    def _ask(self, request: dict[str, Any]) -> None:
        server = self._server
        if server is None or server.stdin is None:
            raise ServerLost("the fork server is not running")
        server.stdin.write(json.dumps(request).encode() + b"\n")
        server.stdin.flush()

    def _message(self, deadline: float | None) -> dict[str, Any] | None:
        """The server's next message; None at the deadline or when a signal arrived."""
        if self._server is None or self._server.stdout is None:
            raise ServerLost("the fork server is not running")
        source = self._server.stdout.fileno()
        watched = [source, *([self._interrupts.wake] if self._interrupts else [])]
        while b"\n" not in self._rest:
            left = None if deadline is None else max(0.0, deadline - clock())
            ready, _, _ = select.select(watched, [], [], left)
            if not ready:
                return None
            if source not in ready:
                if self._interrupts:
                    self._interrupts.drain()
                return None
            block = os.read(source, 65536)
            if not block:
                code = self._server.wait()
                raise ServerLost(f"the fork server ended with exit code {code}; see its messages")
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """End the server; a worker that is still running is killed by it."""
        if self._server is None:
            return
        if not self._busy:
            self._server.kill()  # it may still be importing torch
        for pipe in (self._server.stdin, self._server.stdout):
            if pipe is not None:
                pipe.close()
        self._server.wait()
        self._server, self._ready, self._busy, self._rest = None, False, False, b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def worker_environment() -> dict[str, str]:
    """This process's environment, with libgomp's spinning bounded unless its user has chosen."""
    chosen = {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys()
    return dict(os.environ) if chosen else {**os.environ, "GOMP_SPINCOUNT": SPIN_COUNT}


def _signal_group(pid: int, number: int) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:  # it ended between the message and the signal
        pass
    except PermissionError:
        os.kill(pid, number)


def _oom_kills() -> int:
    """How often the kernel's OOM killer has struck; 0 where it does not tell."""
    try:
        lines = Path("/proc/vmstat").read_text("ascii").splitlines()
    except OSError:
        return 0
    counts = [int(line.split()[1]) for line in lines if line.startswith("oom_kill ")]
    return sum(counts)

"""One process a request: started, waited for, ended when its time is up, its records read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgen_bench import journal as journals

LOG_TAIL = 2000


@dataclass(frozen=True, kw_only=True)
class Ended:
    """Records of a process, and how it ended: `status` is None if it ran to its end."""

    records: Sequence[dict[str, Any]]
    status: str | None
    reason: str | None


def run_child(
    kind: str, request: str, *, log: Path, timeout_s: float | None, threads: int
) -> Ended:
    """Run a request in a new interpreter whose caches of compiled code are empty.

    log: Where what it prints goes.

    Raises:
        KeyboardInterrupt: as it arrives; the child is dead then.
    """
    with tempfile.TemporaryDirectory(prefix="visgen-kernels-") as folder:
        records = Path(folder) / "records.jsonl"
        command = [sys.executable, "-m", "visgen_bench.kernels_bench.child", kind, str(records)]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "TRITON_CACHE_DIR": f"{folder}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor",
        }
        with log.open("wb") as output:
            child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        try:
            child.communicate(request.encode(), timeout=timeout_s)
            status, reason = _how(child.returncode, log)
        except subprocess.TimeoutExpired:
            status, reason = "timeout", f"did not end within {timeout_s:g} s"
        finally:
            _end(child)
        found = journals.read(records) if records.exists() else []
    return Ended(records=found, status=status, reason=reason)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill a child that is still there, with all that it started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _how(code: int, log: Path) -> tuple[str | None, str | None]:
    if code == 0:
        return None, None
    how = f"signal {-code}" if code < 0 else f"exit code {code}"
    tail = log.read_text("utf-8", errors="replace")[-LOG_TAIL:].strip()
    last = tail.splitlines()[-1] if tail else "no word"
    return "crash", f"the measuring process ended with {how}: {last}"

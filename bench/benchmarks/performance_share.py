"""The harness's own share of a performance cell, wall time, as a suite really runs it.

    python bench/benchmarks/performance_share.py [--seconds 60]

Two performance cells of about `--seconds` each run through `visgen-bench run`, on a model that does
nothing but sleep 20 ms a call and writes down when, so that every second not spent in its calls is
the harness's. The share is taken from the second cell, from the end of the first one's work to the
end of its own: it holds statistics, the FLOP count, memory passes, the journal, the worker's end,
Parquet and the next worker's beginning. Process start is stated apart, as in the result rows.
`harness_overhead.py` has the costs of an empty cell, of `--help` and of committing rows.
"""

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from visgen_bench.measure.environment import cpu_model, usable_cores

COMMAND = Path(sys.executable).with_name("visgen-bench")

# Imported by the workers. `begin` and `end` are the first and last moment inside the model.
SLEEPER = """
import mmap, os, struct, time
from dataclasses import dataclass
from pathlib import Path
import torch
from torch import nn

FOLDER = Path(os.environ["SLEEPER_FOLDER"])

@dataclass(frozen=True, kw_only=True)
class SleeperConfig:
    image_size: tuple[int, int] = (4, 4)
    family: str = "sleeper"
    task: str = "image-generation"

    def build(self, attention=None):
        return Sleeper()

class Sleeper(nn.Module):
    image_size = (4, 4)

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.begin, self.inside = time.monotonic(), 0.0
        self.times = None

    def networks(self):
        return {"generator": self.layer}

    def generate(self, seeds, condition=None, sampling=None):
        start = time.monotonic()
        if not seeds.is_meta:
            self.times = self.times or note(f"{os.getpid()}.times")
            time.sleep(0.02)
        pictures = torch.zeros(len(seeds), 3, 4, 4, dtype=torch.uint8, device=seeds.device)
        if not seeds.is_meta:
            end = time.monotonic()
            self.inside += end - start
            self.times[:] = struct.pack("ddd", self.begin, end, self.inside)
        return pictures

def note(name):
    path = FOLDER / name
    path.write_bytes(bytes(24))
    with path.open("r+b") as file:
        return mmap.mmap(file.fileno(), 24)

PRESETS = {"sleeper": SleeperConfig()}
"""


def run_two_cells(seconds: float, folder: Path) -> dict[str, float]:
    """Seconds of the parts of a run of two cells."""
    model = folder / "sleeper.py"
    model.write_text(SLEEPER, encoding="utf-8")
    (folder / "times").mkdir()
    command = [str(COMMAND), "run", "--model", "sleeper", "--kind", "performance"]
    command += ["--include", str(model), "--seed", "0,1", "--out", str(folder / "out"), "--json"]
    # A cell has a latency pass and a throughput window of this length, and half a second around.
    command += ["--set", f"min_duration_s={(seconds - 1) / 2}"]
    environment = {**os.environ, "SLEEPER_FOLDER": str(folder / "times")}
    start = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    stop = time.monotonic()
    if done.returncode:
        raise RuntimeError(f"visgen-bench run ended with {done.returncode}:\n{done.stderr[-2000:]}")
    files = (folder / "times").glob("*.times")
    times = sorted(struct.unpack("ddd", file.read_bytes()) for file in files)
    first, second = ({"begin": b, "end": e, "inside": i} for b, e, i in times)
    rows = json.loads(done.stdout)["rows"]
    process_start = [row["value"] for row in rows if row["metric"] == "process_start"][-1]
    total = second["end"] - first["end"]
    return {
        "start of the command to the first cell's work": first["begin"] - start,
        "second cell, whole": total,
        "second cell, inside the model": second["inside"],
        "second cell, process start": process_start,
        "second cell, harness between the two cells' work": (
            second["begin"] - first["end"] - process_start
        ),
        "second cell, harness inside the passes": (
            second["end"] - second["begin"] - second["inside"]
        ),
        "last cell's work to the end of the command": stop - second["end"],
    }


def main() -> int:
    """Measure and print one line a figure."""
    parser = argparse.ArgumentParser(description="The harness's own share of a performance cell.")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of a cell")
    given = parser.parse_args()
    if not 2 < given.seconds <= 120:
        parser.error("--seconds: a cell lasts more than 2 s and at most 120 s.")
    with tempfile.TemporaryDirectory() as name:
        parts = run_two_cells(given.seconds, Path(name))
    own = sum(value for part, value in parts.items() if part.startswith("second cell, harness"))
    lines = [f"{cpu_model()}, {usable_cores()} cores", "", "| what | seconds |", "|---|---:|"]
    lines += [f"| {what} | {seconds:.3f} |" for what, seconds in parts.items()]
    share = own / parts["second cell, whole"]
    lines += ["", f"harness's own share of a cell of {given.seconds:g} s: {100 * share:.2f} %"]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Attention on a CPU at the models' real sizes: ours against eager PyTorch and SDPA, paired.

    python kernels/benchmarks/attention_cpu.py                          all layers, one thread
    python kernels/benchmarks/attention_cpu.py --shapes W1 G3 --seconds 20
    python kernels/benchmarks/attention_cpu.py --threads 2 --clock wall
    python kernels/benchmarks/attention_cpu.py --memory                 peak memory instead of time
    python kernels/benchmarks/attention_cpu.py --table FILE.md          also write the table

`visgen_kernels.shapes` lists the layers, `attention_routes.py` the ways over them; batches are
smaller here, so that a call takes some milliseconds. Three phases: `infer` is the forward pass
without autograd, `train` forward and backward, `penalty` forward, backward with create_graph and
the second backward, as a gradient penalty takes them. SDPA stands for the fastest of its routes in
that phase: default or MATH backend, with and without contiguous copies, and block-local masks also
unfolded into one call over blocks. Only MATH takes part in `penalty`.

All sides alternate inside one process, in changing order; a ratio is ours / theirs, the median over
rounds with a 95 % bootstrap interval. Below 1 is faster. With one thread the clock is the process's
own CPU time, which other work on the machine disturbs least; with more, CPU time would count
waiting at barriers too, so take the wall clock on an idle machine.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
from attention_routes import Case, Route

from visgen_kernels.shapes import SHAPES, Shape

# Samples of a call on a CPU; what is not here has one.
BATCHES = {"G1": 32, "G2": 16, "G3": 4, "STL1": 16, "STL2": 4, "D1": 2, "D4": 16, "V1": 64}
BATCHES |= {"V2": 16, "T1": 64, "T2": 8, "W3": 4, "W4": 4, "P4": 8, "P5": 8, "C1": 32, "C2": 2}
BATCHES |= {"X1": 8, "S1": 8, "S2": 4}
# The codebook is no attention; the longest of two equal kinds of layers takes too long here.
LEFT_OUT = ("Q1", "P2")
PHASES = ("infer", "train", "penalty")
WARM_UPS, FEWEST, MOST = 3, 11, 60
# A route of SDPA that is slower than this factor of the fastest while warming up is left out.
HOPELESS = 1.5


@dataclass(frozen=True)
class Ratio:
    """Median of paired ratios and its 95 % interval."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Result:
    """One phase of one layer."""

    shape: Shape
    phase: str
    seconds: float  # ours, median
    eager: Ratio
    sdpa: Ratio
    route: str  # SDPA's fastest
    rounds: int

    def cells(self) -> tuple[str, ...]:
        """As a line of the table."""
        times = f"{1000 * self.seconds:.2f}"
        return (
            self.shape.id,
            self.phase,
            times,
            str(self.eager),
            str(self.sdpa),
            self.route,
            str(self.rounds),
        )


HEADER = ("layer", "phase", "ours ms", "ours / eager", "ours / sdpa", "sdpa's route", "rounds")


def run(case: Case, route: Route, phase: str) -> None:
    """One phase of one step."""
    if phase == "infer":
        with torch.no_grad():
            route()
        return
    out = route()
    twice = phase == "penalty"
    gradients = torch.autograd.grad(out, case.leaves, case.grad, create_graph=twice)
    if twice:  # a penalty differentiates the gradient of the input, not that of the table
        torch.autograd.grad(gradients[0], case.leaves, case.cotangent)


def timed(case: Case, route: Route, phase: str, clock: Callable[[], float]) -> float:
    """Seconds of one phase of one step."""
    start = clock()
    run(case, route, phase)
    return clock() - start


def measure(
    shape: Shape, phase: str, clock: Callable[[], float], budget: float, dtype: torch.dtype
) -> Result:
    """Rounds over all routes of a layer until `budget` seconds are spent."""
    case = Case(shape, BATCHES.get(shape.id, 1), dtype)
    routes = case.routes()
    if phase == "penalty":
        routes = {name: routes[name] for name in ("ours", "eager", "math", "math copied")}
    warm = {
        name: min(timed(case, route, phase, clock) for _ in range(WARM_UPS))
        for name, route in routes.items()
    }
    peers = [name for name in routes if name not in ("ours", "eager")]
    limit = HOPELESS * min(warm[name] for name in peers)
    peers = [name for name in peers if warm[name] <= limit]
    sides = ["ours", "eager", *peers]
    order, times = random.Random(0), {side: list[float]() for side in sides}
    end = time.perf_counter() + budget
    for number in range(MOST):
        if number >= FEWEST and time.perf_counter() > end:
            break
        for side in order.sample(sides, len(sides)):
            times[side].append(timed(case, routes[side], phase, clock))
    best = min(peers, key=lambda name: statistics.median(times[name]))
    ours = times["ours"]
    return Result(
        shape,
        phase,
        statistics.median(ours),
        ratio(ours, times["eager"]),
        ratio(ours, times[best]),
        best,
        len(ours),
    )


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Paired ratios of two series."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(1000))
    return Ratio(statistics.median(ratios), medians[25], medians[975])


def report_times(
    shapes: Sequence[Shape],
    phases: Sequence[str],
    clock: Callable[[], float],
    budget: float,
    dtype: torch.dtype,
    *,
    table: Path | None,
    how: str,
) -> None:
    """Print a line as soon as it is known; all that are known so far stand in `table`."""
    widths = (5, 8, 9, 22, 22, 14, 6)
    print_line(HEADER, widths)
    results: list[Result] = []
    for shape in shapes:
        for phase in phases:
            if phase != "penalty" or shape.second_derivative:
                results.append(measure(shape, phase, clock, budget, dtype))
                print_line(results[-1].cells(), widths)
                if table is not None:
                    table.write_text(markdown(results, how))


def print_line(cells: Sequence[str], widths: Sequence[int]) -> None:
    """Cells in columns of fixed width."""
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    sys.stdout.write(" ".join(padded).rstrip() + "\n")
    sys.stdout.flush()


def markdown(results: Sequence[Result], how: str) -> str:
    """The results as a Markdown table, with the machine they were taken on."""
    lines = [how, "", f"| {' | '.join(HEADER)} |", f"|{'---|' * len(HEADER)}"]
    lines += [f"| {' | '.join(result.cells())} |" for result in results]
    return "\n".join(lines) + "\n"


def machine(arguments: argparse.Namespace) -> str:
    """What the figures were taken on, in one line."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()}, {len(names)} cores, "
        f"{arguments.threads} thread(s), {arguments.dtype}, clock {arguments.clock}, "
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}."
    )


def peak_megabytes(shape: Shape, side: str, phase: str) -> float:
    """Growth of the resident set's peak over one step, in this process (Linux)."""
    case = Case(shape, BATCHES.get(shape.id, 1))
    route = case.routes()[side]
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    run(case, route, phase)
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def report_memory(shapes: Sequence[Shape], phases: Sequence[str], threads: int) -> None:
    """Peak memory of one step, each in a fresh process."""
    sides, widths = ("ours", "eager", "sdpa", "math"), (5, 8, 9, 9, 9, 9)
    print_line(("layer", "phase", *(f"{side} MB" for side in sides)), widths)
    for shape in shapes:
        for phase in phases:
            if phase == "penalty" and not shape.second_derivative:
                continue
            cells = []
            for side in sides:
                if phase == "penalty" and side == "sdpa":
                    cells.append("-")
                    continue
                command = [sys.executable, __file__, "--one", side, "--shapes", shape.id]
                command += ["--phases", phase, "--threads", str(threads)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                cells.append(f"{float(done.stdout):.1f}")
            print_line((shape.id, phase, *cells), widths)


def main() -> None:
    """Parse the command line, print a table."""
    names = [name for name in SHAPES if name not in LEFT_OUT]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shapes", nargs="*", choices=names, default=names)
    parser.add_argument("--phases", nargs="*", choices=PHASES, default=PHASES)
    parser.add_argument("--seconds", type=float, default=8.0, help="per layer and phase")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=["cpu", "wall"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--table", type=Path, help="write the table here, as Markdown")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shapes = [SHAPES[name] for name in arguments.shapes]
    if arguments.one:
        (phase,) = arguments.phases
        sys.stdout.write(f"{peak_megabytes(shapes[0], arguments.one, phase)}\n")
    elif arguments.memory:
        report_memory(shapes, arguments.phases, arguments.threads)
    else:
        clock = time.perf_counter if arguments.clock == "wall" else time.process_time
        dtype = getattr(torch, arguments.dtype)
        how, seconds = machine(arguments), arguments.seconds
        report_times(
            shapes, arguments.phases, clock, seconds, dtype, table=arguments.table, how=how
        )


if __name__ == "__main__":
    main()

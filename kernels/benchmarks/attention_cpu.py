"""Chunked attention on a CPU against eager PyTorch and SDPA: paired times and peak memory.

    python kernels/benchmarks/attention_cpu.py                      all shapes
    python kernels/benchmarks/attention_cpu.py --shapes g3 d1 --pairs 30 --threads 2
    python kernels/benchmarks/attention_cpu.py --threads 1 --clock cpu
    python kernels/benchmarks/attention_cpu.py --memory             peak memory instead of time

All sides start from the same packed (b, n, 3 h d) tensor, as a fused qkv projection leaves it, and
end at (b, n, h d). "eager" is the structure of TransGAN's official code: permuted heads,
scale * q k^T + gathered bias, softmax, product, plain autograd, every n x n array materialised.
"sdpa" is scaled_dot_product_attention with the same layout copies and a materialised bias; it has
no second derivative. Phases of one training step are timed in place: forward and backward, and
with create_graph the second backward. "infer" is the forward pass without autograd.

Implementations alternate inside one process, in changing order; a ratio is ours / theirs, the
median over pairs with a 95 % bootstrap interval. Below 1 is faster. On a machine with other work
to do, `--threads 1 --clock cpu` counts the process's own time; with more threads CPU time counts
waiting at barriers too, so use the wall clock and an idle machine.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from visgen_kernels import RelativePosition2d, attention
from visgen_kernels.biases import relative_index


@dataclass(frozen=True)
class Shape:
    """One attention layer; heads are 4 in all of TransGAN."""

    name: str
    what: str
    tokens: int
    head_dim: int
    side: int | None  # side of the square with a relative position bias
    twice: bool  # is its second derivative used (discriminator)?
    batch: int = 16
    heads: int = 4


SHAPES = (
    Shape("g1", "TransGAN generator 8 x 8", 64, 256, 8, False),
    Shape("g2", "TransGAN generator 16 x 16", 256, 64, 16, False),
    Shape("g3", "TransGAN generator 32 x 32", 1024, 16, 32, False),
    Shape("d1", "TransGAN discriminator 16 x 16", 256, 72, None, True),
    Shape("d2", "TransGAN discriminator 8 x 8", 64, 96, None, True),
    Shape("d3", "TransGAN discriminator 8 x 8 + class token", 65, 96, None, True),
    Shape("d1b", "TransGAN discriminator 16 x 16, with bias", 256, 72, 16, True),
    Shape("d2b", "TransGAN discriminator 8 x 8, with bias", 64, 96, 8, True),
)
PHASES = ("infer", "forward", "backward", "second", "step")


class Case:
    """Tensors of one shape and the three ways to attend over them."""

    def __init__(self, shape: Shape, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        generator = torch.Generator().manual_seed(0)
        width = shape.heads * shape.head_dim
        self.shape = shape
        self.qkv = torch.randn(shape.batch, shape.tokens, 3 * width, generator=generator)
        self.grad = torch.randn(shape.batch, shape.tokens, width, generator=generator)
        self.second = torch.randn(self.qkv.shape, generator=generator)
        self.table = self.index = None
        if shape.side is not None:
            rows = (2 * shape.side - 1) ** 2
            self.table = torch.randn(rows, shape.heads, generator=generator).requires_grad_()
            self.index = relative_index((shape.side, shape.side)).view(-1)
        self.qkv.requires_grad_()

    def chunked(self) -> Tensor:
        shape = self.shape
        packed = self.qkv.view(shape.batch, shape.tokens, 3, shape.heads, shape.head_dim)
        bias = None
        if self.table is not None and shape.side is not None:
            bias = RelativePosition2d(self.table, (shape.side, shape.side))
        return attention(packed, bias=bias, implementation="chunked").flatten(2)

    def _heads(self) -> Tensor:
        shape = self.shape
        packed = self.qkv.reshape(shape.batch, shape.tokens, 3, shape.heads, shape.head_dim)
        return packed.permute(2, 0, 3, 1, 4)

    def _bias(self) -> Tensor | None:
        if self.table is None or self.index is None:
            return None
        n = self.shape.tokens
        return self.table[self.index].view(n, n, -1).permute(2, 0, 1).contiguous()[None]

    def eager(self) -> Tensor:
        q, k, v = self._heads()
        scores = (q @ k.transpose(-2, -1)) * self.shape.head_dim**-0.5
        bias = self._bias()
        if bias is not None:
            scores = scores + bias
        return (scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(self.grad.shape)

    def sdpa(self) -> Tensor:
        q, k, v = self._heads()
        out = scaled_dot_product_attention(q, k, v, attn_mask=self._bias())
        return out.transpose(1, 2).reshape(self.grad.shape)

    def leaves(self) -> list[Tensor]:
        return [self.qkv] if self.table is None else [self.qkv, self.table]

    def step(self, attend: Callable[[], Tensor], twice: bool) -> dict[str, float]:
        """Seconds of each phase of one training step."""
        start = self.clock()
        out = attend()
        forward = self.clock()
        gradients = torch.autograd.grad(out, self.leaves(), self.grad, create_graph=twice)
        backward = self.clock()
        times = {"forward": forward - start, "backward": backward - forward}
        if twice:
            # As a gradient penalty does: differentiate the gradient of the input, not of the table.
            torch.autograd.grad(gradients[0], self.leaves(), self.second)
            times["second"] = self.clock() - backward
        times["step"] = self.clock() - start
        return times

    def infer(self, attend: Callable[[], Tensor]) -> dict[str, float]:
        start = self.clock()
        with torch.no_grad():
            attend()
        return {"infer": self.clock() - start}


def measure(case: Case, pairs: int, sides: tuple[str, ...]) -> dict[str, dict[str, list[float]]]:
    """Side -> phase -> seconds of every round; within a round the sides' order changes."""
    order = random.Random(0)
    times: dict[str, dict[str, list[float]]] = {side: {} for side in sides}
    for number in range(pairs + 2):  # two rounds of warm-up
        for side in order.sample(sides, len(sides)):
            attend = getattr(case, side)
            twice = case.shape.twice and side != "sdpa"
            seconds = {**case.infer(attend), **case.step(attend, twice)}
            if number >= 2:
                for phase, value in seconds.items():
                    times[side].setdefault(phase, []).append(value)
    return times


def ratio(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Median of the paired ratios, and its 95 % bootstrap interval."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    draw = random.Random(1)
    medians = sorted(statistics.median(draw.choices(ratios, k=len(ratios))) for _ in range(1000))
    return statistics.median(ratios), medians[25], medians[975]


def report_times(shapes: list[Shape], pairs: int, clock: Callable[[], float]) -> None:
    """Times and ratios of every shape and phase."""
    sys.stdout.write(
        f"{'shape':5} {'phase':9} {'ours ms':>9}   ours/eager [95 %]      ours/sdpa [95 %]\n"
    )
    for shape in shapes:
        times = measure(Case(shape, clock), pairs, ("chunked", "eager", "sdpa"))
        for phase in PHASES:
            ours = times["chunked"].get(phase)
            if ours is None:
                continue
            cells = []
            for side in ("eager", "sdpa"):
                theirs = times[side].get(phase)
                # A step with a second backward and one without are not the same step.
                if theirs is None or (side == "sdpa" and phase == "step" and shape.twice):
                    cells.append("-")
                else:
                    cells.append("{:.3f} [{:.3f}, {:.3f}]".format(*ratio(ours, theirs)))
            median = 1000 * statistics.median(ours)
            sys.stdout.write(f"{shape.name:5} {phase:9} {median:9.2f}   {cells[0]:22} {cells[1]}\n")
        sys.stdout.flush()


def peak_megabytes(shape: Shape, side: str) -> float:
    """Growth of the resident set's peak over one step, in this process."""
    case = Case(shape)
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = _status("VmRSS")
    case.step(getattr(case, side), shape.twice and side != "sdpa")
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def report_memory(shapes: list[Shape], threads: int) -> None:
    """Peak memory of one training step, each in a fresh process (Linux)."""
    sys.stdout.write(f"{'shape':5} {'ours MB':>9} {'eager MB':>9} {'sdpa MB':>9}\n")
    for shape in shapes:
        values = []
        for side in ("chunked", "eager", "sdpa"):
            command = [sys.executable, __file__, "--one", side, "--shapes", shape.name]
            command += ["--threads", str(threads)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            values.append(float(done.stdout))
        sys.stdout.write(f"{shape.name:5} " + " ".join(f"{x:9.1f}" for x in values) + "\n")
        sys.stdout.flush()


def main() -> None:
    """Parse the command line, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    names = [shape.name for shape in SHAPES]
    parser.add_argument("--shapes", nargs="*", choices=names, default=names)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", choices=["chunked", "eager", "sdpa"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    shapes = [shape for shape in SHAPES if shape.name in arguments.shapes]
    if arguments.one:
        sys.stdout.write(f"{peak_megabytes(shapes[0], arguments.one)}\n")
    elif arguments.memory:
        report_memory(shapes, arguments.threads)
    else:
        clock = time.perf_counter if arguments.clock == "wall" else time.process_time
        report_times(shapes, arguments.pairs, clock)


if __name__ == "__main__":
    main()

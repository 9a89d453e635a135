"""What masks and biases cost K1's main loop, against a loop that does nothing else.

    python kernels/benchmarks/loop_costs.py [--target sm_90] [--width 64 128]

Lane instructions per score in the loop over whole tiles, bf16, every kernel at the same tile, read
from machine code: no GPU is needed. The yardstick is `static/plain_loop.py`. Ends with 1 if a limit
is passed: 10 % over the plain loop; over K1 alone 10 % for causal, window and key lengths, 20 % for
a key bias, 35 % for a position bias; or if anything spills.
"""

from __future__ import annotations

import argparse
import sys

import torch

from visgen_kernels.attention.tiles import TILES
from visgen_kernels.launch import Launch, recorded
from visgen_kernels.masks import Causal, SlidingWindow
from visgen_kernels.static.compile import compile_launch
from visgen_kernels.static.entries import Variant, launches_of
from visgen_kernels.static.report import report
from visgen_kernels.static.specimens import plain_specimen
from visgen_kernels.static.targets import TARGETS

# What is added -> by how much K1 may become dearer.
VARIANTS = {
    "causal": (Variant(Causal()), 0.10),
    "window": (Variant(SlidingWindow(32, 1)), 0.10),
    "key lengths": (Variant(lengths=True), 0.10),
    "key bias": (Variant(key_bias=True), 0.20),
    "position bias": (Variant(bias=True), 0.35),
}
OVER_PLAIN = 0.10


def cost(launch: Launch, target: str) -> tuple[float, bool]:
    """Instructions per score, and whether it spills."""
    compiled = compile_launch(launch, TARGETS[target])
    scores = launch.constants["block_m"] * launch.constants["block_n"]
    found = report(compiled, scores=scores)
    assert found.interior.instructions is not None
    spills = bool(compiled.stack or compiled.spilled)
    return found.interior.instructions, spills


def main() -> int:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--width", nargs="*", type=int, default=[64, 128])
    arguments = parser.parse_args()
    names = ["K1", *VARIANTS]
    lines = [f"| target, d, tile | plain loop | {' | '.join(names)} |"]
    lines.append("|---" * (len(names) + 2) + "|")
    faults = 0
    for target in arguments.target:
        for d in arguments.width:
            plain, rich = TILES["forward", target][d]
            yardstick, spilled = cost(plain_specimen(plain, d).launch, target)
            faults += spilled
            cells, alone = [f"{yardstick:.2f}"], 0.0
            for name in names:
                variant, limit = VARIANTS.get(name, (Variant(), OVER_PLAIN))
                tile = plain if plain == rich or name in ("K1", "causal", "key lengths") else rich
                with recorded(target):
                    (one,) = launches_of("forward", d, torch.bfloat16, variant, tile)
                found, spilled = cost(one, target)
                alone = alone or found
                base = yardstick if name == "K1" else alone
                if tile != plain:  # another tile: its own K1 is what it is compared with
                    with recorded(target):
                        (own,) = launches_of("forward", d, torch.bfloat16, Variant(), tile)
                    base = cost(own, target)[0]
                wrong = spilled or found > (1 + limit) * base
                faults += wrong
                mark = " (!)" if wrong else ""
                cells.append(f"{found:.2f} ({100 * (found / base - 1):+.0f} %){mark}")
            size = f"{plain.block_m}x{plain.block_n} w{plain.warps}"
            lines.append(f"| {target}, {d}, {size} | {' | '.join(cells)} |")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

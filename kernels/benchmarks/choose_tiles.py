"""Choose tiles for K1, K2, K3 and K5 by compiling candidates: prints entries for the tile table.

    python kernels/benchmarks/choose_tiles.py --target sm_90 --kernel forward --width 64
    python kernels/benchmarks/choose_tiles.py                          everything, many hours

What clean means, and with which masks and biases an entry is compiled, says `static/entries.py`.
Candidates are tried widest first, since wide tiles need the fewest instructions per score; of the
first `--clean` clean ones the entry is that with the fewest among those that keep at least eight
warps resident, if there is one. The table differs where a layer of `visgen_kernels.shapes` spilled
at its own strides, and where loads were narrow: `visgen-bench kernels static` shows both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import torch

from visgen_kernels.attention.arguments import head_parts
from visgen_kernels.attention.tiles import WIDTHS, Tile
from visgen_kernels.static.entries import Judgement, judge, variants_of
from visgen_kernels.static.targets import TARGETS

KERNELS = (
    "forward", "queries", "keys", "table", "double_rows", "double_queries", "double_keys",
    "double_table",
)  # fmt: skip


# Own rows, the other side's, warps, stages, whether AMD's instructions are the narrow ones.
NVIDIA_PAIRS = (
    (128, 64, 8, 2, False), (64, 64, 4, 2, False), (128, 32, 8, 2, False), (64, 64, 8, 2, False),
    (64, 32, 4, 2, False), (64, 32, 4, 1, False), (64, 32, 8, 2, False), (128, 16, 8, 2, False),
    (64, 16, 4, 2, False), (32, 64, 4, 2, False), (32, 32, 4, 2, False), (32, 32, 2, 2, False),
    (64, 16, 4, 1, False), (32, 16, 2, 2, False), (16, 64, 8, 2, False), (16, 32, 4, 2, False),
    (16, 16, 2, 2, False),
)  # fmt: skip
AMD_PAIRS = (
    (128, 64, 4, 2, False), (128, 32, 4, 2, False), (64, 64, 4, 2, True), (64, 32, 4, 2, True),
    (64, 64, 4, 1, True), (64, 32, 4, 1, True), (64, 16, 4, 1, True), (32, 32, 2, 1, True),
)  # fmt: skip
# Where a part of the head dimension has 16 columns, a tile of 64 keys is 16 bytes a lane for so
# many warps, and for no more.
THIN_WIDTHS = (16, 48, 80)
THIN_PAIRS = ((128, 64, 4, 2), (64, 64, 4, 2), (64, 32, 2, 2))


def candidates(kernel: str, target: str, width: int, size: int) -> Iterator[Tile]:
    """Tiles worth trying, widest first."""
    if size == 4:  # twice the bytes; without tf32 there are no matrix instructions either
        yield from (Tile(64, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 16, 4, 1), Tile(16, 16, 2, 1))
        return
    amd, turned = target == "gfx942", kernel.endswith("keys")
    if width in THIN_WIDTHS:
        for own, other, warps, stages in THIN_PAIRS:
            rows, keys = (other, own) if turned else (own, other)
            yield Tile(rows, keys, warps // 2 if amd else warps, stages, 64)
    small = width > 144 or (width > 96 and target == "sm_80")
    for own, other, warps, stages, narrow in AMD_PAIRS if amd else NVIDIA_PAIRS:
        rows, keys = (other, own) if turned else (own, other)
        yield Tile(rows, keys, warps, stages, 16 if small else 32, narrow)


def choose(
    kernel: str, target: str, d: int, dtype: torch.dtype, *, rich: bool, enough: int
) -> Tile | None:
    """The entry of a class, with a line for each candidate on stderr."""
    clean: list[tuple[bool, float, Tile]] = []
    for tile in candidates(kernel, target, sum(head_parts(d)), dtype.itemsize):
        if len(clean) == enough:
            break
        judged = Judgement()
        for variant in variants_of(kernel, plain=not rich):
            one = judge(kernel, target, d, dtype, variant, tile)
            if one.fault:
                judged = Judgement(fault=f"{variant}: {one.fault}")
                break
            judged = judged if judged.warps else one
        cost = judged.instructions or 0.0
        text = judged.fault or f"{cost:.2f} per score, {judged.warps} warps"
        sys.stderr.write(f"{kernel} {target} d {d} {dtype} rich {rich} {tile}: {text}\n")
        sys.stderr.flush()
        if judged.fault is None:
            clean.append((judged.warps < 8, cost, tile))
    return min(clean, key=lambda one: one[:2])[2] if clean else None


def main() -> None:
    """Print one line an entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--kernel", nargs="*", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--width", nargs="*", type=int, choices=WIDTHS, default=WIDTHS)
    parser.add_argument("--dtype", nargs="*", choices=["16", "32"], default=["16", "32"])
    parser.add_argument("--clean", type=int, default=2, help="clean candidates to compare")
    arguments = parser.parse_args()
    for target in arguments.target:
        for bits in arguments.dtype:
            dtype = torch.bfloat16 if bits == "16" else torch.float32
            for kernel in arguments.kernel:
                for width in arguments.width:
                    for rich in (False, True):
                        if rich and kernel.endswith("table"):
                            continue  # it is always with a bias
                        tile = choose(
                            kernel, target, width, dtype, rich=rich, enough=arguments.clean
                        )
                        key = (kernel, target, int(bits) // 8, width, not rich)
                        sys.stdout.write(f"    {key}: {tile},\n")
                        sys.stdout.flush()


if __name__ == "__main__":
    main()

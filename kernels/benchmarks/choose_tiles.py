"""Choose tiles for K1 and K2 by compiling candidates: prints entries for `attention/tiles.py`.

    python kernels/benchmarks/choose_tiles.py --target sm_90 --kernel forward --width 64
    python kernels/benchmarks/choose_tiles.py                          everything, about an hour

A candidate is clean if it spills nothing, fits into shared memory and repeats no work, with every
kind of mask and bias that its entry stands for. Candidates are tried widest first, since wide tiles
need the fewest instructions per score; of the first `--clean` clean ones the entry is that with the
fewest among those that keep at least eight warps resident, if there is one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch

from visgen_kernels import Causal, Full, SlidingWindow
from visgen_kernels.attention.arguments import head_parts, scoring_of
from visgen_kernels.attention.backward import keys_launch, keys_of, queries_launch, queries_of
from visgen_kernels.attention.forward import forward_launch
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.tiles import Tile
from visgen_kernels.launch import Launch
from visgen_kernels.layouts import Sequence
from visgen_kernels.masks import Mask
from visgen_kernels.static.compile import CompileFailed, compile_launch
from visgen_kernels.static.report import report
from visgen_kernels.static.targets import TARGETS

KERNELS = ("forward", "queries", "keys")
# Padded head dimensions: the widest of each class of the table, and what it stands for.
WIDTHS = {32: 32, 64: 64, 96: 96, 128: 128, 144: 144, 256: 256}
PRODUCTS = {"forward": 2, "queries": 3, "keys": 4}


@dataclass(frozen=True)
class Variant:
    """What is added to plain attention."""

    mask: Mask = field(default_factory=Full)
    bias: bool = False
    key_bias: bool = False
    lengths: bool = False
    dropout: float = 0.0


# Causal code holds that of no mask too, and a window's with global tokens has the most loops.
PLAIN = (Variant(Causal(), lengths=True),)
RICH = (
    Variant(bias=True),
    Variant(SlidingWindow(32, 1), key_bias=True, lengths=True),
    Variant(dropout=0.1),
)


def launch_of(kernel: str, d: int, dtype: torch.dtype, variant: Variant, tile: Tile) -> Launch:
    """One launch of a kernel at 1,024 tokens of 4 heads."""
    shape, side = (2, 1024, 4, d), (32, 32)

    def meta(*sizes: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*sizes, device="meta", dtype=dtype)

    q = meta(*shape, dtype=dtype)
    table = meta((2 * side[0] - 1) * (2 * side[1] - 1), 4) if variant.bias else None
    lengths = meta(2, dtype=torch.int32) if variant.lengths else None
    key_bias = meta(*shape[:-1]) if variant.key_bias else None
    seed = meta(1, dtype=torch.int64) if variant.dropout else None
    size = side if variant.bias else None
    call = Call(
        Sequence(), variant.mask, table, size, key_bias, lengths, seed, 0.1, variant.dropout
    )
    x, lse = scoring_of(call, q, q), meta(*shape[:-1])
    if kernel == "forward":
        return forward_launch(call, x, None, q, q, q, q, lse, tile)
    queries, keys = queries_of(call, q, q, lse, lse), keys_of(call, q, q)
    if kernel == "queries":
        return queries_launch(call, x, None, queries, keys, q, tile)
    return keys_launch(call, x, None, queries, keys, q, q, key_bias, tile)


def candidates(kernel: str, target: str, width: int, size: int) -> Iterator[Tile]:
    """Tiles worth trying, widest first."""
    if size == 4:  # twice the bytes; without tf32 there are no matrix instructions either
        yield from (Tile(64, 32, 4, 1), Tile(32, 32, 4, 1), Tile(32, 16, 4, 1), Tile(16, 16, 2, 1))
        return
    own_is_m = kernel != "keys"
    if target == "gfx942":
        pairs = [(128, 64, 4, 2, False), (128, 32, 4, 2, False), (64, 64, 4, 2, True)]
        pairs += [(64, 32, 4, 2, True), (64, 64, 4, 1, True), (64, 32, 4, 1, True)]
        pairs += [(32, 32, 2, 1, True)]
    else:
        pairs = [(128, 64, 8, 2, False), (64, 64, 4, 2, False), (128, 32, 8, 2, False)]
        pairs += [(64, 32, 4, 2, False), (64, 32, 4, 1, False)]
        if target != "sm_90":  # wgmma wants 64 rows
            pairs += [(32, 64, 2, 2, False), (32, 32, 2, 2, False)]
    for own, other, warps, stages, narrow in pairs:
        rows, keys = (own, other) if own_is_m else (other, own)
        yield Tile(rows, keys, warps, stages, 16 if width > 160 else 32, narrow)


@dataclass(frozen=True)
class Judgement:
    """What a tile costs, or why it is not clean."""

    instructions: float = 0.0
    warps: int = 0
    fault: str | None = None


def judge(
    kernel: str,
    target: str,
    d: int,
    dtype: torch.dtype,
    variant: Variant,
    tile: Tile,
    exponentials: float,
) -> Judgement:
    """Compile and read; more exponentials per score than this are repeated work."""
    parts = sum(head_parts(d))
    scores = tile.block_m * tile.block_n
    try:
        compiled = compile_launch(launch_of(kernel, d, dtype, variant, tile), TARGETS[target])
    except CompileFailed as error:
        return Judgement(fault=str(error).splitlines()[0][:80])
    found = report(compiled, scores=scores, flops=2.0 * scores * parts * PRODUCTS[kernel])
    if compiled.stack or compiled.spilled:
        return Judgement(fault=f"spills: stack {compiled.stack}, registers {compiled.spilled}")
    if not compiled.fits:
        return Judgement(fault=f"{compiled.shared} bytes of shared memory")
    for loop in (found.interior,):
        if loop is None:
            continue
        if loop.mma_ratio is not None and loop.mma_ratio > 1.01:
            return Judgement(fault=f"matrix work x {loop.mma_ratio:.2f}")
        if loop.exponentials is not None and loop.exponentials > exponentials:
            return Judgement(fault=f"exponentials x {loop.exponentials:.2f}")
    return Judgement(found.interior.instructions or 0.0, found.occupancy.warps)


def choose(
    kernel: str, target: str, d: int, dtype: torch.dtype, *, rich: bool, enough: int
) -> Tile | None:
    """The entry of a class, with a line for each candidate on stderr."""
    # Each row's factor exp(m - m') is computed by the four lanes that share the row: with 32 keys a
    # tile that alone is 1.12 for each score, over the limit of 1.1, and is taken only if no tile of
    # 64 keys is clean. Without matrix units (float32) rows are spread over more lanes still.
    for exponentials in (1.1, 1.13) if dtype.itemsize == 2 else (4.0,):
        clean = _clean(kernel, target, d, dtype, rich, enough, exponentials)
        if clean:
            return min(clean, key=lambda one: one[:2])[2]
    return None


def _clean(
    kernel: str,
    target: str,
    d: int,
    dtype: torch.dtype,
    rich: bool,
    enough: int,
    exponentials: float,
) -> list[tuple[bool, float, Tile]]:
    clean: list[tuple[bool, float, Tile]] = []
    for tile in candidates(kernel, target, sum(head_parts(d)), dtype.itemsize):
        if len(clean) == enough:
            break
        judged = Judgement()
        for variant in RICH if rich else PLAIN:
            one = judge(kernel, target, d, dtype, variant, tile, exponentials)
            if one.fault:
                judged = Judgement(fault=f"{variant}: {one.fault}")
                break
            judged = judged if judged.warps else one
        text = judged.fault or f"{judged.instructions:.2f} per score, {judged.warps} warps"
        sys.stderr.write(f"{kernel} {target} d {d} {dtype} rich {rich} {tile}: {text}\n")
        sys.stderr.flush()
        if judged.fault is None:
            clean.append((judged.warps < 8, judged.instructions, tile))
    return clean


def main() -> None:
    """Print one line an entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--target", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--kernel", nargs="*", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--width", nargs="*", type=int, choices=list(WIDTHS), default=list(WIDTHS))
    parser.add_argument("--dtype", nargs="*", choices=["16", "32"], default=["16", "32"])
    parser.add_argument("--clean", type=int, default=2, help="clean candidates to compare")
    arguments = parser.parse_args()
    for target in arguments.target:
        for bits in arguments.dtype:
            dtype = torch.bfloat16 if bits == "16" else torch.float32
            for kernel in arguments.kernel:
                for width in arguments.width:
                    for rich in (False, True):
                        tile = choose(
                            kernel, target, WIDTHS[width], dtype, rich=rich, enough=arguments.clean
                        )
                        key = (kernel, target, int(bits) // 8, width, not rich)
                        sys.stdout.write(f"    {key}: {tile},\n")
                        sys.stdout.flush()


if __name__ == "__main__":
    main()

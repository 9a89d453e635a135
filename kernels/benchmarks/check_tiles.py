"""Check every entry of the tile tables: its machine code, and its numbers in the interpreter.

    python kernels/benchmarks/check_tiles.py                            compiled for every target
    python kernels/benchmarks/check_tiles.py --target sm_90 --kernel forward short_backward
    TRITON_INTERPRET=1 python kernels/benchmarks/check_tiles.py         run with its own constants

Compiled, an entry is judged as `static/entries.py` and `static/short_entries.py` say, at its width
and with every mask and bias that it stands for; entries that are known not to be clean are listed
in `tiles.UNCLEAN` with their reason, and are a fault only if they have become clean. So are those
of the kernels for decoding and for codebooks. Interpreted, one or two programs of an entry run on
the CPU against float64 (K4, decoding and codebooks are run by the tests). Ends with 1 if there is
a fault.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from visgen_kernels import BlockList, layouts
from visgen_kernels.attention.double_launch import DoubleTiles, double_backward_tiled
from visgen_kernels.attention.gradients import Cotangents, Needs
from visgen_kernels.attention.launch import backward_tiled, forward_tiled
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.short_tiles import SHORT_UNCLEAN, short_tile
from visgen_kernels.attention.tiles import FLOAT32_TILES, TILES, UNCLEAN, Tile
from visgen_kernels.biases import RelativePosition2d
from visgen_kernels.codebook_kernel import meta_nearest_launch
from visgen_kernels.decode_launch import meta_decode_launches
from visgen_kernels.key_blocks import KeyLists
from visgen_kernels.launch import INTERPRETED, Launch
from visgen_kernels.masks import Causal, Full
from visgen_kernels.reference import attention_reference
from visgen_kernels.static.entries import Judgement, judge, judge_code, variants_of
from visgen_kernels.static.short_entries import KERNELS as SHORT_KERNELS
from visgen_kernels.static.short_entries import MAPS, VARIANTS, judge_short
from visgen_kernels.static.short_entries import WIDTHS as SHORT_WIDTHS
from visgen_kernels.static.targets import TARGETS

TABLES = ("table", "double_table")  # they always have a bias
# A share of the largest value: bf16 rounds at 2^-9, and sums of rounded weights add up.
TOLERANCE = {torch.bfloat16: 3e-2, torch.float32: 1e-5}


def entries() -> Iterator[tuple[str, str, int, bool, Tile, torch.dtype]]:
    """(kernel, target, width, plain, tile, type) of every entry."""
    for (kernel, target), widths in TILES.items():
        for width, tiles in widths.items():
            for plain, tile in zip((True, False), tiles, strict=True):
                if kernel not in TABLES or not plain:
                    yield kernel, target, width, plain, tile, torch.bfloat16
    for (kernel, target), tile in FLOAT32_TILES.items():
        yield kernel, target, 64, kernel not in TABLES, tile, torch.float32


def compiled(targets: Sequence[str], kernels: Sequence[str]) -> int:
    """Judge all entries of these targets and kernels; the number of faults."""
    faults = 0
    for kernel, target, width, plain, tile, dtype in entries():
        if target not in targets or kernel not in kernels:
            continue
        known = UNCLEAN.get((kernel, target, width, plain)) if dtype == torch.bfloat16 else None
        found = (
            judge(kernel, target, width, dtype, variant, tile)
            for variant in variants_of(kernel, plain=plain)
        )
        text = f"{kernel} {target} {width} {'plain' if plain else 'rich'} {dtype} {tile}"
        faults += _told(text, found, known)
    for target, kernel, length in product(targets, SHORT_KERNELS, MAPS):
        if kernel not in kernels:
            continue
        for width in SHORT_WIDTHS:
            tile = short_tile(length, width, 2, target, backward=kernel == "short_backward")
            if tile is None:
                continue
            found = (
                judge_short(kernel, target, length, width, variant, tile) for variant in VARIANTS
            )
            known = SHORT_UNCLEAN.get((kernel, target, length, width))
            faults += _told(f"{kernel} {target} {length} x {width} {tile}", found, known)
    for target in targets:
        if "decode" in kernels:
            faults += _told(f"decode {target}", _decoding(target), None)
        if "codebook" in kernels:
            faults += _told(f"codebook {target}", _codebooks(target), None)
    return faults


def _told(text: str, judged: Iterable[Judgement], known: str | None) -> bool:
    """Print what was found of an entry; whether it is a fault that is not `known`."""
    start, found = time.monotonic(), list(judged)
    reasons = [one.fault for one in found if one.fault]
    wrong = bool(reasons) != (known is not None)
    costs = [f"{one.instructions:.2f}" for one in found if one.instructions is not None]
    what = "; ".join(reasons) or f"{', '.join(costs) or 'unknown'} instructions per score"
    mark = "FAULT" if wrong else "known" if known else "ok   "
    sys.stdout.write(f"{mark} {text}: {what} ({time.monotonic() - start:.0f} s)\n")
    sys.stdout.flush()
    return wrong


def _decoding(target: str) -> Iterator[Judgement]:
    """One query, with lists too, and eight of them, at every width that has a tile of its own."""
    amd, blocks = TARGETS[target].is_amd, BlockList.strided(4, 32, 32)
    lists = KeyLists(blocks.offsets, blocks.columns, blocks.block, False)
    for d, queries, listed in product((64, 144, 256), (1, 8), (None, lists)):
        launches = meta_decode_launches(
            batch=8, heads=4, keys=4096, d=d, queries=queries, lists=listed, amd=amd
        )
        for launch in launches:
            yield judge_code(launch, target)


def _codebooks(target: str) -> Iterator[Judgement]:
    """Vectors of float32 and of 16 bits, in every precision of products."""
    precisions = ("ieee",) if TARGETS[target].is_amd else ("ieee", "tf32", "tf32x3")
    yield judge_code(_search(target, torch.bfloat16, None), target)
    for precision in precisions:
        yield judge_code(_search(target, torch.float32, precision), target)


def _search(target: str, dtype: torch.dtype, precision: str | None) -> Launch:
    return meta_nearest_launch(
        vectors=32_768, codes=2048, d=256, target=target, dtype=dtype, precision=precision
    )


def interpreted(kernels: Sequence[str]) -> int:
    """Run all distinct tiles of these kernels; the number of faults."""
    faults, seen = 0, set()
    for kernel, _, width, plain, tile, dtype in entries():
        key = (kernel, width, plain, tile, dtype)
        if key in seen or kernel not in kernels:
            continue
        seen.add(key)
        start = time.monotonic()
        error = error_of(kernel, width, plain=plain, tile=tile, dtype=dtype)
        wrong = not error <= TOLERANCE[dtype]
        faults += wrong
        sys.stdout.write(
            f"{'FAULT' if wrong else 'ok   '} {kernel} {width} {'plain' if plain else 'rich'} "
            f"{tile} {dtype}: error {error:.1e} ({time.monotonic() - start:.1f} s)\n"
        )
        sys.stdout.flush()
    return faults


def error_of(kernel: str, d: int, *, plain: bool, tile: Tile, dtype: torch.dtype) -> float:
    """Largest error of what a kernel writes, over its largest value, in one or two programs."""
    generator = torch.Generator().manual_seed(0)
    side = 9 if not plain or kernel in TABLES else 0
    n = side * side if side else max(tile.block_m, tile.block_n) + 3

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    q, k, v, grad = (draw(1, n, 1, d).to(dtype) for _ in range(4))
    table = draw((2 * side - 1) ** 2, 1) if side else None
    size = (side, side) if side else None
    mask = Full() if side else Causal()
    call = Call(layouts.Sequence(), mask, table, size, None, None, None, d**-0.5, 0.0)
    seconds = [draw(1, n, 1, d).to(dtype) for _ in range(3)]
    ours = _written(kernel, call, tile, (q, k, v, grad), seconds)
    exact = _exact(kernel, call, (q, k, v, grad), seconds)
    return max(
        float((a.double() - b).abs().max() / b.abs().max())
        for a, b in zip(ours, exact, strict=True)
    )


def _written(
    kernel: str,
    call: Call,
    tile: Tile,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    seconds: list[Tensor],
) -> list[Tensor]:
    q, k, v, grad = tensors
    small = Tile(16, 16, 4, 1, 16)
    out, lse = forward_tiled(call, q, k, v, tile if kernel == "forward" else small)
    if kernel == "forward":
        return [out]
    if not kernel.startswith("double"):
        needs = Needs(kernel == "queries", kernel == "keys", kernel == "keys", False, False)
        if kernel == "table":
            needs = Needs(False, False, False, True, False)
        of_queries, of_keys = (tile if kernel == name else small for name in ("queries", "keys"))
        return backward_tiled(
            call,
            grad,
            out,
            lse,
            q,
            k,
            v,
            of_queries,
            of_keys,
            of_table=tile,
            needs=needs,
            packed=False,
        )
    tiles = DoubleTiles(
        rows=tile if kernel == "double_rows" else small,
        queries=tile if kernel == "double_queries" else small,
        keys=tile if kernel == "double_keys" else small,
        table=tile,
    )
    of_table = kernel == "double_table"
    found = double_backward_tiled(
        call,
        Cotangents(seconds[0], seconds[1], seconds[2], None, None),
        grad,
        out,
        lse,
        q,
        k,
        v,
        tiles,
        needs_grad=True,
        needs=Needs(True, True, True, of_table, False),
        packed=False,
    )
    return [found[4]] if of_table else found


def _exact(
    kernel: str,
    call: Call,
    tensors: tuple[Tensor, Tensor, Tensor, Tensor],
    seconds: list[Tensor],
) -> list[Tensor]:
    q, k, v, grad = (x.double().requires_grad_() for x in tensors)
    table, bias = None, None
    if call.table is not None and call.size is not None:
        table = call.table.double().requires_grad_()
        bias = RelativePosition2d(table, call.size)
    out, _ = attention_reference(
        q, k, v, layout=call.layout, mask=call.mask, bias=bias, scale=call.scale
    )
    if kernel == "forward":
        return [out.detach()]
    first = torch.autograd.grad(out, [q, k, v], grad, create_graph=True)
    if kernel == "queries":
        return [first[0].detach()]
    if kernel == "keys":
        return [x.detach() for x in first[1:]]
    if kernel == "table":
        assert table is not None
        return list(torch.autograd.grad(out, [table], grad))
    total = sum((f * s.double()).sum() for f, s in zip(first, seconds, strict=True))
    assert isinstance(total, Tensor)
    wanted = [grad, q, k, v]
    if kernel == "double_table":
        assert table is not None
        wanted = [table]
    return list(torch.autograd.grad(total, wanted))


def main() -> int:
    """Check as the environment says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    names = [*dict.fromkeys(kernel for kernel, _ in TILES), *SHORT_KERNELS, "decode", "codebook"]
    parser.add_argument("--target", nargs="*", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--kernel", nargs="*", choices=names, default=names)
    arguments = parser.parse_args()
    if INTERPRETED:
        faults = interpreted(arguments.kernel)
    else:
        faults = compiled(arguments.target, arguments.kernel)
    sys.stdout.write(f"{faults} faults\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""Check every entry of the tile table: its machine code, and its numbers in the interpreter.

    python kernels/benchmarks/check_tiles.py                            compiled for every target
    TRITON_INTERPRET=1 python kernels/benchmarks/check_tiles.py         run with its own constants

Compiled, an entry is judged as `static/entries.py` says, at its width and with every mask and bias
that it stands for; entries that are known not to be clean are listed in `tiles.UNCLEAN` with their
reason, and are a fault only if they have become clean. Interpreted, one or two programs of an entry
run on the CPU against float64. Ends with 1 if there is a fault.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from visgen_kernels.attention.arguments import head_parts
from visgen_kernels.attention.chunked_double import Cotangents
from visgen_kernels.attention.double_launch import DoubleTiles, double_backward_tiled
from visgen_kernels.attention.gradients import Needs
from visgen_kernels.attention.launch import backward_tiled, forward_tiled
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.tiles import FLOAT32_TILES, TILES, UNCLEAN, WIDTHS, Tile
from visgen_kernels.biases import RelativePosition2d
from visgen_kernels.launch import INTERPRETED
from visgen_kernels.layouts import Sequence
from visgen_kernels.masks import Causal, Full
from visgen_kernels.reference import attention_reference
from visgen_kernels.static.entries import judge, variants_of

# A share of the largest value: bf16 rounds at 2^-9, and sums of rounded weights add up.
TOLERANCE = {torch.bfloat16: 3e-2, torch.float32: 1e-5}


def entries() -> Iterator[tuple[str, str, int, bool, Tile, torch.dtype]]:
    """(kernel, target, width, plain, tile, type) of every entry."""
    for (kernel, target), widths in TILES.items():
        for width, tiles in widths.items():
            for plain, tile in zip((True, False), tiles, strict=True):
                if kernel != "table" or not plain:
                    yield kernel, target, width, plain, tile, torch.bfloat16
    for kernel, tile in FLOAT32_TILES.items():
        yield kernel, "sm_90", 64, kernel != "table", tile, torch.float32


def compiled() -> int:
    """Judge all entries; the number of faults."""
    faults = 0
    for kernel, target, width, plain, tile, dtype in entries():
        start, reasons, cost = time.monotonic(), [], []
        for variant in variants_of(kernel, plain=plain):
            found = judge(kernel, target, width, dtype, variant, tile)
            cost.append(f"{found.instructions:.2f}")
            if found.fault:
                reasons.append(found.fault)
        known = UNCLEAN.get((kernel, target, width, plain)) if dtype == torch.bfloat16 else None
        wrong = bool(reasons) != (known is not None)
        faults += wrong
        text = "; ".join(reasons) or f"{', '.join(cost)} instructions per score"
        sys.stdout.write(
            f"{'FAULT' if wrong else 'ok   '} {kernel} {target} {width} "
            f"{'plain' if plain else 'rich'} {tile}: {text} ({time.monotonic() - start:.0f} s)\n"
        )
        sys.stdout.flush()
    return faults


def interpreted() -> int:
    """Run all distinct tiles; the number of faults."""
    faults, seen = 0, set()
    for kernel, _, width, plain, tile, dtype in entries():
        key = (kernel, width, plain, tile, dtype)
        if key in seen:
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
    side = 9 if not plain or kernel == "table" else 0
    n = side * side if side else max(tile.block_m, tile.block_n) + 3

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator)

    q, k, v, grad = (draw(1, n, 1, d).to(dtype) for _ in range(4))
    table = draw((2 * side - 1) ** 2, 1) if side else None
    size = (side, side) if side else None
    mask = Full() if side else Causal()
    call = Call(Sequence(), mask, table, size, None, None, None, d**-0.5, 0.0)
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
        table=small,
    )
    return double_backward_tiled(
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
        needs=Needs(True, True, True, False, False),
        packed=False,
    )


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
    return list(torch.autograd.grad(total, [grad, q, k, v]))


def main() -> int:
    """Check as the environment says."""
    widest = max(sum(head_parts(width)) for width in WIDTHS)
    sys.stdout.write(f"{len(list(entries()))} entries, head dimensions up to {widest}\n")
    faults = interpreted() if INTERPRETED else compiled()
    sys.stdout.write(f"{faults} faults\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

"""Runs K4, attention over short sequences, in Triton's interpreter; prints its errors as JSON.

A process of its own: Triton reads TRITON_INTERPRET when it decorates the kernels.
"""

import json
import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from quick_interpreter import order_sums, quicken
from torch import Tensor

from visgen_kernels import (
    Axis,
    BlockList,
    Blocks1d,
    Blocks2d,
    Causal,
    Full,
    RelativePosition2d,
    SameGroup,
    Sequence,
    SlidingWindow,
    Windows,
)
from visgen_kernels.attention.arguments import scoring_of
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.short import short_backward, short_forward
from visgen_kernels.attention.short_tiles import ShortTile
from visgen_kernels.reference import attention_reference

SEED = torch.tensor([1234567890123])
NAMES = ("q", "k", "v", "key bias")
TILES = {16: ShortTile(16, 4, 4), 32: ShortTile(32, 4, 4), 64: ShortTile(64, 1, 4)}


@dataclass(frozen=True)
class Case:
    """One call: shapes of q, k (b, *grid, h, d), and what is added to plain attention."""

    q: tuple[int, ...]
    k: tuple[int, ...] | None = None
    d_v: int | None = None
    layout: Any = Sequence()  # noqa: RUF009 - frozen
    mask: Any = Full()  # noqa: RUF009 - frozen
    size: tuple[int, int] | None = None
    key_bias: bool = False
    lengths: tuple[int, ...] | None = None
    dropout: float = 0.0
    scale: float | None = None
    dtype: torch.dtype = torch.float32
    packed: bool = False
    poison: bool = False  # NaN in keys and values that nobody sees

    @property
    def length(self) -> int:
        """Queries or keys, whichever are more, filled up to 16, 32 or 64."""
        longest = max(self.layout.length(x[1:-2]) for x in (self.q, self.k or self.q))
        return next(length for length in TILES if longest <= length)


def cases() -> dict[str, Case]:
    """Cases by name."""
    found = {
        f"length {n}, head dimension {d}": Case((1, n, 3, d), packed=True)
        for n, d in (
            (1, 4), (2, 24), (3, 120), (4, 48), (8, 60), (15, 64), (16, 72), (17, 24), (31, 4),
            (32, 120), (33, 16), (49, 24), (64, 72),
        )
    }  # fmt: skip
    masks = (Causal(), Causal(3), SlidingWindow(2), SlidingWindow(2, 1), Blocks1d(4))
    found |= {f"{mask} 12x12": Case((1, 12, 3, 16), mask=mask) for mask in masks}
    found |= {
        f"{mask} {n_q}x{n_k}": Case((1, n_q, 2, 8), (1, n_k, 2, 8), mask=mask)
        for mask in (Causal(), SlidingWindow(2, 1))
        for n_q, n_k in ((5, 7), (7, 5), (9, 30), (30, 9), (40, 20))
    }
    ids = torch.arange(36, dtype=torch.int32).view(6, 6) % 5
    return found | {
        "wide": Case((1, 40, 1, 144)),
        "wider values": Case((2, 7, 2, 24), (2, 13, 2, 24), d_v=60),
        "narrow values": Case((1, 5, 3, 72), (1, 40, 3, 72), d_v=4),
        "temporal": Case((2, 5, 7, 2, 16), layout=Axis(1), packed=True),
        "spatial": Case((2, 5, 18, 2, 16), layout=Axis(2)),
        "rows of a volume": Case((2, 3, 4, 5, 2, 16), layout=Axis(2), packed=True),
        "windows": Case((1, 8, 12, 2, 24), layout=Windows(4, 4), packed=True),
        "small windows": Case((1, 4, 6, 1, 16), layout=Windows(2, 2)),
        "wide windows": Case((1, 4, 20, 2, 16), layout=Windows(4, 10)),
        "bias": Case((2, 16, 2, 16), size=(4, 4)),
        "bias, filled up": Case((1, 5, 6, 3, 16), layout=Axis(2), size=(2, 3)),
        "bias in 7 x 7 windows": Case((1, 7, 14, 2, 8), layout=Windows(7, 7), size=(7, 7)),
        "bias, key bias": Case((1, 30, 3, 16), size=(5, 6), key_bias=True, scale=-0.3),
        "2-D blocks": Case((1, 24, 3, 16), mask=Blocks2d((4, 6), (2, 3), (1, 2))),
        "listed blocks": Case((1, 32, 2, 16), mask=BlockList.strided(2, 4, 4, 4)),
        "shifted windows": Case(
            (2, 8, 8, 1, 16), layout=Windows(4, 4),
            mask=SameGroup.shifted((8, 8), (4, 4), (2, 2)),
        ),
        "shifted 2 x 2 windows": Case(
            (2, 4, 6, 3, 16), layout=Windows(2, 2), mask=SameGroup.shifted((4, 6), (2, 2), 1),
            dropout=0.2,
        ),
        "groups of wide windows": Case(
            (1, 6, 6, 2, 16), layout=Windows(6, 6), mask=SameGroup(ids), size=(6, 6),
        ),
        "key bias": Case((2, 13, 3, 16), key_bias=True),
        "key bias of pairs": Case((2, 3, 2, 16), key_bias=True, poison=True),
        "key bias of long sequences": Case((2, 33, 1, 16), key_bias=True, poison=True),
        "lengths": Case((3, 12, 2, 16), lengths=(0, 5, 12)),
        "lengths of pairs, causal": Case((3, 6, 2, 16), lengths=(0, 3, 6), mask=Causal()),
        "lengths of long sequences": Case((3, 40, 1, 16), lengths=(0, 17, 40)),
        "lengths of frames": Case((3, 4, 3, 2, 16), lengths=(0, 2, 4), layout=Axis(1)),
        "dropout": Case((2, 13, 3, 16), dropout=0.3),
        "dropout of pairs": Case((2, 7, 3, 16), dropout=0.3),
        "dropout of fours": Case((2, 2, 3, 16), (2, 4, 3, 16), dropout=0.3),
        "dropout of long sequences": Case((1, 40, 2, 16), dropout=0.3, mask=Causal()),
        "scale 0": Case((2, 9, 2, 16), (2, 9, 2, 16), size=(3, 3), scale=0.0),
        "negative scale": Case((2, 13, 3, 24), scale=-0.3, packed=True),
        "sharp": Case((2, 16, 4, 16), scale=25.0),
        "fp16": Case((2, 13, 2, 72), dtype=torch.float16),
        "bf16": Case((2, 13, 3, 72), dtype=torch.bfloat16, mask=Causal(), packed=True),
        "k at 180 bytes": Case((2, 13, 3, 30), dtype=torch.bfloat16, packed=True),
        "bf16, fours, bias": Case((2, 4, 3, 24), size=(2, 2), dtype=torch.bfloat16),
        "bf16, long": Case((1, 64, 1, 64), size=(8, 8), dtype=torch.bfloat16),
    }  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """Tensors of a case."""

    call: Call
    q: Tensor
    k: Tensor
    v: Tensor
    grad: Tensor

    @property
    def given(self) -> list[Tensor]:
        """What has a gradient."""
        bias = self.call.key_bias
        return [self.q, self.k, self.v] + ([] if bias is None else [bias])


def inputs(case: Case) -> Inputs:
    """Random tensors, the same in every run."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    q_shape, k_shape = case.q, case.k or case.q
    if case.packed:
        q, k, v = draw(*q_shape[:-2], 3, *q_shape[-2:]).to(case.dtype).unbind(-3)
    else:
        q, k = draw(*q_shape).to(case.dtype), draw(*k_shape).to(case.dtype)
        v = draw(*k_shape[:-1], case.d_v or k_shape[-1]).to(case.dtype)
    table = None
    if case.size is not None:
        table = draw((2 * case.size[0] - 1) * (2 * case.size[1] - 1), q_shape[-2])
    shift = None
    if case.key_bias:
        shift = draw(*k.shape[:-1])
        shift[:, 1] = -torch.inf
    if case.poison:
        k[:, 1] = v[:, 1] = torch.nan
    lengths = None if case.lengths is None else torch.tensor(case.lengths)
    scale = q_shape[-1] ** -0.5 if case.scale is None else case.scale
    seed = SEED if case.dropout else None
    call = Call(case.layout, case.mask, table, case.size, shift, lengths, seed, scale, case.dropout)
    return Inputs(call, q, k, v, draw(*q_shape[:-1], v.shape[-1]).to(case.dtype))


def kernels(data: Inputs, tile: ShortTile, packed: bool) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output, log-sum-exp and gradients, written into memory that was full of NaN."""
    call, q, k, v = data.call, data.q, data.k, data.v
    x = scoring_of(call, q, k)
    out, lse = torch.full_like(data.grad, torch.nan), torch.full(q.shape[:-1], torch.nan)
    short_forward(call, x, q, k, v, out, lse, tile)
    if packed:
        whole = q.new_full((*q.shape[:-2], 3, *q.shape[-2:]), torch.nan)
        dq, dk, dv = whole.unbind(-3)
    else:
        dq, dk, dv = (torch.full_like(y, torch.nan) for y in (q, k, v))
    dc = None if call.key_bias is None else torch.full_like(call.key_bias, torch.nan)
    short_backward(call, x, data.grad, lse, q, k, v, dq, dk, dv, dc, tile)
    return out, lse, [dq, dk, dv] + ([] if dc is None else [dc])


def reference(data: Inputs, case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[Tensor]]:
    """The same by the definition and autograd in a dtype."""
    call, cast = data.call, [x.to(dtype, copy=True) for x in data.given]
    if case.poison:  # what is hidden from every query may as well be 0
        for x in cast[1:3]:
            x[:, 1] = 0.0
    cast = [x.requires_grad_() for x in cast]
    bias = None
    if call.table is not None and call.size is not None:
        bias = RelativePosition2d(call.table, call.size)
    out, lse = attention_reference(
        *cast[:3],
        layout=call.layout,
        mask=call.mask,
        key_lengths=call.key_lengths,
        bias=bias,
        key_bias=cast[3] if len(cast) > 3 else None,
        scale=call.scale,
        dropout=call.dropout,
        seed=call.seed,
    )
    return out.detach(), lse.detach(), list(torch.autograd.grad(out, cast, data.grad.to(dtype)))


def errors(ours: Tensor, exact: Tensor, low: Tensor) -> dict[str, float]:
    """Largest errors of the kernel, of the reference in its dtype, and of rounding alone."""
    return {
        "error": float((ours.double() - exact).abs().max()),
        "low": float((low.double() - exact).abs().max()),
        "rounding": float((exact - exact.to(low.dtype).double()).abs().max()),
    }


def run(case: Case) -> dict[str, Any]:
    """Errors against float64, and whether other packings and a second run give the same bits."""
    data, tile = inputs(case), TILES[case.length]
    out, lse, gradients = kernels(data, tile, case.packed)
    exact, exact_lse, exact_gradients = reference(data, case, torch.float64)
    low, _, low_gradients = reference(data, case, case.dtype)
    empty = exact_lse == -torch.inf
    triples = zip(NAMES, gradients, exact_gradients, low_gradients, strict=False)
    return {
        "out": errors(out, exact, low),
        "gradients": {name: errors(*three) for name, *three in triples},
        "lse_error": max([0.0, *(lse.double() - exact_lse)[~empty].abs().tolist()]),
        "largest_lse": max([0.0, *exact_lse[~empty].abs().tolist()]),
        "empty_rows_agree": bool(((lse == -torch.inf) == empty).all()),
    }


def packings() -> dict[str, bool]:
    """Do other numbers of blocks a program, and a second run, give the same bits?"""
    results = {}
    for name, case, blocks in (
        ("sixteen tokens", Case((3, 13, 3, 24), mask=Causal(), key_bias=True), (1, 2, 8)),
        ("thirty-two tokens", Case((3, 20, 1, 24), dropout=0.2), (1, 2)),
        ("four tokens", Case((5, 4, 1, 72), mask=Causal()), (1, 2, 4)),
        ("again", Case((3, 13, 3, 24), dropout=0.2), (4,)),
    ):
        data, tile = inputs(case), TILES[case.length]
        first = kernels(data, tile, False)
        for count in blocks:
            other = kernels(data, replace(tile, blocks=count), False)
            pairs = zip((*first[:2], *first[2]), (*other[:2], *other[2]), strict=True)
            results[f"{name}, {count}"] = all(torch.equal(a, b) for a, b in pairs)
    return results


def alone() -> dict[str, bool]:
    """Is each gradient the same when the others are not asked for?"""
    data, tile = inputs(Case((3, 13, 3, 24), key_bias=True)), TILES[16]
    call, (q, k, v, c) = data.call, data.given
    _, lse, every = kernels(data, tile, False)
    x, results = scoring_of(call, q, k), {}
    for number, name in enumerate(NAMES):
        chosen = (q, k, v, c)[number]
        memory = torch.full_like(chosen, torch.nan)
        into = [memory if y is chosen else None for y in (q, k, v, c)]
        dq, dk, dv, dc = into
        short_backward(call, x, data.grad, lse, q, k, v, dq, dk, dv, dc, tile)
        results[name] = torch.equal(next(y for y in into if y is not None), every[number])
    return results


def hurt() -> dict[str, Any]:
    """Values that are not finite reach the rows that see them, and no other row or sequence."""
    results = {}
    for n, mask in ((4, Full()), (6, Causal()), (13, Causal()), (13, Full()), (40, Blocks1d(8))):
        data = inputs(Case((3, n, 3, 16), mask=mask))
        clean = kernels(data, TILES[Case(tuple(data.q.shape)).length], False)
        data.k[1, n // 2, 1, 3], data.v[1, n - 2, 1, 5] = torch.nan, torch.inf
        found = kernels(data, TILES[Case(tuple(data.q.shape)).length], False)
        i, j = torch.arange(n)[:, None], torch.tensor([n // 2, n - 2])
        sees = torch.zeros(3, n, 3, dtype=torch.bool)
        sees[1, :, 1] = mask.visible(i, j).any(1)
        elsewhere = torch.ones(3, 3, dtype=torch.bool)  # other sequences and heads
        elsewhere[1, 1] = False
        same = [
            torch.equal(a.transpose(1, 2)[elsewhere], b.transpose(1, 2)[elsewhere])
            for a, b in zip(found[2], clean[2], strict=True)
        ]
        results[f"{mask}, {n}"] = {
            "rows_agree": bool((~found[0].isfinite().all(-1) == sees).all()),
            "others_equal": bool(torch.equal(found[0][~sees], clean[0][~sees])),
            "gradients_equal": all(same) and torch.equal(found[2][0][~sees], clean[2][0][~sees]),
        }
    return results


if __name__ == "__main__":
    quicken()
    order_sums()
    wanted = sys.argv[1:]
    chosen = {name: case for name, case in cases().items() if not wanted or name in wanted}
    found = {name: run(case) for name, case in chosen.items()}
    more = {"packings": packings(), "alone": alone(), "hurt": hurt()}
    json.dump({"errors": found, **more}, sys.stdout)

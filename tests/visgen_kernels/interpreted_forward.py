"""Runs K1 and K2 in Triton's interpreter and prints their errors as JSON.

A process of its own: Triton reads TRITON_INTERPRET when it decorates the kernels.
"""

import json
import sys
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
from visgen_kernels.attention.gradients import Needs
from visgen_kernels.attention.launch import backward_tiled, forward_tiled
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.tiles import Tile
from visgen_kernels.reference import attention_reference

TILE = Tile(16, 32, 4, 1, masked_n=16)
SEED = torch.tensor([1234567890123])
LENGTHS = torch.tensor([0, 5, 33])
MASKS = (
    Causal(),
    Causal(5),
    SlidingWindow(3),
    SlidingWindow(9, 1),
    SlidingWindow(3, 20),
    Blocks1d(7),
)


def cases() -> dict[str, dict[str, Any]]:
    """Arguments of `run` by name."""
    found: dict[str, dict[str, Any]] = {
        f"{mask} {n_q}x{n_k}": {"q": (1, n_q, 2, 16), "k": (1, n_k, 2, 16), "mask": mask}
        for mask in MASKS
        for n_q, n_k in ((50, 50), (20, 50), (50, 20))
    }
    for d in (1, 4, 8, 24, 48, 60, 72, 96, 120, 144):
        found[f"head dimension {d}"] = {"q": (1, 17, 2, d)}
    for n in (1, 2, 15, 16, 17, 31, 33):
        found[f"length {n}"] = {"q": (1, n, 1, 16)}
    return found | {
        "keys of another length, values of another width": {
            "q": (2, 17, 2, 24), "k": (2, 40, 2, 24), "d_v": 60,
        },
        "packed": {"q": (2, 20, 2, 72), "packed": True},
        "k at 180 bytes": {"q": (2, 20, 3, 30), "packed": True, "dtype": torch.bfloat16},
        "temporal": {"q": (2, 5, 7, 2, 16), "layout": Axis(1)},
        "spatial": {"q": (2, 5, 7, 2, 16), "layout": Axis(2)},
        "rows of a volume": {"q": (2, 3, 4, 5, 2, 16), "layout": Axis(2)},
        "windows": {"q": (2, 8, 12, 2, 16), "layout": Windows(4, 6)},
        "bias": {"q": (2, 36, 2, 16), "size": (6, 6)},
        "bias in windows": {"q": (1, 8, 8, 2, 20), "layout": Windows(4, 4), "size": (4, 4)},
        "2-D blocks": {"q": (1, 96, 1, 16), "mask": Blocks2d((8, 12), (4, 4), (2, 3))},
        "2-D blocks that leave the map": {
            "q": (2, 70, 2, 16), "mask": Blocks2d((7, 10), (4, 8), (3, 5)),
        },
        "2-D blocks, lengths": {
            "q": (3, 70, 1, 16), "mask": Blocks2d((7, 10), (4, 4), (4, 4)), "lengths": LENGTHS,
        },
        "2-D blocks, dropout": {
            "q": (1, 70, 2, 16), "mask": Blocks2d((7, 10), (4, 4), (4, 4)), "dropout": 0.3,
        },
        "shifted windows": {
            "q": (2, 8, 8, 1, 16), "layout": Windows(4, 4),
            "mask": SameGroup.shifted((8, 8), (4, 4), (2, 2)),
        },
        "groups of a sequence": {
            "q": (2, 40, 1, 16), "mask": SameGroup(torch.arange(40, dtype=torch.int32) % 3),
        },
        "listed blocks": {"q": (2, 64, 1, 16), "mask": BlockList.strided(2, 4, 8, 8)},
        "listed blocks, wider than a tile": {
            "q": (1, 128, 1, 16), "mask": BlockList.strided(2, 8, 8, 32),
        },
        "bias, w 12": {"q": (1, 144, 1, 4), "size": (12, 12)},
        "key bias": {"q": (2, 33, 2, 16), "key_bias": True},
        "a hidden key of NaN": {"q": (2, 33, 2, 16), "key_bias": True, "poison": True},
        "lengths": {"q": (3, 33, 2, 16), "lengths": LENGTHS},
        "lengths, causal": {"q": (3, 33, 2, 16), "lengths": LENGTHS, "mask": Causal()},
        "dropout": {"q": (2, 33, 2, 16), "dropout": 0.3},
        "negative scale": {"q": (2, 33, 3, 24), "scale": -0.3},
        "negative scale, bias, key bias": {
            "q": (2, 36, 2, 16), "size": (6, 6), "key_bias": True, "scale": -0.3,
        },
        "scale 0": {"q": (2, 36, 2, 16), "size": (6, 6), "scale": 0.0},
        "sharp": {"q": (2, 33, 2, 16), "scale": 25.0},
        "fp16": {"q": (2, 33, 2, 8), "dtype": torch.float16},
        "bf16": {"q": (2, 33, 2, 144), "dtype": torch.bfloat16},
        "bf16, bias": {"q": (2, 64, 2, 16), "size": (8, 8), "dtype": torch.bfloat16},
    }  # fmt: skip


def run(
    *,
    q: tuple[int, ...],
    k: tuple[int, ...] | None = None,
    d_v: int | None = None,
    layout: Any = Sequence(),  # noqa: B008 - frozen
    mask: Any = Full(),  # noqa: B008 - frozen
    size: tuple[int, int] | None = None,
    key_bias: bool = False,
    poison: bool = False,
    lengths: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    dtype: torch.dtype = torch.float32,
    packed: bool = False,
) -> dict[str, Any]:
    """Errors against the float64 reference, and those of the reference in the kernel's dtype."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if packed:
        queries, keys, values = draw(*q[:-2], 3, *q[-2:]).to(dtype).unbind(-3)
    else:
        keys_shape = k or q
        queries, keys = draw(*q).to(dtype), draw(*keys_shape).to(dtype)
        values = draw(*keys_shape[:-1], d_v or keys_shape[-1]).to(dtype)
    heads = q[-2]
    table = draw((2 * size[0] - 1) * (2 * size[1] - 1), heads) if size else None
    shift = draw(*keys.shape[:-1]) if key_bias else None
    if shift is not None:
        shift[:, 1] = -torch.inf
    if poison:
        keys[:, 1] = values[:, 1] = torch.nan
    factor = q[-1] ** -0.5 if scale is None else scale
    seed = SEED if dropout else None
    call = Call(layout, mask, table, size, shift, lengths, seed, factor, dropout)
    out, lse = forward_tiled(call, queries, keys, values, TILE)
    grad = draw(*out.shape).to(dtype)
    given = [queries, keys, values] + ([shift] if shift is not None else [])
    needs = Needs(True, True, True, False, key_bias)
    gradients = backward_tiled(
        call,
        grad,
        out,
        lse,
        queries,
        keys,
        values,
        TILE,
        TILE,
        of_table=TILE,
        needs=needs,
        packed=False,
    )

    def reference(wanted: torch.dtype) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        cast = [x.to(wanted) for x in given]
        if poison:  # what is hidden from every query may as well be 0
            for x in cast[1:3]:
                x[:, 1] = 0.0
        cast = [x.requires_grad_() for x in cast]
        result, sums = attention_reference(
            *cast[:3],
            layout=layout,
            mask=mask,
            key_lengths=lengths,
            bias=None if table is None or size is None else RelativePosition2d(table, size),
            key_bias=cast[3] if len(cast) > 3 else None,
            scale=factor,
            dropout=dropout,
            seed=seed,
        )
        return result.detach(), sums.detach(), torch.autograd.grad(result, cast, grad.to(wanted))

    exact, exact_lse, exact_gradients = reference(torch.float64)
    low, _, low_gradients = reference(dtype)
    empty = exact_lse == -torch.inf
    compared = zip(
        ("q", "k", "v", "key bias"), gradients, exact_gradients, low_gradients, strict=False
    )
    return {
        "error": float((out.double() - exact).abs().max()),
        "low": float((low.double() - exact).abs().max()),
        "rounding": float((exact - exact.to(dtype).double()).abs().max()),
        "gradients": {
            name: {
                "error": float((ours.double() - x).abs().max()),
                "low": float((y.double() - x).abs().max()),
                "rounding": float((x - x.to(dtype).double()).abs().max()),
            }
            for name, ours, x, y in compared
        },
        "lse_error": max([0.0, *(lse.double() - exact_lse)[~empty].abs().tolist()]),
        "largest_lse": max([0.0, *exact_lse[~empty].abs().tolist()]),
        "empty_rows_agree": bool(((lse == -torch.inf) == empty).all()),
        "contiguous": out.is_contiguous(),
    }


def hurt() -> dict[str, Any]:
    """Values that are not finite reach the rows that see them, and no other."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 40, 1, 16, generator=generator) for _ in range(3))
    clean = v.clone()
    v[0, 21, 0, 3], v[0, 30, 0, 5] = torch.nan, torch.inf
    results = {}
    for mask in (Causal(), SlidingWindow(4), Blocks1d(8)):
        call = Call(Sequence(), mask, None, None, None, None, None, 0.25, 0.0)
        out, _ = forward_tiled(call, q, k, v, TILE)
        pure, _ = forward_tiled(call, q, k, clean, TILE)
        i, j = torch.arange(40)[:, None], torch.tensor([21, 30])
        sees = mask.visible(i, j).any(1)
        broken = ~out[0, :, 0].isfinite().all(1)
        results[str(mask)] = {
            "rows_agree": bool((broken == sees).all()),
            "others_equal": bool(torch.equal(out[0, ~sees], pure[0, ~sees])),
        }
    return results


if __name__ == "__main__":
    quicken()
    order_sums()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN: it must be written
    errors = {name: run(**arguments) for name, arguments in cases().items()}
    json.dump({"errors": errors, "hurt": hurt()}, sys.stdout)

"""Runs K5, the second derivative, in Triton's interpreter and prints its errors as JSON.

A process of its own: Triton reads TRITON_INTERPRET when it decorates the kernels.
"""

import json
import sys
from dataclasses import dataclass
from typing import Any

import torch
from quick_interpreter import quicken
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
from visgen_kernels.attention.double_launch import DoubleTiles, double_backward_tiled
from visgen_kernels.attention.gradients import Cotangents, Needs
from visgen_kernels.attention.launch import forward_tiled
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.tiles import Tile
from visgen_kernels.reference import attention_reference

SEED = torch.tensor([1234567890123])
LENGTHS = torch.tensor([0, 5, 20])
INPUTS: tuple[str, ...] = ("q", "k", "v", "table", "key bias")


def cases() -> dict[str, dict[str, Any]]:
    """Arguments of `run` by name."""
    masks = (Causal(), Causal(5), SlidingWindow(3), SlidingWindow(3, 2), Blocks1d(7))
    found: dict[str, dict[str, Any]] = {
        str(mask): {"q": (1, 20, 1, 16), "mask": mask} for mask in masks
    }
    for d in (4, 24, 48, 60, 72, 144):
        found[f"head dimension {d}"] = {"q": (1, 17, 1, d)}
    for name in INPUTS:
        found[f"cotangent of {name} alone"] = {
            "q": (1, 9, 1, 16), "size": (3, 3), "key_bias": True, "given": (name,),
        }  # fmt: skip
        found[f"gradient of {name} alone"] = {
            "q": (1, 9, 1, 16), "size": (3, 3), "key_bias": True, "wanted": (name,),
        }  # fmt: skip
    return found | {
        "gradient of the first gradient alone": {"q": (1, 9, 1, 16), "wanted": ("grad",)},
        "more keys than queries, causal": {
            "q": (1, 9, 1, 16), "k": (1, 20, 1, 16), "mask": Causal(),
        },
        "more queries than keys, causal": {
            "q": (1, 20, 1, 16), "k": (1, 9, 1, 16), "mask": Causal(),
        },
        "values of another width": {"q": (1, 17, 1, 24), "k": (1, 20, 1, 24), "d_v": 60},
        "packed": {"q": (2, 17, 2, 24), "packed": True},
        "k at 360 bytes": {"q": (1, 17, 3, 30), "packed": True},
        "temporal": {"q": (2, 5, 3, 2, 16), "layout": Axis(1)},
        "spatial": {"q": (1, 3, 17, 2, 16), "layout": Axis(2), "mask": Causal()},
        "windows": {"q": (1, 8, 6, 2, 16), "layout": Windows(4, 6), "size": (4, 6), "tile": 32},
        "bias 8 x 8": {"q": (1, 64, 1, 4), "size": (8, 8), "tile": 64},
        "bias 12 x 12": {"q": (1, 144, 1, 4), "size": (12, 12), "tile": 64},
        "bias, causal": {"q": (1, 20, 1, 16), "size": (4, 5), "mask": Causal()},
        "2-D blocks": {"q": (1, 35, 1, 16), "mask": Blocks2d((5, 7), (4, 4), (2, 3))},
        "2-D blocks, dropout, bias": {
            "q": (1, 35, 1, 16), "mask": Blocks2d((5, 7), (4, 4), (2, 3)), "size": (5, 7),
            "dropout": 0.3, "tile": 32,
        },
        "shifted windows": {
            "q": (1, 8, 4, 1, 16), "layout": Windows(4, 4),
            "mask": SameGroup.shifted((8, 4), (4, 4), (2, 0)),
        },
        "listed blocks": {"q": (1, 32, 1, 16), "mask": BlockList.strided(2, 4, 4, 4)},
        "key bias": {"q": (1, 17, 2, 16), "key_bias": True},
        "a hidden key of NaN": {"q": (1, 17, 1, 16), "key_bias": True, "poison": True},
        "lengths": {"q": (3, 20, 1, 16), "lengths": LENGTHS},
        "lengths, key bias, dropout": {
            "q": (3, 20, 1, 16), "lengths": LENGTHS, "key_bias": True, "dropout": 0.3,
            "twice": True,
        },
        "dropout": {"q": (2, 17, 1, 16), "dropout": 0.3},
        "dropout, causal, bias 3 x 7": {
            "q": (1, 21, 1, 16), "dropout": 0.3, "mask": Causal(), "size": (3, 7), "twice": True,
        },
        "negative scale": {"q": (1, 17, 1, 24), "scale": -0.3},
        "negative scale, bias, key bias": {
            "q": (1, 9, 2, 16), "size": (3, 3), "key_bias": True, "scale": -0.3,
        },
        "scale 0": {"q": (1, 9, 1, 16), "size": (3, 3), "scale": 0.0},
        "sharp": {"q": (1, 17, 1, 16), "scale": 5.0},
        "bf16": {"q": (1, 33, 1, 72), "dtype": torch.bfloat16, "tile": 32},
        "bf16, bias, key bias": {
            "q": (1, 24, 1, 16), "size": (4, 6), "key_bias": True, "dtype": torch.bfloat16,
        },
        "fp16": {"q": (1, 17, 1, 8), "dtype": torch.float16},
    }  # fmt: skip


@dataclass
class Inputs:
    """One call: what is differentiated by name, what is not, and the cotangents."""

    call: Call
    tensors: dict[str, Tensor]
    grad: Tensor
    cotangents: dict[str, Tensor]
    packed: bool


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
    given: tuple[str, ...] = INPUTS,
    wanted: tuple[str, ...] = ("grad", *INPUTS),
    tile: int = 16,
    twice: bool = False,
) -> dict[str, Any]:
    """Errors against float64 autograd of autograd, and those of the same in the kernel's dtype."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    k = k or q
    tensors = {"q": draw(*q), "k": draw(*k), "v": draw(*k[:-1], d_v or k[-1])}
    if packed:
        views = torch.stack(list(tensors.values()), -3).to(dtype).unbind(-3)
        tensors = dict(zip(tensors, views, strict=True))
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    if size:
        tensors["table"] = draw((2 * size[0] - 1) * (2 * size[1] - 1), q[-2])
    if key_bias:
        tensors["key bias"] = draw(*k[:-1])
        tensors["key bias"][:, 1] = -torch.inf
    if poison:
        tensors["k"][:, 1] = tensors["v"][:, 1] = torch.nan
    cotangents = {name: draw(*x.shape).to(x.dtype) for name, x in tensors.items()}
    grad = draw(*q[:-1], d_v or k[-1]).to(dtype)
    call = Call(
        layout,
        mask,
        tensors.get("table"),
        size,
        tensors.get("key bias"),
        lengths,
        SEED if dropout else None,
        q[-1] ** -0.5 if scale is None else scale,
        dropout,
    )
    cotangents = {name: x for name, x in cotangents.items() if name in given}
    inputs = Inputs(call, tensors, grad, cotangents, packed)
    ours = second(inputs, wanted, tile)
    again = second(inputs, wanted, tile) if twice else ours
    same = all(torch.equal(x, y) for x, y in zip(ours, again, strict=True))
    names = [name for name in ("grad", *tensors) if name in wanted]
    if packed:
        assert ours[1].is_contiguous()
        ours = [ours[0], *ours[1].unbind(-3)]
    exact, low = reference(inputs, names, torch.float64), reference(inputs, names, dtype)
    pairs = zip(names, ours, exact, low, strict=True)
    return {
        "twice": twice,
        "same": same,
        "gradients": {
            name: {
                "error": float((x.double() - y).abs().max()),
                "low": float((z.double() - y).abs().max()),
                "rounding": float((y - y.to(x.dtype).double()).abs().max()),
                "dtype": x.dtype == (grad if name == "grad" else tensors[name]).dtype,
            }
            for name, x, y, z in pairs
        },
    }


def second(inputs: Inputs, wanted: tuple[str, ...], size: int) -> list[Tensor]:
    """The kernels' gradients: those wanted, in their order."""
    tile = Tile(size, size, 4, 1)
    q, k, v = (inputs.tensors[name] for name in ("q", "k", "v"))
    out, lse = forward_tiled(inputs.call, q, k, v, tile)
    flags = [name in wanted for name in INPUTS[:3]]
    flags += [name in wanted and name in inputs.tensors for name in INPUTS[3:]]
    return double_backward_tiled(
        inputs.call,
        Cotangents(*(inputs.cotangents.get(name) for name in INPUTS)),
        inputs.grad,
        out,
        lse,
        q,
        k,
        v,
        DoubleTiles(tile, tile, tile, tile),
        needs_grad="grad" in wanted,
        needs=Needs(*flags),
        packed=inputs.packed,
    )


def reference(inputs: Inputs, names: list[str], dtype: torch.dtype) -> list[Tensor]:
    """Autograd of autograd of the definition, computed in dtype."""
    call, leaves = inputs.call, {}
    for name, x in {"grad": inputs.grad, **inputs.tensors}.items():
        cast = x.to(torch.float64 if dtype == torch.float64 else x.dtype).clone()
        if name in ("k", "v"):  # what is hidden from every query may as well be 0
            cast = cast.nan_to_num(0.0)
        leaves[name] = cast.requires_grad_()
    table = leaves.get("table")
    out, _ = attention_reference(
        leaves["q"],
        leaves["k"],
        leaves["v"],
        layout=call.layout,
        mask=call.mask,
        key_lengths=call.key_lengths,
        bias=None if table is None or call.size is None else RelativePosition2d(table, call.size),
        key_bias=leaves.get("key bias"),
        scale=call.scale,
        dropout=call.dropout,
        seed=call.seed,
    )
    first = torch.autograd.grad(
        out, [leaves[name] for name in inputs.tensors], leaves["grad"], create_graph=True
    )
    terms = zip(inputs.tensors, first, strict=True)
    total = sum(
        (x * inputs.cotangents[name].to(x.dtype)).sum()
        for name, x in terms
        if name in inputs.cotangents
    )
    assert isinstance(total, Tensor)
    found = torch.autograd.grad(total, [leaves[name] for name in names], materialize_grads=True)
    return list(found)


def hurt() -> dict[str, Any]:
    """A value that is not finite reaches only what belongs to rows that see it."""
    generator = torch.Generator().manual_seed(1)
    draws = [torch.randn(1, 40, 1, 16, generator=generator) for _ in range(7)]
    q, k, v, grad, *rest = draws
    broken = v.clone()
    broken[0, 21, 0, 3] = torch.nan
    i, j = torch.arange(40)[:, None], torch.arange(40)
    results = {}
    for mask in (Causal(), SlidingWindow(4), Blocks1d(8)):
        call = Call(Sequence(), mask, None, None, None, None, None, 0.25, 0.0)
        cotangents = dict(zip(INPUTS, rest, strict=False))
        ours, pure = (
            second(Inputs(call, {"q": q, "k": k, "v": x}, grad, cotangents, False), WANTED, 16)
            for x in (broken, v)
        )
        seen = mask.visible(i, j)
        rows = seen[:, 21]  # they see it
        keys = seen[rows].any(0)  # seen from such rows; gV knows nothing of V
        results[str(mask)] = {
            name: {
                "broken": torch.equal(~x[0, :, 0].isfinite().all(1), spoilt),
                "others": torch.equal(x[0, ~spoilt], y[0, ~spoilt]),
            }
            for name, x, y, spoilt in zip(
                WANTED, ours, pure, (rows, rows, keys, torch.zeros_like(keys)), strict=True
            )
        }
    return results


WANTED = ("grad", "q", "k", "v")

if __name__ == "__main__":
    quicken()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN: it must be written
    chosen = {name: x for name, x in cases().items() if not sys.argv[1:] or name in sys.argv[1:]}
    errors = {name: run(**arguments) for name, arguments in chosen.items()}
    json.dump({"errors": errors, "hurt": {} if sys.argv[1:] else hurt()}, sys.stdout)

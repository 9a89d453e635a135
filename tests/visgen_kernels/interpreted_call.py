"""Calls `attention(implementation="triton")` in Triton's interpreter and prints errors as JSON.

First and second derivatives through autograd, at the tiles of the table, against `chunked` in
float64. A process of its own: Triton reads TRITON_INTERPRET when it decorates the kernels.
"""

import json
import sys
from typing import Any

import torch
from quick_interpreter import quicken
from torch import Tensor

from visgen_kernels import (
    Axis,
    BlockList,
    Causal,
    RelativePosition2d,
    SameGroup,
    SlidingWindow,
    Windows,
    attention,
)

CASES: dict[str, dict[str, Any]] = {
    "packed": {"packed": (2, 20, 3, 2, 24)},
    "packed, long": {"packed": (1, 70, 3, 2, 24), "mask": Causal()},
    "windows with bias": {"packed": (1, 4, 8, 3, 2, 8), "layout": Windows(4, 4), "size": (4, 4)},
    "long with bias": {"packed": (1, 81, 3, 2, 16), "size": (9, 9)},
    "frames": {"packed": (1, 5, 3, 3, 2, 16), "layout": Axis(1), "mask": Causal()},
    "cross, other width": {"q": (2, 9, 2, 16), "k": (2, 70, 2, 16), "d_v": 20},
    "key bias": {"q": (2, 9, 2, 16), "k": (2, 12, 2, 16), "key_bias": True},
    "key bias, long": {"q": (1, 66, 1, 16), "k": (1, 66, 1, 16), "key_bias": True},
    "lengths": {"packed": (2, 70, 3, 1, 16), "lengths": torch.tensor([70, 41])},
    "window": {"packed": (1, 80, 3, 1, 16), "mask": SlidingWindow(9, 1)},
    "listed blocks": {"packed": (1, 128, 3, 1, 16), "mask": BlockList.strided(2, 8, 8)},
    "shifted windows": {
        "packed": (1, 8, 8, 3, 2, 16),
        "layout": Windows(4, 4),
        "mask": SameGroup.shifted((8, 8), (4, 4), (2, 2)),
    },
    "dropout": {"packed": (1, 20, 3, 2, 16), "dropout": 0.2, "seed": torch.tensor([7])},
}


def run(
    *,
    packed: tuple[int, ...] | None = None,
    q: tuple[int, ...] = (),
    k: tuple[int, ...] = (),
    d_v: int | None = None,
    size: tuple[int, int] | None = None,
    key_bias: bool = False,
    lengths: Tensor | None = None,
    **options: Any,
) -> dict[str, float]:
    """Largest error of output, first and second derivatives, each over its largest value."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    given = {"q": draw(*packed)} if packed else {"q": draw(*q), "k": draw(*k)}
    if not packed:
        given["v"] = draw(*k[:-1], d_v or k[-1])
    heads = given["q"].shape[-2]
    if size:
        given["table"] = draw((2 * size[0] - 1) * (2 * size[1] - 1), heads)
    if key_bias:
        given["key_bias"] = draw(*k[:-1])
    shape = (*packed[:-3], *packed[-2:]) if packed else (*q[:-1], d_v or k[-1])
    grad, seconds = draw(*shape), {name: draw(*x.shape) for name, x in given.items()}

    def derivatives(dtype: torch.dtype, implementation: str) -> list[Tensor]:
        x = {name: y.to(dtype).requires_grad_() for name, y in given.items()}
        table = x.pop("table", None)
        bias = None if table is None or size is None else RelativePosition2d(table, size)
        g = grad.to(dtype).requires_grad_()
        out = attention(
            x["q"],
            x.get("k"),
            x.get("v"),
            bias=bias,
            key_bias=x.get("key_bias"),
            key_lengths=lengths,
            implementation=implementation,
            **options,
        )
        leaves = [*x.values(), *([] if table is None else [table])]
        names = [*x, *([] if table is None else ["table"])]
        first = torch.autograd.grad(out, leaves, g, create_graph=True)
        total = sum((f * seconds[n].to(dtype)).sum() for f, n in zip(first, names, strict=True))
        assert isinstance(total, Tensor)
        second = torch.autograd.grad(total, [g, *leaves])
        return [out.detach(), *(f.detach() for f in first), *second]

    ours, exact = derivatives(torch.float32, "triton"), derivatives(torch.float64, "chunked")
    errors = [
        float((a.double() - b).abs().max() / b.abs().max())
        for a, b in zip(ours, exact, strict=True)
    ]
    count = len(given)
    return {"out": errors[0], "first": max(errors[1 : 1 + count]), "second": max(errors[-count:])}


if __name__ == "__main__":
    quicken()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN: it must be written
    json.dump({name: run(**options) for name, options in CASES.items()}, sys.stdout)

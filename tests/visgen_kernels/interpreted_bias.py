"""Runs K3, the gradient of the relative position bias, in Triton's interpreter; prints JSON.

A process of its own: Triton reads TRITON_INTERPRET when it decorates the kernels.
"""

import json
import sys
from typing import Any

import torch
from quick_interpreter import quicken
from torch import Tensor

from visgen_kernels import Blocks2d, Causal, Full, RelativePosition2d, SameGroup, Sequence, Windows
from visgen_kernels.attention.arguments import scoring_of
from visgen_kernels.attention.backward import delta_launch
from visgen_kernels.attention.bias_gradient import table_gradient
from visgen_kernels.attention.launch import forward_tiled
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.second import first_of
from visgen_kernels.attention.tiles import Tile
from visgen_kernels.reference import attention_reference

SEED = torch.tensor([1234567890123])


def cases() -> dict[str, dict[str, Any]]:
    """Arguments of `run` by name."""
    return {
        "3 x 3 in one tile": {"size": (3, 3)},
        "4 x 6": {"size": (4, 6), "heads": 3, "twice": True},
        "4 x 6, tiles of unequal sides": {"size": (4, 6), "tile": (32, 16)},
        "4 x 6, the other way round": {"size": (4, 6), "tile": (16, 32)},
        "5 x 8, unequal sides that leave the map": {"size": (5, 8), "tile": (32, 16)},
        "8 x 8": {"size": (8, 8), "tile": (64, 64), "batch": 3},
        "12 x 12": {"size": (12, 12), "tile": (64, 32), "d": 4},
        "3 x 16, whole tiles": {"size": (3, 16), "d": 72},
        "2 x 20, rows wider than a tile": {"size": (2, 20), "d": 24},
        "2 x 24, wider than one side": {"size": (2, 24), "tile": (32, 16)},
        "1 x 9": {"size": (1, 9)},
        "9 x 1": {"size": (9, 1)},
        "windows": {
            "grid": (8, 12), "size": (4, 6), "heads": 2, "layout": Windows(4, 6), "tile": (32, 32),
        },
        "windows that are numbered otherwise": {
            "grid": (4, 6), "size": (6, 4), "layout": Windows(4, 6),
        },
        "causal": {"size": (4, 5), "mask": Causal()},
        "2-D blocks, dropout": {
            "size": (4, 6), "mask": Blocks2d((4, 6), (4, 4), (2, 2)), "dropout": 0.3,
        },
        "shifted windows": {
            "grid": (8, 4), "size": (4, 4), "layout": Windows(4, 4),
            "mask": SameGroup.shifted((8, 4), (4, 4), (2, 0)),
        },
        "key bias": {"size": (4, 5), "key_bias": True},
        "a hidden key of NaN": {"size": (4, 5), "key_bias": True, "poison": True},
        "lengths": {"size": (4, 5), "lengths": torch.tensor([0, 7, 20]), "batch": 3},
        "dropout, rows of 5": {"size": (4, 5), "dropout": 0.3},
        "dropout, rows of 8": {"size": (4, 8), "dropout": 0.3},
        "negative scale": {"size": (4, 5), "scale": -0.3},
        "scale 0": {"size": (4, 5), "scale": 0.0},
        "no sample": {"size": (4, 5), "batch": 0},
        "bf16": {"size": (8, 8), "tile": (32, 32), "d": 72, "dtype": torch.bfloat16},
        "fp16, values of another width": {"size": (4, 5), "d_v": 40, "dtype": torch.float16},
    }  # fmt: skip


def run(
    *,
    size: tuple[int, int],
    grid: tuple[int, ...] | None = None,
    batch: int = 2,
    heads: int = 1,
    d: int = 16,
    d_v: int | None = None,
    layout: Any = Sequence(),  # noqa: B008 - frozen
    mask: Any = Full(),  # noqa: B008 - frozen
    key_bias: bool = False,
    poison: bool = False,
    lengths: Tensor | None = None,
    dropout: float = 0.0,
    scale: float | None = None,
    dtype: torch.dtype = torch.float32,
    tile: tuple[int, int] = (16, 16),
    twice: bool = False,
) -> dict[str, Any]:
    """Errors against float64 autograd of the definition, and of the same in the kernel's dtype."""
    generator = torch.Generator().manual_seed(0)
    grid = grid or (size[0] * size[1],)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    q, k = (draw(batch, *grid, heads, d).to(dtype) for _ in range(2))
    v, grad = (draw(batch, *grid, heads, d_v or d).to(dtype) for _ in range(2))
    table = draw((2 * size[0] - 1) * (2 * size[1] - 1), heads)
    shift = draw(batch, *grid, heads) if key_bias else None
    if shift is not None:
        shift[:, 1] = -torch.inf
    if poison:
        k[:, 1] = v[:, 1] = torch.nan
    factor = d**-0.5 if scale is None else scale
    seed = SEED if dropout else None
    call = Call(layout, mask, table, size, shift, lengths, seed, factor, dropout)
    block = 16 if size[0] * size[1] <= 32 else 64
    out, lse = forward_tiled(call, q, k, v, Tile(block, block, 4, 1))
    x, delta, sums = scoring_of(call, q, k), torch.empty_like(lse), torch.empty_like(lse)
    delta_launch(call, x, grad, out, lse, delta, sums).run()
    t = first_of(call, q, k, v, grad, sums, delta)
    found = [table_gradient(call, x, t, Tile(*tile, 4, 1)) for _ in range(1 + twice)]

    def reference(wanted: torch.dtype) -> Tensor:
        leaf = table.to(torch.float64 if wanted == torch.float64 else table.dtype).clone()
        leaf.requires_grad_()
        result, _ = attention_reference(
            *(y.to(wanted).nan_to_num(0.0) for y in (q, k, v)),
            layout=layout,
            mask=mask,
            key_lengths=lengths,
            bias=RelativePosition2d(leaf, size),
            key_bias=shift,
            scale=factor,
            dropout=dropout,
            seed=seed,
        )
        return torch.autograd.grad(result, leaf, grad.to(wanted))[0]

    exact, low = reference(torch.float64), reference(dtype)
    return {
        "error": float((found[0].double() - exact).abs().max()),
        "low": float((low.double() - exact).abs().max()),
        "rounding": float((exact - exact.float().double()).abs().max()),
        "twice": twice,
        "same": torch.equal(found[0], found[-1]),
    }


if __name__ == "__main__":
    quicken()
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN: it must be written
    chosen = {name: x for name, x in cases().items() if not sys.argv[1:] or name in sys.argv[1:]}
    json.dump({name: run(**arguments) for name, arguments in chosen.items()}, sys.stdout)

"""The kernels of this package as the static report compiles them: types, constants, hints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from visgen_kernels.attention.forward import attention_forward
from visgen_kernels.attention.launch import Tile, head_parts
from visgen_kernels.masks import Full, Mask
from visgen_kernels.static.compile import Compiled, Source, compile_source
from visgen_kernels.static.plain_loop import plain_loop
from visgen_kernels.static.targets import Target


@dataclass(frozen=True)
class Kernel:
    """A kernel with everything that the compiler is told.

    Attributes:
        function: A `triton.jit` function.
        types: Type of every argument that is no constant: `*bf16`, `i32`, `fp32`, or a tuple.
        constants: Values of the `tl.constexpr` arguments.
        divisible: Arguments known to be multiples of 16 (bytes for pointers); an element of a tuple
            is (name, place).
        warps: Per block.
        stages: Of the pipeliner.
    """

    function: Any
    types: Mapping[str, Any]
    constants: Mapping[str, Any]
    divisible: Sequence[str | tuple[str, int]] = ()
    warps: int = 4
    stages: int = 2


def compile_kernel(kernel: Kernel, target: Target) -> Compiled:
    """Compile for a target and read the code back."""
    names = list(kernel.function.arg_names)
    signature = {name: kernel.types.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in kernel.constants.items()}
    places = [(what,) if isinstance(what, str) else what for what in kernel.divisible]
    hints = {(names.index(name), *rest): [["tt.divisibility", 16]] for name, *rest in places}
    options = {"num_warps": kernel.warps, "num_stages": kernel.stages}
    return compile_source(Source(kernel.function, signature, constants, hints, options), target)


_POINTERS = ("q", "k", "v", "out", "lse", "table", "key_bias")


def forward_kernel(
    tile: Tile,
    d: int,
    *,
    d_v: int | None = None,
    dtype: str = "bf16",
    mask: Mask | None = None,
    bias: tuple[int, int] = (0, 0),
    key_bias: bool = False,
    key_lengths: bool = False,
    dropout: bool = False,
    inner: int = 1,
    unit: int = 8,
) -> Kernel:
    """K1 for one head dimension. `unit` is what divides all strides; inner is a window's width."""
    strides = ("i32",) * 6
    types = {name: f"*{dtype}" for name in ("q", "k", "v", "out", "table")}
    types |= {"lse": "*fp32", "key_bias": "*fp32", "key_lengths": "*i32", "seed": "*i64"}
    types |= {f"{name}_strides": strides for name in ("q", "k", "v", "out", "lse")}
    types |= {"sizes": ("i32", "i32"), "threshold": "i64", "scale": "fp32", "factor": "fp32"}
    types |= {name: "i32" for name in ("heads", "n_q", "n_k", "padded_n_k")}
    code = (*(mask or Full()).encode(), 0, 0)
    (d0, d1), width = head_parts(d), d if d_v is None else d_v
    dv0, dv1 = head_parts(width)
    constants = {
        "sign": 1,
        "mask": code[0],
        "mask_a": code[1],
        "mask_b": code[2],
        "bias_height": bias[0],
        "bias_width": bias[1],
        "has_key_bias": key_bias,
        "has_lengths": key_lengths,
        "dropout": dropout,
        "d": d,
        "d0": d0,
        "d1": d1,
        "dv": width,
        "dv0": dv0,
        "dv1": dv1,
        "inner_q": inner,
        "inner_k": inner,
        "unit": unit,
        "unit_out": unit,
        "precision": "ieee",
        "emulate": False,
        "block_m": tile.block_m,
        "block_n": tile.block_n,
    }
    hints = (*_POINTERS, "padded_n_k")
    return Kernel(attention_forward, types, constants, hints, tile.warps, tile.stages)


def plain_kernel(tile: Tile, d: int, *, dtype: str = "bf16") -> Kernel:
    """The yardstick, at the same tile."""
    types = {name: f"*{dtype}" for name in ("q", "k", "v", "out")}
    types |= {"n": "i32", "scale": "fp32"}
    constants = {"d": d, "block_m": tile.block_m, "block_n": tile.block_n}
    hints = ("q", "k", "v", "out", "n")
    return Kernel(plain_loop, types, constants, hints, tile.warps, tile.stages)

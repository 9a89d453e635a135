"""The kernels of this package as the static report compiles them: the launches of real calls.

A layer's tensors lie on the meta device, the op's own implementation is called on them, and what it
would launch is recorded: kernels, tiles, strides, constants and hints are the production's by
construction. What a launch computes beside its code follows from its constants (`facts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from visgen_kernels.attention import launch as triton_attention
from visgen_kernels.attention.double_launch import double_backward_of
from visgen_kernels.attention.gradients import Cotangents, Needs
from visgen_kernels.attention.tiles import Tile
from visgen_kernels.codebook_kernel import meta_nearest_launch
from visgen_kernels.decode_launch import meta_decode_launches
from visgen_kernels.launch import Launch, recorded
from visgen_kernels.roofline import attention_work, devices_of
from visgen_kernels.shapes import Inputs, Shape
from visgen_kernels.static.analysis import Facts, Specimen
from visgen_kernels.static.facts import facts_of, tile_of
from visgen_kernels.static.plain_loop import plain_loop
from visgen_kernels.static.targets import Target

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Layer:
    """A shape's tensors on the meta device."""

    shape: Shape
    dtype: str = "bf16"

    @cached_property
    def inputs(self) -> Inputs:
        """q, k, v."""
        return self.shape.inputs(dtype=DTYPES[self.dtype])

    @cached_property
    def call(self) -> Any:
        """The call."""
        return self.shape.call(self.inputs)

    @cached_property
    def out(self) -> torch.Tensor:
        """The output (b, *grid, h, d_v); its gradient looks alike."""
        q = self.inputs.q
        return q.new_empty((*q.shape[:-1], self.shape.d_v))

    @cached_property
    def row(self) -> torch.Tensor:
        """A float32 number for every query: the log-sum-exp."""
        return self.inputs.q.new_empty(self.inputs.q.shape[:-1], dtype=torch.float32)

    @property
    def needs(self) -> Needs:
        """All gradients that there are."""
        shape = self.shape
        return Needs(True, True, True, shape.bias is not None, shape.key_bias)

    @property
    def packed(self) -> bool:
        """Whether q, k and v are views of one tensor, whose gradient is one tensor."""
        return not self.shape.separate and self.shape.stored_heads is None


def _forward(layer: Layer, target: Target) -> None:
    q, k, v = layer.inputs.q, layer.inputs.k, layer.inputs.v
    triton_attention.forward(layer.call, q, k, v)


def _backward(layer: Layer, target: Target) -> None:
    q, k, v, out, row = layer.inputs.q, layer.inputs.k, layer.inputs.v, layer.out, layer.row
    triton_attention.backward(
        layer.call, out, out, row, q, k, v, needs=layer.needs, packed=layer.packed
    )


def _double_backward(layer: Layer, target: Target) -> None:
    q, k, v, out, row = layer.inputs.q, layer.inputs.k, layer.inputs.v, layer.out, layer.row
    call = layer.call
    double_backward_of(
        call,
        Cotangents(q, k, v, call.table, call.key_bias),
        out,
        out,
        row,
        q,
        k,
        v,
        needs_grad=True,
        needs=layer.needs,
        packed=layer.packed,
    )


def _decode(layer: Layer, target: Target) -> None:
    shape = layer.shape
    launches = meta_decode_launches(
        batch=shape.batch,
        heads=shape.heads,
        keys=shape.n_k,
        d=shape.d,
        d_v=shape.d_v,
        queries=shape.n_q,
        dtype=DTYPES[layer.dtype],
        multiprocessors=devices_of(target.name)[0].units,
        amd=target.is_amd,
    )
    for launch in launches:
        launch.run()


def _codebook(layer: Layer, target: Target) -> None:
    vectors, codes = layer.inputs.q, layer.inputs.k
    meta_nearest_launch(
        vectors=vectors.shape[0],
        codes=codes.shape[0],
        d=layer.shape.d,
        target=target.name,
        dtype=DTYPES[layer.dtype],
        multiprocessors=devices_of(target.name)[0].units,
    ).run()


DIRECTIONS: Mapping[str, Callable[[Layer, Target], None]] = {
    "forward": _forward,
    "backward": _backward,
    "double_backward": _double_backward,
    "decode": _decode,
    "codebook": _codebook,
}


def specimens(layer: Layer, direction: str, target: Target) -> list[Specimen]:
    """What one direction of a layer launches on a target, in order.

    `decode` and `codebook` are the directions of layers of that kind.
    """
    with recorded(target.name) as launches:
        DIRECTIONS[direction](layer, target)
    return [Specimen(one, facts_of(one, layer.shape, direction, layer.dtype)) for one in launches]


def plain_specimen(tile: Tile, d: int, *, n: int = 4096, heads: int = 64) -> Specimen:
    """The yardstick at the same tile: attention with nothing that a real call needs."""
    x = torch.empty(heads, n, d, device="meta", dtype=torch.bfloat16)
    constants = {"d": d, "block_m": tile.block_m, "block_n": tile.block_n}
    scores = float(tile.block_m * tile.block_n)
    launch = Launch(
        plain_loop,
        heads * n // tile.block_m,
        (x, x, x, x, n, d**-0.5),
        constants,
        tile.warps,
        tile.stages,
        tile.options(),
    )
    facts = Facts(
        kernel="plain_loop",
        direction="forward",
        programs=launch.programs,
        tile=tile_of(launch),
        scores=scores,
        flops=2 * scores * 2 * d,
        whole=n / tile.block_n,
        work=attention_work(heads, n, n, d, d, n * n),
    )
    return Specimen(launch, facts)

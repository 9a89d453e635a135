"""The kernels of this package as the static report compiles them: the launches of real calls.

A layer's tensors lie on the meta device, the op's own implementation is called on them, and what it
would launch is recorded: kernels, tiles, strides, constants and hints are the production's by
construction. What a launch computes beside its code (`Facts`) follows from its constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from visgen_kernels.attention import launch as triton_attention
from visgen_kernels.attention.arguments import Rows, head_parts
from visgen_kernels.attention.gradients import Needs
from visgen_kernels.attention.tiles import Tile
from visgen_kernels.launch import Launch, recorded
from visgen_kernels.roofline import attention_work
from visgen_kernels.shapes import Inputs, Shape
from visgen_kernels.static.analysis import Facts, Specimen
from visgen_kernels.static.passes import passes
from visgen_kernels.static.plain_loop import plain_loop
from visgen_kernels.static.targets import Target
from visgen_kernels.static.work import MATHS, kernel_work, tile_flops

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
# Name of the jit function -> name in MATHS.
KERNELS = {
    "attention_forward": "forward",
    "attention_delta": "delta",
    "attention_backward_queries": "backward_queries",
    "attention_backward_keys": "backward_keys",
}


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


def _forward(layer: Layer) -> None:
    q, k, v = layer.inputs.q, layer.inputs.k, layer.inputs.v
    triton_attention.forward(layer.call, q, k, v)


def _backward(layer: Layer) -> None:
    q, k, v = layer.inputs.q, layer.inputs.k, layer.inputs.v
    packed = not layer.shape.separate and layer.shape.stored_heads is None
    triton_attention.backward(
        layer.call, layer.out, layer.out, layer.row, q, k, v, needs=layer.needs, packed=packed
    )


DIRECTIONS: Mapping[str, Callable[[Layer], None]] = {"forward": _forward, "backward": _backward}


def specimens(layer: Layer, direction: str, target: Target) -> list[Specimen]:
    """What one direction of a layer launches on a target, in order."""
    with recorded(target.name) as launches:
        DIRECTIONS[direction](layer)
    return [Specimen(one, facts_of(one, layer, direction)) for one in launches]


def facts_of(launch: Launch, layer: Layer, direction: str) -> Facts:
    """What a launch of one of the package's kernels computes for a layer."""
    kernel = KERNELS.get(launch.name)
    if kernel is None:
        return Facts(launch.name, direction, launch.programs, tile_of(launch), dtype=layer.dtype)
    shape, maths = layer.shape, MATHS[kernel]
    scores = flops = whole = None
    masked, masked_scores = 0.0, None
    if maths.scores:
        block_m, block_n = launch.constants["block_m"], launch.constants["block_n"]
        piece = None if maths.of_keys else launch.constants.get("masked_n")
        found = passes(shape, block_m, block_n, of_keys=maths.of_keys, piece=piece)
        scores, whole, masked = float(block_m * block_n), found.whole, found.masked
        masked_scores = scores if piece is None else float(block_m * piece)
        masked *= block_n // launch.constants.get("masked_n", block_n)  # taken in pieces
        flops = tile_flops(kernel, scores, sum(head_parts(shape.d)), sum(head_parts(shape.d_v)))
    return Facts(
        kernel=kernel,
        direction=direction,
        programs=launch.programs,
        tile=tile_of(launch),
        scores=scores,
        flops=flops,
        whole=whole,
        masked=masked,
        masked_scores=masked_scores,
        work=kernel_work(kernel, shape, itemsize=DTYPES[layer.dtype].itemsize),
        widest=widest_access(launch),
        dtype=layer.dtype,
    )


def tile_of(launch: Launch) -> dict[str, int]:
    """What was chosen: rows of both sides, items, warps, stages, options."""
    chosen = {
        name: value
        for name, value in launch.constants.items()
        if isinstance(value, int) and not isinstance(value, bool)
    }
    return {**chosen, "warps": launch.warps, "stages": launch.stages, **launch.options}


def widest_access(launch: Launch) -> int:
    """Bytes of the widest access that the strides of all rows of numbers allow, at most 16."""
    found = [16]

    def look(value: Any) -> None:
        if isinstance(value, Rows):
            if value.d.value > 1:
                found.append(value.unit.value * value.base.itemsize)
        elif isinstance(value, tuple):
            for part in value:
                look(part)

    look(launch.arguments)
    return min(found)


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

"""The kernels of this package as the static report compiles them: the launches of real calls.

A layer's tensors lie on the meta device, and the launches are those that the op itself would make:
strides, units, constants and hints are the production's by construction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from visgen_kernels.attention.arguments import (
    Keys,
    Queries,
    Rows,
    Scoring,
    head_parts,
    scoring_of,
)
from visgen_kernels.attention.backward import (
    delta_launch,
    keys_launch,
    keys_of,
    queries_launch,
    queries_of,
)
from visgen_kernels.attention.forward import forward_launch
from visgen_kernels.attention.launch import lists_for
from visgen_kernels.attention.tile_lists import TileLists
from visgen_kernels.attention.tiles import Tile
from visgen_kernels.launch import Launch
from visgen_kernels.roofline import attention_work
from visgen_kernels.shapes import Inputs, Shape
from visgen_kernels.static.analysis import Facts, Specimen
from visgen_kernels.static.passes import Passes, passes
from visgen_kernels.static.plain_loop import plain_loop
from visgen_kernels.static.work import MATHS, kernel_work, tile_flops

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Layer:
    """A shape's tensors on the meta device, and what its kernels are given."""

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
        """A float32 number for every query: the log-sum-exp, delta."""
        return self.inputs.q.new_empty(self.inputs.q.shape[:-1], dtype=torch.float32)

    @cached_property
    def scoring(self) -> Scoring:
        """What decides the scores."""
        return scoring_of(self.call, self.inputs.q, self.inputs.k)

    @cached_property
    def queries(self) -> Queries:
        """The queries' side of the backward."""
        return queries_of(self.call, self.inputs.q, self.out, self.row, self.row)

    @cached_property
    def keys(self) -> Keys:
        """The keys' side of the backward."""
        return keys_of(self.call, self.inputs.k, self.inputs.v)

    def lists(self, tile: Tile, *, of_keys: bool) -> TileLists | None:
        """Lists of tiles, for masks that need them."""
        return lists_for(self.call, self.inputs.q, self.inputs.k, tile, of_keys=of_keys)


def _forward(layer: Layer, tile: Tile) -> Launch:
    q, k, v = layer.inputs.q, layer.inputs.k, layer.inputs.v
    lists = layer.lists(tile, of_keys=False)
    return forward_launch(layer.call, layer.scoring, lists, q, k, v, layer.out, layer.row, tile)


def _delta(layer: Layer, tile: Tile) -> Launch:
    return delta_launch(layer.call, layer.scoring, layer.out, layer.out, layer.row)


def _backward_queries(layer: Layer, tile: Tile) -> Launch:
    lists = layer.lists(tile, of_keys=False)
    dq = layer.inputs.q
    return queries_launch(layer.call, layer.scoring, lists, layer.queries, layer.keys, dq, tile)


def _backward_keys(layer: Layer, tile: Tile) -> Launch:
    lists, dc = layer.lists(tile, of_keys=True), layer.call.key_bias
    dk, dv = layer.inputs.k, layer.inputs.v
    return keys_launch(
        layer.call, layer.scoring, lists, layer.queries, layer.keys, dk, dv, dc, tile
    )


BUILDERS: Mapping[str, Callable[[Layer, Tile], Launch]] = {
    "forward": _forward,
    "delta": _delta,
    "backward_queries": _backward_queries,
    "backward_keys": _backward_keys,
}


def specimen(kernel: str, layer: Layer, tile: Tile) -> Specimen:
    """One kernel of this package, for a layer, with a tile."""
    shape, maths = layer.shape, MATHS[kernel]
    launch = BUILDERS[kernel](layer, tile)
    scores = flops = whole = None
    masked = 0.0
    if maths.scores:
        scores = float(tile.block_m * tile.block_n)
        flops = tile_flops(kernel, scores, sum(head_parts(shape.d)), sum(head_parts(shape.d_v)))
        found = _passes(layer, tile, of_keys=maths.of_keys)
        whole, masked = found.whole, found.masked
    facts = Facts(
        kernel=kernel,
        direction=maths.direction,
        programs=launch.programs,
        tile=_tile_of(launch),
        scores=scores,
        flops=flops,
        whole=whole,
        masked=masked,
        work=kernel_work(kernel, shape, itemsize=DTYPES[layer.dtype].itemsize),
        widest=widest_access(launch),
        dtype=layer.dtype,
    )
    return Specimen(launch, facts)


def _tile_of(launch: Launch) -> dict[str, int]:
    """What was chosen: the rows of both sides, warps, stages, options."""
    rows = {name: n for name, n in launch.constants.items() if name.startswith("block")}
    return {**rows, "warps": launch.warps, "stages": launch.stages, **launch.options}


def _passes(layer: Layer, tile: Tile, *, of_keys: bool) -> Passes:
    found = passes(layer.shape, tile.block_m, tile.block_n, of_keys=of_keys)
    if layer.shape.key_lengths and not of_keys and layer.lists(tile, of_keys=False) is not None:
        return Passes(found.programs, 0.0, found.whole + found.masked)
    return found


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
        tile=_tile_of(launch),
        scores=scores,
        flops=2 * scores * 2 * d,
        whole=n / tile.block_n,
        work=attention_work(heads, n, n, d, d, n * n),
    )
    return Specimen(launch, facts)

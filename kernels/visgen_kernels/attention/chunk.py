"""Pieces of a call: blocks of sequences, chunks of their scores, and how to read and write them.

A block is one sequence with all its heads, or as many short sequences as are worth one matrix
product. Its tensors are (items, n, d), items = sequences times heads: a view where one sequence's
strides allow it, else a copy in memory that is reused from block to block. So no layout needs more
memory than a block, whatever axes its tokens are spread over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import ceil, prod

from torch import Tensor

from visgen_kernels.layouts import Layout
from visgen_kernels.tiles import Index


@dataclass(slots=True, eq=False)
class Block:
    """Sequences start .. stop; `index` picks them from the axes of the sequences."""

    index: tuple[int | slice, ...]
    start: int
    stop: int
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = self.stop - self.start


@dataclass(slots=True, eq=False)
class Chunk:
    """Scores (items, rows, keys) of a block; `shape` is (sequences, heads, rows, keys)."""

    items: slice  # of the block's; all of them if it has several sequences
    shape: tuple[int, int, int, int]
    rows: Index
    keys: Index
    hidden: Tensor | None  # bool, broadcasts with shape; true where the mask hides
    heads: slice
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = self.shape[0] * self.shape[1]

    def covers(self, n_q: int, n_k: int) -> bool:
        """Does the chunk hold all rows and keys of its items?"""
        return self.shape[2:] == (n_q, n_k)


def blocks(axes: Sequence[int], most: int) -> list[Block]:
    """Cut sequences, counted over several axes in raster order, into blocks of at most `most`."""
    inner, axis = 1, len(axes)
    while axis and inner * axes[axis - 1] <= most:
        axis -= 1
        inner *= axes[axis]
    if not axis:
        return [Block(tuple(slice(0, n) if inner > 1 else 0 for n in axes), 0, inner)]
    cuts = equal_parts(axes[axis - 1], max(1, most // inner))
    rest = tuple(slice(0, n) if inner > 1 else 0 for n in axes[axis:])
    found = []
    for number, lead in enumerate(product(*map(range, axes[: axis - 1]))):
        for cut in cuts:
            start = (number * axes[axis - 1] + cut.start) * inner
            count = (cut.stop - cut.start) * inner
            here = cut.start if count == 1 else cut
            found.append(Block((*lead, here, *rest), start, start + count))
    return found


class Scratch:
    """Named memory that is reused from chunk to chunk."""

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.memory: dict[str, Tensor] = {}
        self.views: dict[tuple[str, tuple[int, ...]], Tensor] = {}

    def array(self, name: str, *shape: int) -> Tensor:
        """An uninitialised array; the same name gives the same memory."""
        view = self.views.get((name, shape))
        if view is None:
            memory, count = self.memory.get(name), prod(shape)
            if memory is None or memory.numel() < count:
                view = self.like.new_empty(shape)
                self.memory[name] = view.view(-1)
            else:
                view = memory[:count].view(shape)
            self.views[name, shape] = view
        return view

    def scores(self, name: str, chunk: Chunk) -> Tensor:
        """An uninitialised (items, rows, keys) array."""
        return self.array(name, chunk.count, *chunk.shape[2:])


class Tokens:
    """A tensor (b, *grid, h, ...) by blocks of sequences, (items, n, ...)."""

    def __init__(self, x: Tensor, layout: Layout, axes: int, scratch: Scratch, name: str) -> None:
        """axes: of the grid. scratch, name: memory for blocks that are no view."""
        unfolded = layout.unfold(x, axes)
        sequences = 1 + axes + (unfolded.ndim - x.ndim) - layout.length_axes
        view = unfolded.movedim(sequences + layout.length_axes, sequences)
        self.one_axis = True
        if layout.length_axes == 2:
            outer, inner = sequences + 1, sequences + 2
            self.one_axis = view.stride(outer) == view.shape[inner] * view.stride(inner)
            if self.one_axis:
                view = view.flatten(outer, inner)
        self.view = view  # (axes of the sequences, h, one or two axes of the length, ...)
        self.items, self.n = (
            x.shape[axes + 1],
            prod(unfolded.shape[sequences:][: layout.length_axes]),
        )
        self.rest = tuple(x.shape[axes + 2 :])
        self.scratch, self.name = scratch, name
        # Matrix products want rows without gaps; new memory has the dtype of the scratch.
        dense = not self.rest or self.rest[-1] <= 1 or x.stride(-1) == 1
        self.direct = self.one_axis and dense and x.dtype == scratch.like.dtype

    @property
    def sequence_axes(self) -> tuple[int, ...]:
        """Sizes of the axes that sequences are counted over."""
        return tuple(self.view.shape[: self.view.ndim - 1 - len(self.rest) - self._length_axes])

    @property
    def _length_axes(self) -> int:
        return 1 if self.one_axis else 2

    @property
    def run(self) -> int:
        """How many sequences in order one stride reaches; 0 if they have to be copied anyway."""
        if not self.direct:
            return 0
        axes = len(self.sequence_axes)
        run = self.view.shape[axes - 1]
        for axis in range(axes - 2, -1, -1):
            step = self.view.shape[axis + 1] * self.view.stride(axis + 1)
            if self.view.shape[axis] > 1 and self.view.stride(axis) != step:
                break
            run *= self.view.shape[axis]
        return run

    def load(self, block: Block) -> Tensor:
        """The block's tokens (items, n, ...), to be read."""
        part = self.view[block.index]
        if self.direct and block.count == 1:
            return part
        memory = self.scratch.array(self.name, block.count * self.items, self.n, *self.rest)
        memory.view(part.shape).copy_(part)
        return memory

    def several(self, block: Block) -> Tensor:
        """The block's tokens (sequences, h, n, ...); a view wherever the strides allow it."""
        part = self.view[block.index]
        axes = part.ndim - 1 - len(self.rest) - self._length_axes  # of the sequences
        if self.direct and axes <= 1:
            return part if axes else part[None]
        if self.direct and _mergeable(part, axes):
            return part.flatten(0, axes - 1)
        memory = self.scratch.array(self.name, block.count * self.items, self.n, *self.rest)
        memory.view(part.shape).copy_(part)
        return memory.unflatten(0, (block.count, self.items))


def _mergeable(x: Tensor, axes: int) -> bool:
    return all(
        x.shape[axis] == 1 or x.stride(axis) == x.shape[axis + 1] * x.stride(axis + 1)
        for axis in range(axes - 1)
    )


class Target(Tokens):
    """New memory of that kind, written block by block: `open`, `put` its rows, `close`."""

    def open(self, block: Block, *, zero: bool = False) -> None:
        """Start a block; zero where not every row will be written."""
        self.destination = self.view[block.index]
        self.staged = not (self.direct and block.count == 1)
        if self.staged:
            shape = (block.count * self.items, self.n, *self.rest)
            self.part = self.scratch.array(self.name, *shape)
        else:
            self.part = self.destination
        if zero:
            self.part.zero_()

    def room(self, chunk: Chunk, index: Index) -> Tensor:
        """Contiguous memory for the chunk's rows or keys `index`, to be filled and then `put`."""
        shape = (chunk.count, length(index), *self.rest)
        if self.staged and shape == self.part.shape:
            return self.part
        return self.scratch.array(f"{self.name} room", *shape)

    def put(self, chunk: Chunk, index: Index, value: Tensor) -> None:
        """Write value (chunk's items, length of index, ...)."""
        if value is self.part:
            return
        part = self.part if chunk.count == len(self.part) else self.part[chunk.items]
        if isinstance(index, slice):
            select(part, index, 1).copy_(value)
        else:
            part[:, index] = value.to(part.dtype)

    def close(self) -> None:
        """End the block."""
        if self.staged:
            self.destination.copy_(self.part.view(self.destination.shape))

    def start(self, block: Block, *, zero: bool = False) -> None:
        """Like `open`, for rows of several sequences (sequences, h, rows, ...) at a time."""
        self.destination, self.block = self.view[block.index], block
        # Some rows of a window are no slice of the map.
        self.staged, self.written = not self.one_axis, False
        if zero and self.one_axis:
            self.destination.zero_()
        elif zero:
            self._stage().zero_()

    def _stage(self) -> Tensor:
        shape = (self.block.count, self.items, self.n, *self.rest)
        self.written = True
        return self.scratch.array(self.name, *shape)

    def write(self, index: Index, value: Tensor) -> None:
        """Write rows or keys of all sequences of the block."""
        if value.shape[2] == self.n and isinstance(index, slice):
            self.destination.copy_(value.reshape(self.destination.shape))
            self.written = False
            return
        axis = 2 if self.staged else self.destination.ndim - 1 - len(self.rest)
        part = self._stage() if self.staged else self.destination
        value = value if self.staged else value.reshape(*part.shape[:axis], -1, *self.rest)
        if isinstance(index, slice):
            select(part, index, axis).copy_(value)
        else:
            part.index_copy_(axis, index, value.to(part.dtype))

    def finish(self) -> None:
        """End the block."""
        if self.written:
            self.destination.copy_(self._stage().view(self.destination.shape))


def length(index: Index) -> int:
    """How many rows or keys an index stands for."""
    return index.stop - index.start if isinstance(index, slice) else len(index)


def equal_parts(total: int, most: int) -> list[slice]:
    """Cut 0 .. total into the fewest parts of at most `most`, as equal as can be."""
    parts = max(1, ceil(total / most))
    size = max(1, ceil(total / parts))
    return [slice(start, min(start + size, total)) for start in range(0, total, size)]


def select(x: Tensor, index: Index, dim: int) -> Tensor:
    """The rows or keys `index` along an axis of x."""
    if not isinstance(index, slice):
        return x.index_select(dim, index.to(x.device))
    if index.stop - index.start == x.shape[dim]:
        return x
    return x.narrow(dim, index.start, index.stop - index.start)

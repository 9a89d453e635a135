"""Pieces of a call: blocks of sequences, chunks of their scores, and how to read and write them.

A block is one sequence with all its heads, or one head of many sequences, or all heads of some
short sequences. Its tensors are (items, n, d), one item per sequence and head: in the first two
cases a view where strides allow it, else a copy in memory that is reused from block to block. So no
layout needs more memory than a block, whatever axes its tokens are spread over.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from math import ceil

import torch
from torch import Tensor

from visgen_kernels.layouts import Layout
from visgen_kernels.tiles import Index


@dataclass(slots=True, eq=False)
class Block:
    """Sequences start .. stop; `index` picks them from the axes of the sequences."""

    index: tuple[int | slice, ...]
    start: int
    stop: int
    head: int | None = None  # the only one; None: all of them
    count: int = field(init=False)

    def __post_init__(self) -> None:
        self.count = self.stop - self.start

    def heads(self, of: int) -> slice:
        """The block's heads, of so many."""
        return slice(0, of) if self.head is None else slice(self.head, self.head + 1)

    def part(self, x: Tensor) -> Tensor:
        """Of a tensor (sequences, heads, ...) the block's items (items, ...)."""
        x = x[self.start : self.stop]
        return x.flatten(0, 1) if self.head is None else x[:, self.head]


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


# Memory for arrays of a chunk's size that every thread keeps from call to call: fresh pages would
# cost a short call as much as its arithmetic. Only what was touched once is resident.
ARENA_BYTES = 16 * 1024 * 1024
_ALIGNMENT = 64  # bytes
_threads = threading.local()


def _arena(dtype: torch.dtype) -> Tensor:
    """The thread's arena as one axis of numbers."""
    arenas = _threads.__dict__
    name = str(dtype)
    if name not in arenas:
        if "bytes" not in arenas:
            arenas["bytes"] = torch.empty(ARENA_BYTES, dtype=torch.uint8)
        arenas[name] = arenas["bytes"].view(dtype)
    return arenas[name]


class Scratch:
    """Named memory that is reused from chunk to chunk; one call of an operator has one of it.

    On a CPU it lies in the thread's arena as far as that reaches, so no result may live in it.
    """

    def __init__(self, like: Tensor) -> None:
        self.like = like
        self.memory: dict[str, tuple[Tensor, int, int]] = {}  # where, offset, numbers
        self.views: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        self.step = _ALIGNMENT // like.element_size()
        self.used, self.limit = 0, 0
        if like.device.type == "cpu":
            self.arena = _arena(like.dtype)
            self.limit = self.arena.shape[0]

    def array(self, name: str, *shape: int) -> Tensor:
        """An uninitialised array; the same name gives the same memory."""
        view = self.views.get((name, shape))
        if view is None:
            count, strides = 1, []
            for size in reversed(shape):
                strides.append(count)
                count *= size
            memory = self.memory.get(name)
            if memory is None or memory[2] < count:
                memory = self.memory[name] = self._new(count)
            view = memory[0].as_strided(shape, strides[::-1], memory[1])
            self.views[name, shape] = view
        return view

    def _new(self, count: int) -> tuple[Tensor, int, int]:
        start = self.used
        if start + count > self.limit:
            return self.like.new_empty(count), 0, count
        self.used += -(-count // self.step) * self.step
        return self.arena, start, count

    def scores(self, name: str, chunk: Chunk) -> Tensor:
        """An uninitialised (items, rows, keys) array."""
        return self.array(name, chunk.count, *chunk.shape[2:])


class Form:
    """How a layout arranges tensors with so many grid axes."""

    def __init__(self, layout: Layout, axes: int) -> None:
        self.layout, self.axes = layout, axes
        self.length_axes = layout.length_axes
        added = 2 if self.length_axes == 2 else 0  # windows cut two axes in two
        self.sequences = 1 + axes + added - self.length_axes  # axes that sequences are counted over


class Tokens:
    """A tensor (b, *grid, h, ...) by blocks of sequences, (items, n, ...)."""

    def __init__(self, x: Tensor, form: Form, scratch: Scratch, name: str) -> None:
        """scratch, name: memory for blocks that are no view."""
        view, at, length_axes = form.layout.unfold(x, form.axes), form.sequences, form.length_axes
        if length_axes == 1:
            view = view.transpose(at, at + 1)
        else:
            view = view.movedim(at + 2, at)
            if _one_step(view, at + 1):
                view, length_axes = view.flatten(at + 1, at + 2), 1
        sizes = tuple(view.shape)
        self.view = view  # (axes of the sequences, h, one or two axes of the length, ...)
        self.length_axes = length_axes
        self.sequence_axes, self.heads = sizes[:at], sizes[at]
        self.n = sizes[at + 1] if length_axes == 1 else sizes[at + 1] * sizes[at + 2]
        self.rest = sizes[at + 1 + length_axes :]
        self.scratch, self.name = scratch, name
        # Matrix products want rows without gaps; new memory has the dtype of the scratch.
        dense = not self.rest or self.rest[-1] <= 1 or x.stride(-1) == 1
        self.direct = length_axes == 1 and dense and x.dtype == scratch.like.dtype
        self._runs: list[Tensor] | None = None
        self._by_head: dict[int, tuple[Tensor, ...]] = {}

    @property
    def runs(self) -> list[Tensor]:
        """All sequences in order, as few views (sequences, h, n, ...) as strides allow.

        Each has equally many sequences; there is none where tokens have to be copied anyway.
        """
        if self._runs is None:
            self._runs = self._find_runs() if self.direct else []
        return self._runs

    def _find_runs(self) -> list[Tensor]:
        view, axes = self.view, len(self.sequence_axes)
        while axes > 1 and _one_step(view, axes - 2):
            view, axes = view.flatten(axes - 2, axes - 1), axes - 1
        parts = [view]
        for _ in range(axes - 1):
            parts = [inner for outer in parts for inner in outer.unbind(0)]
        return parts

    @property
    def run(self) -> int:
        """How many sequences in order one view reaches; 0 if they have to be copied anyway."""
        return self.runs[0].shape[0] if self.runs else 0

    def load(self, block: Block) -> Tensor:
        """The block's tokens (items, n, ...), to be read."""
        seen = self._seen(block)
        return self._copy(block) if seen is None else seen

    def several(self, block: Block) -> Tensor:
        """The block's tokens (sequences, h, n, ...); a view wherever the strides allow it."""
        if self.runs:
            lead, start = divmod(block.start, self.run)
            if start + block.count <= self.run:
                return self.runs[lead][start : start + block.count]
        # Copied token by token, all heads of one together, as they lie in most tensors.
        memory = self.scratch.array(self.name, block.count, self.n, self.heads, *self.rest)
        at = len(self.sequence_axes) - sum(isinstance(i, int) for i in block.index)
        part = self.view[block.index].movedim(at, at + self.length_axes)
        memory.view(part.shape).copy_(part)
        return memory.transpose(1, 2)

    def _seen(self, block: Block) -> Tensor | None:
        """(items, n, ...) as a view, None if there is none."""
        if not self.direct or (block.head is None and block.count > 1):
            return None
        runs = self.runs
        run = runs[0].shape[0]
        lead, start = divmod(block.start, run)
        if block.head is None:
            return runs[lead][start]
        if start + block.count > run:
            return None
        heads = self._by_head.get(lead)
        if heads is None:
            heads = self._by_head[lead] = runs[lead].unbind(1)
        part = heads[block.head]
        return part if block.count == run else part[start : start + block.count]

    def _pick(self, block: Block) -> Tensor:
        """(axes of the block's sequences, h, axes of the length, ...); one head has no axis."""
        part = self.view[block.index]
        if block.head is None:
            return part
        return part.select(part.ndim - 1 - len(self.rest) - self.length_axes, block.head)

    def _memory(self, block: Block) -> Tensor:
        items = block.count * (self.heads if block.head is None else 1)
        return self.scratch.array(self.name, items, self.n, *self.rest)

    def _copy(self, block: Block) -> Tensor:
        part, memory = self._pick(block), self._memory(block)
        memory.view(part.shape).copy_(part)
        return memory


def _one_step(x: Tensor, axis: int) -> bool:
    """Do an axis and the next one make up one axis, without a copy?"""
    return x.shape[axis] == 1 or x.stride(axis) == x.shape[axis + 1] * x.stride(axis + 1)


class Target(Tokens):
    """New memory of that kind, written block by block: `open`, `put` its rows, `close`."""

    def open(self, block: Block, *, zero: bool = False) -> None:
        """Start a block; zero where not every row will be written."""
        seen = self._seen(block)
        self.destination = None if seen is not None else self._pick(block)
        self.part = self._memory(block) if seen is None else seen
        if zero:
            self.part.zero_()

    def room(self, chunk: Chunk, index: Index) -> Tensor:
        """Contiguous memory for the chunk's rows or keys `index`, to be filled and then `put`."""
        shape = (chunk.count, length(index), *self.rest)
        if self.destination is not None and shape == self.part.shape:
            return self.part
        return self.scratch.array(f"{self.name} room", *shape)

    def put(self, chunk: Chunk, index: Index, value: Tensor) -> None:
        """Write value (chunk's items, length of index, ...)."""
        if value is self.part:
            return
        part = self.part if chunk.count == self.part.shape[0] else self.part[chunk.items]
        if isinstance(index, slice):
            select(part, index, 1).copy_(value)
        else:
            part[:, index] = value.to(part.dtype)

    def close(self) -> None:
        """End the block."""
        if self.destination is not None:
            self.destination.copy_(self.part.view(self.destination.shape))

    def start(self, block: Block, fill: float | None = None) -> None:
        """Like `open`, for rows of several sequences (sequences, h, rows, ...) at a time."""
        self.place, self.block = self.view[block.index], block
        self.staged = None  # some rows of a window are no slice of the map
        if fill is not None:
            self.place.fill_(fill)

    def write(self, index: Index, value: Tensor, heads: slice) -> None:
        """Write rows or keys (sequences, heads, rows, ...) of all sequences of the block."""
        axes = self.place.ndim - 1 - len(self.rest) - self.length_axes  # of the sequences
        if value.shape[2] == self.n and isinstance(index, slice):
            part = select(self.place, heads, axes)
            part.copy_(value.reshape(part.shape))
            return
        if self.length_axes == 1:
            part, axis = select(self.place, heads, axes), axes + 1
            value = value.reshape(*part.shape[:axis], -1, *self.rest)
        else:
            if self.staged is None:
                self.staged = self._memory(self.block).unflatten(0, (self.block.count, self.heads))
                self.staged.copy_(self.place.reshape(self.staged.shape))
            part, axis = select(self.staged, heads, 1), 2
        if isinstance(index, slice):
            select(part, index, axis).copy_(value)
        else:
            part.index_copy_(axis, index, value.to(part.dtype))

    def finish(self) -> None:
        """End the block."""
        if self.staged is not None:
            self.place.copy_(self.staged.view(self.place.shape))


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

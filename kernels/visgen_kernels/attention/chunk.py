"""A piece of the scores, and how to read and write the tensors that belong to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, prod

import torch
from torch import Tensor

from visgen_kernels.tiles import Index


@dataclass(slots=True, eq=False)
class Chunk:
    """Scores (items, rows, keys), items = outer indices * inner indices (see `problem`)."""

    outer: slice
    inner: slice  # all of them if there are several outer indices
    rows: Index
    keys: Index
    hidden: Tensor | None  # bool like bias, true where the mask hides
    bias: Tensor | None  # broadcasts with (outer, inner, rows, keys)
    together: slice  # outer indices whose bias gradient is reduced together
    last: bool  # no further chunk of these outer indices has these rows
    items: int = field(init=False)
    shape: tuple[int, int, int, int] = field(init=False)

    def __post_init__(self) -> None:
        outer, inner = self.outer.stop - self.outer.start, self.inner.stop - self.inner.start
        self.items = outer * inner
        self.shape = (outer, inner, length(self.rows), length(self.keys))

    def covers(self, n_q: int, n_k: int) -> bool:
        """Does the chunk hold all rows and keys of its items?"""
        return self.shape[2:] == (n_q, n_k)


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
        return self.array(name, chunk.items, *chunk.shape[2:])


class Parts:
    """A tensor (outer, inner, n, ...) that is read and written chunk by chunk.

    Taking it apart once is several times cheaper than indexing it for every chunk.
    """

    def __init__(self, whole: Tensor) -> None:
        self.whole = whole
        self.outer = whole.unbind(0)

    def items(self, chunk: Chunk) -> Tensor:
        """The chunk's sequences and heads, (items, n, ...)."""
        if chunk.shape[0] > 1:
            return self.whole[chunk.outer].flatten(0, 1)
        part = self.outer[chunk.outer.start]
        return part if chunk.shape[1] == part.shape[0] else part[chunk.inner]

    def take(self, chunk: Chunk, index: Index) -> Tensor:
        """Of these the rows or keys `index`, (items, length of index, ...)."""
        return select(self.items(chunk), index, 1)

    def put(self, chunk: Chunk, index: Index, value: Tensor, scale: float = 1.0) -> None:
        """Write scale * value (items, length of index, ...) there."""
        if chunk.shape[0] > 1:
            part, along = self.whole[chunk.outer], 2
            value = value.unflatten(0, chunk.shape[:2])
        else:
            part, along = self.items(chunk), 1
        if not isinstance(index, slice):
            where = (slice(None),) * along + (index,)
            part[where] = (value * scale).to(part.dtype)
            return
        part = select(part, index, along)
        if scale == 1.0:
            part.copy_(value)
        else:
            torch.mul(value, scale, out=part)


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

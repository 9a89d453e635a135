"""One call of attention in the canonical form that the chunked implementation computes in.

The layout turns tensors into (sequences, n, heads, d). One of sequences and heads becomes the batch
of a matrix product (`inner`, the larger one), the other a loop (`outer`): token-major tensors then
need no copy at all, because for a fixed head (or a fixed sequence) the rest has one batch stride.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, prod

import torch
from torch import Tensor

from visgen_kernels.biases import add_tile_rows, expand_table
from visgen_kernels.dropout import keep_factors
from visgen_kernels.layouts import Layout
from visgen_kernels.masks import Full, Index, Mask, positions

# Scores of one chunk, in elements. 2 MB of float32 measured best on two cores with 512 kB of L2
# each and 32 MB of L3 (kernels/benchmarks/attention_cpu.py --chunk).
CHUNK_SCORES = 512 * 1024


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of the operator that are not q, k, v or gradients."""

    layout: Layout
    mask: Mask
    table: Tensor | None  # ((2h-1)(2w-1), heads)
    size: tuple[int, int] | None  # (h, w) of the table
    key_bias: Tensor | None  # k.shape[:-1]
    key_lengths: Tensor | None  # (b,)
    seed: Tensor | None
    scale: float
    dropout: float


@dataclass(frozen=True, eq=False)
class Chunk:
    """A piece of the scores: (items, rows, keys) of one outer index."""

    outer: int
    inner: slice
    rows: Index
    keys: Index
    hidden: Tensor | None  # (rows, keys) bool, true where the mask hides
    bias: Tensor | None  # (1 or items, rows, keys)
    last_of_tile: bool  # no further chunk of this outer index has these rows
    first_of_tile: bool

    @property
    def items(self) -> int:
        return self.inner.stop - self.inner.start


class Problem:
    """Canonical tensors and the chunks that cover all scores.

    q (outer, inner, n_q, d), k and v (outer, inner, n_k, d or d_v), float32 or float64.
    """

    def __init__(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> None:
        self.call = call
        self.axes = q.ndim - 3
        self.batch, self.grid = q.shape[0], q.shape[1:-2]
        self.key_grid = k.shape[1:-2]
        self.dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.heads = q.shape[-2]
        self.sequences = self.batch * call.layout.sequences(self.grid)
        self.heads_outer = self.sequences >= self.heads
        self.q, self.k, self.v = (self.canonical(x) for x in (q, k, v))
        self.outer, self.inner, self.n_q = self.q.shape[:3]
        self.n_k = self.k.shape[2]
        self.shift = self._key_shift(q.device)
        self.guarded = self.shift is not None or not isinstance(call.mask, Full)
        # A product 0 * NaN of a hidden key would leak; one sum tells whether there is any.
        self.finite = not self.guarded or _all_finite(self.k, self.v)
        self.expanded = self._expand(call.table)

    def _expand(self, table: Tensor | None) -> Tensor | None:
        if table is None or self.call.size is None:
            return None
        return expand_table(table, self.call.size, self.dtype)

    def canonical(self, x: Tensor) -> Tensor:
        """(b, *grid, h, d) -> (outer, inner, n, d) in the compute dtype; a view where possible."""
        split = self.call.layout.split(x.to(self.dtype), self.axes)
        if split.stride(-1) != 1:
            split = split.contiguous()
        return self.arrange(split)

    def arrange(self, split: Tensor) -> Tensor:
        """(sequences, n, heads, ...) -> (outer, inner, n, ...), a view."""
        return split.movedim(2, 0) if self.heads_outer else split.transpose(1, 2)

    def empty(self, n: int, *rest: int, dtype: torch.dtype | None = None) -> Tensor:
        """New memory (sequences, n, *rest), to be written through `arrange` and then joined."""
        return self.q.new_empty((self.sequences, n, *rest), dtype=dtype or self.dtype)

    def join(self, x: Tensor, *, of_keys: bool = False) -> Tensor:
        """(sequences, n, *rest) -> (b, *grid, *rest), contiguous."""
        grid = self.key_grid if of_keys else self.grid
        return self.call.layout.join(x, self.batch, grid).contiguous()

    def zeros_if_partial(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Fill x where a mask may leave rows without any chunk; else its content is overwritten."""
        return x.fill_(value) if self.guarded or not (self.n_q and self.n_k) else x

    def _key_shift(self, device: torch.device) -> Tensor | None:
        """What every query adds to the score of a key, -inf hides: (outer, inner, 1, n_k)."""
        shift = None
        layout, key_bias, lengths = self.call.layout, self.call.key_bias, self.call.key_lengths
        if key_bias is not None:
            split = layout.split(key_bias.to(self.dtype), self.axes)  # (sequences, n, heads)
            shift = self.arrange(split)[:, :, None, :]
        if lengths is not None:
            limit = lengths.repeat_interleave(layout.sequences(self.key_grid))
            beyond = torch.arange(self.n_k, device=device) >= limit.to(device)[:, None]
            beyond = beyond[:, :, None].expand(-1, -1, self.heads)
            beyond = self.arrange(beyond)[:, :, None, :]
            base = self.q.new_zeros(()) if shift is None else shift
            shift = base.masked_fill(beyond, -torch.inf)
        return shift

    def chunks(self, buffers: int) -> Iterator[Chunk]:
        """All chunks, tile by tile; `buffers` score-sized arrays are alive at a time."""
        scores = CHUNK_SCORES // buffers
        if self.n_q * self.n_k <= scores:
            rows, items = self.n_q, max(1, scores // max(1, self.n_q * self.n_k))
        else:
            rows, items = max(16, scores // self.n_k), 1
        steps = max(1, ceil(self.inner / items))
        items = max(1, ceil(self.inner / steps))  # equal parts
        for tile in self.call.mask.tiles(self.n_q, self.n_k, max(1, rows)):
            if not length(tile.keys):  # nothing visible: the results were set to zero beforehand
                continue
            hidden = None if tile.whole else self._hidden(tile.rows, tile.keys)
            shared = None if self.heads_outer else self.bias_tile(tile.rows, tile.keys)
            for outer in range(self.outer):
                bias = self.bias_tile(tile.rows, tile.keys, outer) if self.heads_outer else shared
                for start in range(0, self.inner, items):
                    inner = slice(start, min(start + items, self.inner))
                    part = bias if bias is None or self.heads_outer else bias[inner]
                    last = inner.stop == self.inner
                    yield Chunk(outer, inner, tile.rows, tile.keys, hidden, part, last, start == 0)

    def bias_tile(
        self, rows: Index, keys: Index, head: int | None = None, expanded: Tensor | None = None
    ) -> Tensor | None:
        """Bias of a tile, (heads, rows, keys), or (1, rows, keys) of one head; or None."""
        expanded = self.expanded if expanded is None else expanded
        if expanded is None or self.call.size is None:
            return None
        if head is not None:
            expanded = expanded[head : head + 1]
        out = expanded.new_empty(expanded.shape[0], length(rows), length(keys))
        add_tile_rows(out, expanded, self.call.size, rows, keys)
        return out

    def _hidden(self, rows: Index, keys: Index) -> Tensor:
        i = positions(rows)[:, None] + self.n_k - self.n_q
        return self.call.mask.visible(i, positions(keys)[None]).logical_not_().to(self.q.device)

    def weights(self, chunk: Chunk, out: Tensor, lse: Tensor | None = None) -> Tensor:
        """Softmax of the chunk's scores, in `out`; writes log-sum-exp into lse (items, rows)."""
        q = take(self.q, chunk, chunk.rows)
        k = take(self.k, chunk, chunk.keys)
        shift = self.chunk_shift(chunk)
        if chunk.bias is not None:
            out.copy_(chunk.bias.expand_as(out))
        beta = 0.0 if chunk.bias is None else 1.0
        torch.baddbmm(out, q, k.mT, beta=beta, alpha=self.call.scale, out=out)
        if shift is not None:
            out.add_(shift)
            if not self.finite:
                out.masked_fill_(shift == -torch.inf, -torch.inf)
        if chunk.hidden is not None:
            out.masked_fill_(chunk.hidden, -torch.inf)
        guard = chunk.hidden is not None or shift is not None
        top = out.amax(-1, keepdim=True) if guard or lse is not None else None
        torch.softmax(out, -1, out=out)
        if top is not None and guard:
            _clear_empty_rows(out, top, None if self.finite else self.hidden_scores(chunk))
        if top is not None and lse is not None:
            # The largest weight is exp(top - lse). An empty row has top = lse = -inf.
            largest = out.amax(-1, keepdim=True).masked_fill_(top == -torch.inf, 1.0)
            lse.copy_(top.sub_(largest.log_()).squeeze(-1))
        return out

    def chunk_shift(self, chunk: Chunk) -> Tensor | None:
        """What a chunk's keys add to their scores, (items, 1, keys), or None."""
        return None if self.shift is None else self.key_part(self.shift, chunk)

    def key_part(self, x: Tensor, chunk: Chunk) -> Tensor:
        """The chunk's part of x (outer, inner, 1, n_k) -> (items, 1, keys)."""
        return _select(x[chunk.outer, chunk.inner], chunk.keys, -1)

    def hidden_scores(self, chunk: Chunk) -> Tensor:
        """(items or 1, rows or 1, keys) bool: hidden by mask, key bias or key length."""
        shift = self.chunk_shift(chunk)
        hidden = torch.zeros((), dtype=torch.bool, device=self.q.device)
        if shift is not None:
            hidden = hidden | (shift == -torch.inf)
        return hidden if chunk.hidden is None else hidden | chunk.hidden

    def weighted_sum(self, weights: Tensor, values: Tensor, chunk: Chunk, out: Tensor) -> Tensor:
        """Weights (items, rows, keys) @ values (items, keys, d); hidden values do not count."""
        if self.finite:
            return torch.bmm(weights, values, out=out)
        broken = ~values.isfinite().all(dim=-1).all(dim=0)
        torch.bmm(weights, values.masked_fill(broken[:, None], 0.0), out=out)
        hidden = self.hidden_scores(chunk).expand_as(weights)
        for j in broken.nonzero().flatten().tolist():
            term = weights[:, :, j, None] * values[:, None, j]
            out += term.masked_fill_(hidden[:, :, j, None], 0.0)
        return out

    def keep(self, chunk: Chunk) -> Tensor | None:
        """Dropout factors (items, rows, keys) of a chunk, or None without dropout."""
        if not self.call.dropout:
            return None
        if self.call.seed is None:
            raise ValueError("dropout > 0 wants a seed (an int64 tensor of one element).")
        items = torch.arange(chunk.inner.start, chunk.inner.stop)
        numbers = (
            items * self.heads + chunk.outer
            if self.heads_outer
            else items + chunk.outer * self.heads
        )
        rows, keys = positions(chunk.rows), positions(chunk.keys)
        device = self.q.device
        return keep_factors(
            int(self.call.seed),
            numbers.to(device),
            rows.to(device),
            keys.to(device),
            self.call.dropout,
            self.dtype,
        )


class Scratch:
    """Named memory that is reused from chunk to chunk."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.memory: dict[str, Tensor] = {}

    def array(self, name: str, *shape: int) -> Tensor:
        """An uninitialised array; the same name gives the same memory."""
        count = prod(shape)
        memory = self.memory.get(name)
        if memory is None or memory.numel() < count:
            memory = self.memory[name] = self.problem.q.new_empty(count)
        return memory[:count].view(shape)

    def scores(self, name: str, chunk: Chunk) -> Tensor:
        """An uninitialised (items, rows, keys) array."""
        return self.array(name, chunk.items, length(chunk.rows), length(chunk.keys))


def take(x: Tensor, chunk: Chunk, index: Index) -> Tensor:
    """The chunk's part of x (outer, inner, n, d) -> (items, length of index, d)."""
    return _select(x[chunk.outer, chunk.inner], index, 1)


def put(x: Tensor, chunk: Chunk, index: Index, value: Tensor, scale: float = 1.0) -> None:
    """Write scale * value (items, length of index, d) into the chunk's part of x."""
    part = x[chunk.outer, chunk.inner]
    if not isinstance(index, slice):
        part[:, index] = (value * scale).to(x.dtype)
    elif scale == 1.0:
        part[:, index].copy_(value)
    else:
        torch.mul(value, scale, out=part[:, index])


def length(index: Index) -> int:
    """How many rows or keys an index stands for."""
    return index.stop - index.start if isinstance(index, slice) else len(index)


def _select(x: Tensor, index: Index, dim: int) -> Tensor:
    if isinstance(index, slice):
        return x.narrow(dim, index.start, index.stop - index.start)
    return x.index_select(dim, index.to(x.device))


def _all_finite(*tensors: Tensor) -> bool:
    return all(bool(x.sum().isfinite()) for x in tensors)


def _clear_empty_rows(weights: Tensor, top: Tensor, hidden: Tensor | None) -> None:
    """A row without a visible key came out of the softmax as NaN: it is zero by definition."""
    empty = top == -torch.inf
    if bool(empty.any()):
        weights.masked_fill_(empty, 0.0)
    if hidden is not None:
        weights.masked_fill_(hidden, 0.0)

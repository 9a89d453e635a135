"""One call of attention in the canonical form that the chunked implementation computes in.

The layout turns tensors into (sequences, n, heads, d). One of sequences and heads becomes the batch
of a matrix product (`inner`, the larger one), the other a loop (`outer`): token-major tensors then
need no copy at all, because for a fixed head (or a fixed sequence) the rest has one batch stride.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visgen_kernels.attention.chunk import Chunk, Parts, Scratch, equal_parts, length, select
from visgen_kernels.biases import expand_table, tile_bias
from visgen_kernels.dropout import keep_factors
from visgen_kernels.layouts import Layout
from visgen_kernels.masks import Causal, Full, Mask, SameGroup, visible
from visgen_kernels.tiles import Index, positions

# Scores of one chunk: 2 MB of float32, which the caches of common CPUs hold.
CHUNK_SCORES = 512 * 1024
# Up to so many numbers in q, a copy that merges heads and sequences into one batch is cheaper than
# a loop over heads: the copy costs about 0.3 ns a number, a turn of the loop about 40 us.
_MERGED_INPUTS = 128 * 1024
_KEPT_PER_INPUT = 2


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


class Geometry:
    """Sizes of a call: scores are (outer, inner, n_q, n_k)."""

    def __init__(self, layout: Layout, q: Sequence[int], k: Sequence[int]) -> None:
        """q, k: shapes (b, *grid, h, d)."""
        self.heads = q[-2]
        self.sequences = q[0] * layout.sequences(q[1:-2])
        self.n_q, self.n_k = layout.length(q[1:-2]), layout.length(k[1:-2])
        self.heads_outer = self.sequences >= self.heads
        self.outer, self.inner = self.heads, self.sequences
        if not self.heads_outer:
            self.outer, self.inner = self.sequences, self.heads

    @property
    def scores(self) -> tuple[int, int, int, int]:
        """The shape of all scores."""
        return self.outer, self.inner, self.n_q, self.n_k


def keeps_weights(layout: Layout, mask: Mask, q: Sequence[int], k: Sequence[int], d_v: int) -> bool:
    """Are the softmax weights kept for the backward pass instead of computed again?

    Only where that is no matter of memory: all weights of the call fit into one chunk, or are
    together at most twice as large as q, k and v. So memory stays linear in the number of tokens,
    and short sequences are spared a quarter of the backward's products and its exponentials.
    """
    if not isinstance(mask, Full | Causal | SameGroup):
        return False
    sizes = Geometry(layout, q, k)
    batch = sizes.sequences * sizes.heads
    inputs = batch * (sizes.n_q * q[-1] + sizes.n_k * (q[-1] + d_v))
    square = sizes.n_q * sizes.n_k
    return square <= CHUNK_SCORES and batch * square <= max(CHUNK_SCORES, _KEPT_PER_INPUT * inputs)


class Problem(Geometry):
    """Canonical tensors and the chunks that cover all scores.

    q (outer, inner, n_q, d), k and v (outer, inner, n_k, d or d_v), float32 or float64. `kept` are
    the weights of the forward pass (outer, inner, n_q, n_k), empty if they are computed again.
    """

    def __init__(
        self, call: Call, q: Tensor, k: Tensor, v: Tensor, *, buffers: int, kept: Tensor
    ) -> None:
        """buffers: how many arrays of a chunk's size are alive at a time."""
        super().__init__(call.layout, q.shape, k.shape)
        self.call = call
        self.axes = q.ndim - 3
        self.batch, self.grid, self.key_grid = q.shape[0], q.shape[1:-2], k.shape[1:-2]
        self.dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.budget = CHUNK_SCORES // buffers
        self.group = 1  # outer indices that are one batch together with the inner ones
        if q.numel() <= _MERGED_INPUTS:
            self.group = max(1, self.budget // max(1, self.inner * self.n_q * self.n_k))
        self.q, self.k, self.v = self.canonical(q), self.canonical(k), self.canonical(v)
        self.like = self.q.whole  # dtype and device of everything new
        self.kept = Parts(kept) if kept.ndim == 4 else None
        self.shift = self._key_shift(q.device)
        self.guarded = self.shift is not None or not isinstance(call.mask, Full)
        # A product 0 * NaN of a hidden key would leak; one sum tells whether there is any.
        self.finite = not self.guarded or _all_finite(self.k.whole, self.v.whole)
        self.expanded = None  # the bias is in the kept weights already
        if call.table is not None and call.size is not None and self.kept is None:
            self.expanded = expand_table(call.table, call.size, self.dtype)

    def canonical(self, x: Tensor) -> Parts:
        """(b, *grid, h, d) -> (outer, inner, n, d) in the compute dtype; a view where possible."""
        x = x if x.dtype == self.dtype else x.to(self.dtype)
        arranged = self.arrange(self.call.layout.split(x, self.axes))
        if self.group > 1 or arranged.stride(-1) != 1:
            arranged = arranged.contiguous()
        return Parts(arranged)

    def arrange(self, split: Tensor) -> Tensor:
        """(sequences, n, heads, ...) -> (outer, inner, n, ...), a view."""
        if not self.heads_outer:
            return split.transpose(1, 2)
        return split.permute(2, 0, 1, *range(3, split.ndim))

    def empty(self, n: int, *rest: int, dtype: torch.dtype | None = None) -> Tensor:
        """New memory (sequences, n, *rest), to be written through `arrange` and then joined.

        It is zero where a mask may leave rows without any chunk.
        """
        shape = (self.sequences, n, *rest)
        if self.guarded or not (self.n_q and self.n_k):
            return self.like.new_zeros(shape, dtype=dtype or self.dtype)
        return self.like.new_empty(shape, dtype=dtype or self.dtype)

    def join(self, x: Tensor, *, of_keys: bool = False) -> Tensor:
        """(sequences, n, *rest) -> (b, *grid, *rest), contiguous."""
        grid = self.key_grid if of_keys else self.grid
        return self.call.layout.join(x, self.batch, grid).contiguous()

    def _key_shift(self, device: torch.device) -> Parts | None:
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
            base = self.like.new_zeros(()) if shift is None else shift
            shift = base.masked_fill(beyond, -torch.inf)
        return None if shift is None else Parts(shift)

    def chunks(self) -> Iterator[Chunk]:
        """All chunks, tile by tile: within a tile outer by outer, within that inner by inner."""
        square = self.n_q * self.n_k
        pair = min(2, self.inner)  # products side by side keep two threads busy
        rows = self.n_q if square <= self.budget else max(16, self.budget // (self.n_k * pair))
        most = self.inner if self.group > 1 else max(1, self.budget // max(1, rows * self.n_k))
        inners, outers = equal_parts(self.inner, most), equal_parts(self.outer, self.group)
        for tile in self.call.mask.tiles(self.n_q, self.n_k, max(1, rows)):
            count = length(tile.rows) * length(tile.keys)
            if not count:  # nothing visible: the results were zero from the start
                continue
            hidden = None if tile.whole else self._hidden(tile.rows, tile.keys)
            # The bias of all heads at once, unless that is more than a chunk.
            at_once = not self.heads_outer or self.heads * count <= self.budget
            shared = self.bias_tile(tile.rows, tile.keys) if at_once else None
            for outer in outers:
                together = slice(0, self.outer) if at_once else outer
                if not at_once:
                    shared = self.bias_tile(tile.rows, tile.keys, outer)
                for inner in inners:
                    bias = shared
                    if shared is not None and not self.heads_outer:
                        bias = shared[:, inner]
                    elif shared is not None and at_once:
                        bias = shared[outer]
                    last = inner.stop == self.inner and outer.stop == together.stop
                    masked = self._hidden_of(hidden, outer, inner)
                    yield Chunk(outer, inner, tile.rows, tile.keys, masked, bias, together, last)

    def bias_tile(
        self, rows: Index, keys: Index, heads: slice | None = None, expanded: Tensor | None = None
    ) -> Tensor | None:
        """Bias of a tile, broadcasting with (outer, inner, rows, keys); None without a bias."""
        expanded = self.expanded if expanded is None else expanded
        if expanded is None or self.call.size is None:
            return None
        tile = tile_bias(expanded if heads is None else expanded[heads], self.call.size, rows, keys)
        return tile[:, None] if self.heads_outer else tile[None]

    def _hidden(self, rows: Index, keys: Index) -> Tensor:
        """(1 or sequences of a sample, rows, keys) bool, true where the mask hides."""
        i, j, shift = positions(rows), positions(keys), self.n_k - self.n_q
        return (
            visible(self.call.mask, self.call.layout, i, j, shift)
            .logical_not()
            .to(self.like.device)
        )

    def _hidden_of(self, hidden: Tensor | None, outer: slice, inner: slice) -> Tensor | None:
        """What is hidden in a chunk, broadcasting with (outer, inner, rows, keys)."""
        if hidden is None or len(hidden) == 1:
            return hidden
        part = inner if self.heads_outer else outer
        if part.start or part.stop != len(hidden):
            sequences = torch.arange(part.start, part.stop, device=hidden.device)
            hidden = hidden[sequences % len(hidden)]
        return hidden if self.heads_outer else hidden[:, None]

    def weights(self, chunk: Chunk, scratch: Scratch) -> Tensor:
        """Softmax weights of a chunk (items, rows, keys): the kept ones, or computed. Read only."""
        if self.kept is None:
            return self.softmax(chunk, scratch.scores("weights", chunk))
        return select(self.kept.take(chunk, chunk.rows), chunk.keys, 2)

    def softmax(self, chunk: Chunk, out: Tensor, lse: Tensor | None = None) -> Tensor:
        """Softmax of the chunk's scores, in `out`; writes log-sum-exp into lse (items, rows)."""
        q, k = self.q.take(chunk, chunk.rows), self.k.take(chunk, chunk.keys)
        shift = self.chunk_shift(chunk)
        if chunk.bias is not None:
            out.view(chunk.shape).copy_(chunk.bias)
        beta = 0.0 if chunk.bias is None else 1.0
        torch.baddbmm(out, q, k.mT, beta=beta, alpha=self.call.scale, out=out)
        if shift is not None:
            out.add_(shift)
            if not self.finite:
                out.masked_fill_(shift == -torch.inf, -torch.inf)
        if chunk.hidden is not None:
            out.view(chunk.shape).masked_fill_(chunk.hidden, -torch.inf)
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
        return None if self.shift is None else select(self.shift.items(chunk), chunk.keys, 2)

    def hidden_scores(self, chunk: Chunk) -> Tensor:
        """(items or 1, rows or 1, keys) bool: hidden by mask, key bias or key length."""
        shift = self.chunk_shift(chunk)
        hidden = torch.zeros((), dtype=torch.bool, device=self.like.device)
        if shift is not None:
            hidden = hidden | (shift == -torch.inf)
        if chunk.hidden is None:
            return hidden
        if chunk.hidden.ndim == 3 and len(chunk.hidden) == 1:
            return hidden | chunk.hidden
        return hidden | chunk.hidden.expand(*chunk.shape[:2], -1, -1).flatten(0, 1)

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
        outer = torch.arange(chunk.outer.start, chunk.outer.stop)[:, None]
        inner = torch.arange(chunk.inner.start, chunk.inner.stop)
        if self.heads_outer:
            numbers = (inner * self.heads + outer).flatten()
        else:
            numbers = (outer * self.heads + inner).flatten()
        rows, keys = positions(chunk.rows), positions(chunk.keys)
        device = self.like.device
        return keep_factors(
            int(self.call.seed),
            numbers.to(device),
            rows.to(device),
            keys.to(device),
            self.call.dropout,
            self.dtype,
        )


def _all_finite(*tensors: Tensor) -> bool:
    return all(bool(x.sum().isfinite()) for x in tensors)


def _clear_empty_rows(weights: Tensor, top: Tensor, hidden: Tensor | None) -> None:
    """A row without a visible key came out of the softmax as NaN: it is zero by definition."""
    empty = top == -torch.inf
    if bool(empty.any()):
        weights.masked_fill_(empty, 0.0)
    if hidden is not None:
        weights.masked_fill_(hidden, 0.0)

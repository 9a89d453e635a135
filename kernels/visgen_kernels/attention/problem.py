"""One call of attention as the chunked implementation walks over it.

Blocks of sequences (see `chunk`), in a block tiles of queries and keys (see `tiles`), in a tile the
heads of the block, as many at a time as keep the scores of a chunk in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from visgen_kernels.attention.chunk import (
    Block,
    Chunk,
    Form,
    Scratch,
    Target,
    Tokens,
    blocks,
    equal_parts,
    length,
    select,
)
from visgen_kernels.biases import expand_table, tile_bias
from visgen_kernels.dropout import keep_factors
from visgen_kernels.layouts import Layout
from visgen_kernels.masks import Full, Mask, one_tile, visible
from visgen_kernels.tiles import Index, Tile, positions

# Scores of one chunk, all arrays of its size together: 2 MB of float32, which caches hold.
CHUNK_SCORES = 512 * 1024
# A call with so few scores is not walked over (see `single`): half a megabyte of float32.
SINGLE_SCORES = 128 * 1024
# Numbers of q, k and v in a block of several sequences. Longer sequences come one by one: their
# products are long enough to hide what a chunk costs around them.
_BLOCK_INPUTS = 512 * 1024
# One head of many sequences, as a view, is worth it if a product of it has so many multiplications,
# and if rows are so close (in numbers) that reading them one by one does not cost a page each.
_HEAD_PRODUCT = 1024 * 1024
_HEAD_SCORES = 128 * 1024
_NEAR_ROWS = 8 * 1024
_KEPT_PER_INPUT = 2
# Scores that one call of the fused kernel has to be worth. Axial attention of 8 x 4 x 8 x 8 codes
# along rows takes 2.3 ms forward and back in batched products, 13.2 ms in 32 calls of 2,048 scores.
_LEAST_CALL_SCORES = 16 * 1024


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
    """Sizes of a call."""

    def __init__(self, layout: Layout, q: Sequence[int], k: Sequence[int], d_v: int) -> None:
        """q, k: shapes (b, *grid, h, d)."""
        self.heads, self.d, self.d_v = q[-2], q[-1], d_v
        self.sequences = q[0] * layout.sequences(q[1:-2])
        self.n_q, self.n_k = layout.length(q[1:-2]), layout.length(k[1:-2])
        # Sequences that follow each other in memory, and how far apart (in tokens) rows are.
        self.row, self.run = layout.spacing(q[1:-2], self.sequences)

    @property
    def scores(self) -> tuple[int, int, int, int]:
        """The shape of all scores."""
        return self.sequences, self.heads, self.n_q, self.n_k

    @property
    def near(self) -> bool:
        """Are the rows of a sequence close in memory, as those of windows are only when copied?"""
        return 0 < self.row * self.heads * self.d <= _NEAR_ROWS

    @property
    def scattered(self) -> bool:
        """Would the fused kernel be called for a handful of scores at a time, without copies?"""
        most = self.run * self.heads * self.n_q * self.n_k
        return self.run < self.sequences and most < _LEAST_CALL_SCORES

    @property
    def single(self) -> bool:
        """Are all scores of the call so few that a walk over them costs more than it saves?"""
        return 0 not in self.scores and self.sequences <= self.together(SINGLE_SCORES)

    def together(self, budget: int) -> int:
        """Sequences whose heads are all copied into one block; 0 if one is a block already."""
        inputs = self.n_q * self.d + self.n_k * (self.d + self.d_v)
        scores = self.n_q * self.n_k
        return min(budget // (self.heads * scores), _BLOCK_INPUTS // (self.heads * inputs))

    def heads_apart(self) -> int:
        """Sequences of which one head is a block, without copies; 0 if heads stay together.

        Depends on shapes alone, so that all passes over a call have the same blocks.
        """
        square = self.n_q * self.n_k
        if not square or self.single or self.together(CHUNK_SCORES) <= 1:
            return 0
        sequences = min(self.run, max(1, _HEAD_SCORES // square))
        return sequences if self.near and sequences * square * self.d >= _HEAD_PRODUCT else 0


def keeps_weights(
    layout: Layout, mask: Mask, q: Sequence[int], k: Sequence[int], d_v: int, *, fused: bool
) -> bool:
    """Are the softmax weights kept for the backward pass instead of computed again?

    Only where that is no matter of memory: all weights of the call fit into one chunk, or are
    together at most twice as large as q, k and v. So memory stays linear in the number of tokens,
    and short sequences are spared a quarter of the backward's products and its exponentials. A mask
    that is walked in several tiles has no square of weights to keep. Where the fused kernel can do
    without it (see `fused_cpu`) and rows lie close, that moves less memory, unless one sequence is
    work enough to stay in the cache, or its sequences are scattered in handfuls.
    """
    sizes = Geometry(layout, q, k, d_v)
    square = sizes.n_q * sizes.n_k
    if fused and square and sizes.near and not sizes.scattered and sizes.together(CHUNK_SCORES) > 1:
        return False
    batch = sizes.sequences * sizes.heads
    inputs = batch * (sizes.n_q * q[-1] + sizes.n_k * (q[-1] + d_v))
    if square > CHUNK_SCORES or batch * square > max(CHUNK_SCORES, _KEPT_PER_INPUT * inputs):
        return False
    return one_tile(mask, sizes.n_q)


@dataclass(slots=True, eq=False)
class Loaded:
    """A block's tensors, (items, n, d); `shift` (items, 1, n_k) and `kept` may be absent."""

    block: Block
    q: Tensor
    k: Tensor
    v: Tensor
    shift: Tensor | None
    kept: Tensor | None


def part(x: Tensor, chunk: Chunk, index: Index) -> Tensor:
    """Rows or keys `index` of a block's tensor (items, n, ...), for the chunk's items."""
    return select(x if chunk.count == x.shape[0] else x[chunk.items], index, 1)


class Problem(Geometry):
    """Tensors of a call by blocks, and the chunks that cover all scores.

    `kept` are the weights of the forward pass (sequences, heads, n_q, n_k), empty if they are
    computed again. Where blocks go head by head their memory is ordered (heads, sequences).
    """

    def __init__(
        self,
        call: Call,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        buffers: int,
        kept: Tensor,
        trusting: bool = False,
    ) -> None:
        """buffers: how many arrays of a chunk's size are alive at a time.

        trusting: hidden keys and values are taken for finite without a look at them.
        """
        super().__init__(call.layout, q.shape, k.shape, v.shape[-1])
        self.call = call
        self.axes = q.ndim - 3
        self.empty = 0 in self.scores
        self.apart = self.heads_apart()
        self.dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.like = q.new_empty(0, dtype=self.dtype)  # dtype and device of everything new
        self.budget = CHUNK_SCORES // buffers
        self.scratch, self.form = Scratch(self.like), Form(call.layout, self.axes)
        self.q, self.k, self.v = self.tokens(q, "q"), self.tokens(k, "k"), self.tokens(v, "v")
        self.kept = kept if kept.ndim == 4 else None
        key_bias, shift = call.key_bias, key_shift(call, self, self.like)
        shape = (self.sequences, self.heads, 1, self.n_k)
        self.shift = None if shift is None else shift.expand(shape).contiguous()
        may_hide = call.key_lengths is not None or not (key_bias is None or all_finite(key_bias))
        # Rows that see no key come out of the softmax as NaN and have to be cleared.
        self.empty_rows = may_hide or call.mask.leaves_empty_rows(self.n_q, self.n_k)
        # A product 0 * NaN of a hidden key would leak; one sum tells whether there is any.
        self.guarded = may_hide or not isinstance(call.mask, Full)
        self.finite = trusting or not self.guarded or all_finite(k, v)
        self.expanded = None  # the bias is in the kept weights already
        if call.table is not None and call.size is not None and self.kept is None:
            self.expanded = expand_table(call.table, call.size, self.dtype)
        self._hidden: dict[tuple[int, ...], Tensor] = {}  # by the tiles' patterns
        self._bias_square: Tensor | None = None
        self.tile(self._rows())

    def tile(self, rows: int) -> None:
        """Cut the scores into tiles of at most so many rows, or whole lines of the bias' map."""
        if rows < self.n_q:
            width = self.call.size[1] if self.call.size is not None else 1
            rows = max(width, rows // width * width)
        tiles = [] if self.empty else list(self.call.mask.tiles(self.n_q, self.n_k, rows))
        if len(tiles) == 1 and length(tiles[0].keys) < self.n_k:
            # Weights are kept as whole squares; so few keys too many cost next to nothing.
            tiles = [Tile(tiles[0].rows, slice(0, self.n_k), whole=False)]
        self.tiles = tiles
        self.bare_rows = any(not length(tile.keys) for tile in tiles)  # no chunk has them
        self._hidden, self._bias_square = {}, None

    def _rows(self) -> int:
        """Rows of a tile whose scores are one chunk."""
        if self.n_q * self.n_k <= self.budget:
            return self.n_q
        # Products side by side keep several threads busy.
        threads = min(torch.get_num_threads(), self.heads)
        return max(16, self.budget // (self.n_k * threads))

    def tokens(self, x: Tensor, name: str) -> Tokens:
        """A tensor (b, *grid, h, ...) by blocks."""
        return Tokens(x, self.form, self.scratch, name)

    def target(self, x: Tensor, name: str) -> Target:
        """New memory (b, *grid, h, ...), written block by block."""
        return Target(x, self.form, self.scratch, name)

    def blocks(self) -> list[Block]:
        """All blocks of the call, in order."""
        if self.empty:
            return []
        axes = self.q.sequence_axes
        if not self.apart:
            return blocks(axes, max(1, self.together(self.budget)))
        heads = range(self.heads)
        return [
            Block(cut.index, cut.start, cut.stop, head)
            for cut in blocks(axes, self.apart)
            for head in heads
        ]

    def load(self, block: Block) -> Loaded:
        """The tensors of a block."""
        shift = kept = None
        if self.shift is not None:
            shift = block.part(self.shift)
        if self.kept is not None:
            kept = self.kept_part(self.kept, block)
        q, k, v = self.q.load(block), self.k.load(block), self.v.load(block)
        return Loaded(block, q, k, v, shift, kept)

    def kept_part(self, kept: Tensor, block: Block) -> Tensor:
        """A block's weights (items, n_q, n_k) in the memory of all; contiguous."""
        if block.head is None:
            return block.part(kept)
        sequences, heads, n_q, n_k = self.scores
        return kept.view(heads, sequences, n_q, n_k)[block.head, block.start : block.stop]

    def chunks(self, block: Block) -> Iterator[Chunk]:
        """All chunks of a block, tile by tile, in a tile by heads."""
        for tile in self.tiles:
            rows, keys = length(tile.rows), length(tile.keys)
            if not keys:  # nothing visible: the results are zero
                continue
            hidden = None if tile.whole else self.hidden(tile, block)
            if block.count > 1 or block.head is not None:
                heads = block.heads(self.heads)
                shape = (block.count, heads.stop - heads.start, rows, keys)
                items = slice(0, shape[0] * shape[1])
                yield Chunk(items, shape, tile.rows, tile.keys, hidden, heads)
                continue
            for heads in equal_parts(self.heads, max(1, self.budget // (rows * keys))):
                shape = (1, heads.stop - heads.start, rows, keys)
                yield Chunk(heads, shape, tile.rows, tile.keys, hidden, heads)

    def hidden(self, tile: Tile, block: Block) -> Tensor:
        """(1 or sequences, 1, rows, keys) bool, true where the mask hides."""
        pattern = () if len(self.tiles) == 1 else tile.pattern
        hidden = None if pattern is None else self._hidden.get(pattern)
        if hidden is None:
            mask, layout, shift = self.call.mask, self.call.layout, self.n_k - self.n_q
            seen = visible(mask, layout, positions(tile.rows), positions(tile.keys), shift)
            hidden = seen.logical_not()[:, None].to(self.like.device)
            if pattern is not None:
                self._hidden[pattern] = hidden
        period = len(hidden)
        if period == 1 or (block.start % period == 0 and block.count == period):
            return hidden
        sequences = torch.arange(block.start, block.stop, device=hidden.device)
        return hidden[sequences % period]

    def add_bias(self, chunk: Chunk, expanded: Tensor, out: Tensor) -> None:
        """Write the position bias of a chunk into out (items, rows, keys)."""
        size = self.call.size
        if size is None:
            raise ValueError("a position bias wants its size.")
        if chunk.shape[0] == 1:
            tile_bias(expanded[chunk.heads], size, chunk.rows, chunk.keys, out)
            return
        reused = expanded is self.expanded and len(self.tiles) == 1
        square = self._bias_square if reused else None
        if square is None:
            square = tile_bias(expanded, size, chunk.rows, chunk.keys)
            if reused:
                self._bias_square = square
        out.view(chunk.shape).copy_(square[chunk.heads])

    def tile_bias(self, tile: Tile, heads: slice) -> Tensor | None:
        """The position bias of a tile, (heads, rows, keys)."""
        if self.expanded is None or self.call.size is None:
            return None
        if self._bias_square is not None:
            return self._bias_square
        bias = tile_bias(self.expanded[heads], self.call.size, tile.rows, tile.keys)
        if len(self.tiles) == 1 and bias.shape[0] == self.heads:
            self._bias_square = bias
        return bias

    def weights(self, loaded: Loaded, chunk: Chunk) -> Tensor:
        """Softmax weights of a chunk (items, rows, keys): the kept ones, or computed. Read only."""
        if loaded.kept is None:
            return self.softmax(loaded, chunk, self.scratch.scores("weights", chunk))
        kept = part(loaded.kept, chunk, chunk.rows)
        return select(kept, chunk.keys, 2)

    def softmax(
        self, loaded: Loaded, chunk: Chunk, out: Tensor, lse: Tensor | None = None
    ) -> Tensor:
        """Softmax of the chunk's scores, in `out`; writes log-sum-exp into lse (items, rows)."""
        q, k = part(loaded.q, chunk, chunk.rows), part(loaded.k, chunk, chunk.keys)
        shift = self.chunk_shift(loaded, chunk)
        beta = 0.0
        if self.expanded is not None:
            self.add_bias(chunk, self.expanded, out)
            beta = 1.0
        torch.baddbmm(out, q, k.mT, beta=beta, alpha=self.call.scale, out=out)
        if shift is not None:
            out.add_(shift)
            if not self.finite:
                out.masked_fill_(shift == -torch.inf, -torch.inf)
        if chunk.hidden is not None:
            out.view(chunk.shape).masked_fill_(chunk.hidden, -torch.inf)
        top = None if lse is None else out.amax(-1, keepdim=True)
        torch.softmax(out, -1, out=out)
        if not self.finite:
            out.masked_fill_(self.hidden_scores(loaded, chunk), 0.0)
        elif self.empty_rows and bool(out[..., 0].isnan().any()):
            empty = self.hidden_scores(loaded, chunk).all(-1, keepdim=True)
            out.masked_fill_(empty, 0.0)
        if top is not None and lse is not None:
            # The largest weight is exp(top - lse). An empty row has top = lse = -inf.
            largest = out.amax(-1, keepdim=True).masked_fill_(top == -torch.inf, 1.0)
            lse.copy_(top.sub_(largest.log_()).squeeze(-1))
        return out

    def chunk_shift(self, loaded: Loaded, chunk: Chunk) -> Tensor | None:
        """What a chunk's keys add to their scores, (items, 1, keys), or None."""
        if loaded.shift is None:
            return None
        shift = loaded.shift if chunk.count == loaded.shift.shape[0] else loaded.shift[chunk.items]
        return select(shift, chunk.keys, 2)

    def hidden_scores(self, loaded: Loaded, chunk: Chunk) -> Tensor:
        """(items or 1, rows or 1, keys) bool: hidden by mask, key bias or key length."""
        shift = self.chunk_shift(loaded, chunk)
        hidden = torch.zeros((), dtype=torch.bool, device=self.like.device)
        if shift is not None:
            hidden = hidden | (shift == -torch.inf)
        if chunk.hidden is None:
            return hidden.expand(1, 1, length(chunk.keys)) if hidden.ndim == 0 else hidden
        return hidden | chunk.hidden.expand(*chunk.shape[:2], -1, -1).flatten(0, 1)

    def weighted_sum(
        self,
        weights: Tensor,
        values: Tensor,
        loaded: Loaded,
        chunk: Chunk,
        out: Tensor,
        scale: float = 1.0,
    ) -> Tensor:
        """Scale * weights (items, rows, keys) @ values (items, keys, d), but for hidden values."""
        if self.finite:
            return torch.baddbmm(out, weights, values, beta=0.0, alpha=scale, out=out)
        broken = ~values.isfinite().all(dim=-1).all(dim=0)
        torch.bmm(weights, values.masked_fill(broken[:, None], 0.0), out=out)
        hidden = self.hidden_scores(loaded, chunk).expand_as(weights)
        for j in broken.nonzero().flatten().tolist():
            term = weights[:, :, j, None] * values[:, None, j]
            out += term.masked_fill_(hidden[:, :, j, None], 0.0)
        return out.mul_(scale)

    def keep(self, loaded: Loaded, chunk: Chunk) -> Tensor | None:
        """Dropout factors (items, rows, keys) of a chunk, or None without dropout."""
        if not self.call.dropout:
            return None
        if self.call.seed is None:
            raise ValueError("dropout > 0 wants a seed (an int64 tensor of one element).")
        device, block = self.like.device, loaded.block
        sequences = torch.arange(block.start, block.stop, device=device)[:, None] * self.heads
        heads = torch.arange(chunk.heads.start, chunk.heads.stop, device=device)
        return keep_factors(
            int(self.call.seed),
            (sequences + heads).flatten(),
            positions(chunk.rows).to(device),
            positions(chunk.keys).to(device),
            self.call.dropout,
            self.dtype,
        )


def key_shift(call: Call, sizes: Geometry, like: Tensor) -> Tensor | None:
    """What keys add to their scores, (sequences, heads or 1, 1, n_k), -inf where hidden.

    like: dtype and device of the result.
    """
    shift, lengths = None, call.key_lengths
    if call.key_bias is not None:
        bias = call.key_bias.to(like.dtype)
        shift = call.layout.split(bias, bias.ndim - 2).transpose(1, 2)[:, :, None]
    if lengths is not None:
        limit = lengths.to(like.device).repeat_interleave(sizes.sequences // max(1, len(lengths)))
        beyond = torch.arange(sizes.n_k, device=like.device) >= limit[:, None, None, None]
        shift = (like.new_zeros(()) if shift is None else shift).masked_fill(beyond, -torch.inf)
    return shift


def all_finite(*tensors: Tensor) -> bool:
    """Is there no NaN and no infinity in any of them, nor a sum that overflows?"""
    return all(isfinite(x.sum(dtype=_sum_dtype(x)).item()) for x in tensors)


def _sum_dtype(x: Tensor) -> torch.dtype:
    """float16 sums overflow; bfloat16 and wider do not."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype

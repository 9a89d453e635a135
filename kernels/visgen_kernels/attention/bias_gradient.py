"""K3, the gradient of the relative position bias: a table from sums of dS, or of gS.

    d table[y_i - y_j, x_i - x_j, head] = sum of dS_ij over sequences and over all such pairs

A program owns one offset between a tile of queries and a tile of keys, both of whole map rows, and
adds the tiles of dS of all sequences and of all places with that offset in registers. In such a
tile the difference of two tokens depends on their places in it alone, so the bias is loaded once,
and every pair of map rows is met once. What programs write is linear in the number of tokens; it is
folded into the table in a fixed order. Nothing is added by atomics, so two runs give the same bits.

    offset = (first map row of the keys) - (first map row of the queries)
    partial[split, head, offset, part of a row (queries), (keys), block_m, block_n]

A tile holds as many whole map rows as fit; of rows wider than a tile it holds a part. With the
cotangents of a second derivative the same walk sums gS (`second_jit`, `double_backward`).
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from visgen_kernels.attention.arguments import Scoring
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.second import Second, sequences_of
from visgen_kernels.attention.second_jit import (
    add_value_cotangent,
    load_second_keys_at,
    load_second_queries,
    score_cotangent,
    second_factors,
    second_key_bases,
    second_query_bases,
    second_weights,
    upstream,
)
from visgen_kernels.attention.sides_jit import load_vector
from visgen_kernels.attention.tiles import Tile
from visgen_kernels.attention.tiles_jit import (
    FULL,
    head_of_words,
    key_limit,
    token_offsets,
)
from visgen_kernels.biases import reduce_expanded
from visgen_kernels.launch import Launch
from visgen_kernels.masks import Full

# Programs beyond those that offsets and heads ask for: about two a multiprocessor of an H100.
_PROGRAMS = 264


class Cut(NamedTuple):
    """How the map's rows are cut into tiles.

    Query tiles begin at multiples of rows_m; offsets are first .. first + offsets - 1 times rows_n,
    so that for every query tile the key tiles cover each map row once.
    """

    rows_m: tl.constexpr  # map rows of a tile of queries
    rows_n: tl.constexpr  # of keys
    parts_m: tl.constexpr  # tiles that a map row takes, 1 unless it is wider than a tile
    parts_n: tl.constexpr
    tiles: tl.constexpr  # of queries, one above the other
    first: tl.constexpr
    offsets: tl.constexpr


def cut_of(size: tuple[int, int], tile: Tile) -> Cut:
    """The cut of a map of `size` (h, w) by a tile."""
    height, width = size
    rows_m, rows_n = (min(height, max(1, block // width)) for block in (tile.block_m, tile.block_n))
    tiles = triton.cdiv(height, rows_m)
    first = -(((tiles - 1) * rows_m + rows_n - 1) // rows_n)
    numbers = (
        rows_m,
        rows_n,
        triton.cdiv(width, tile.block_m),
        triton.cdiv(width, tile.block_n),
        tiles,
        first,
        triton.cdiv(height, rows_n) - first,
    )
    return Cut(*map(tl.constexpr, numbers))


@triton.jit
def _table_tile(table, head, places_m, places_n, used, shift, x):
    """Entries of an expanded table for the pairs of a tile, 0 where there is no such difference.

    A table that is absent gives zeros.
    """
    if table is None:
        return tl.zeros(used.shape, tl.float32)
    else:
        across: tl.constexpr = (2 * x.bias_height - 1) * x.bias_width
        start = (shift - places_m // x.bias_width + (x.bias_height - 1)) * x.bias_width
        cells = start[:, None] + places_n[None, :]
        inside = used & (cells >= 0) & (cells < across)
        cells += (places_m % x.bias_width * across)[:, None]
        return tl.load(table + head * (x.bias_width * across) + cells, mask=inside, other=0.0)


@triton.jit
def _moved(rows, base, start, near: tl.constexpr):
    """A base at token `start` of its sequence; left alone if absent or not `near`."""
    if near and rows is not None:
        return base + token_offsets(rows, start)
    else:
        return base


@triton.jit
def _query_bases(t, z, head, start, x, near: tl.constexpr):
    """`second_query_bases`, moved to token `start`."""
    (q, g, sums, delta), u, m, e = second_query_bases(t, z, head, x)
    return (
        (
            _moved(t.q, q, start, near),
            _moved(t.grad, g, start, near),
            _moved(t.sums, sums, start, near),
            _moved(t.delta, delta, start, near),
        ),
        _moved(t.of_q, u, start, near),
        _moved(t.m, m, start, near),
        _moved(t.e, e, start, near),
    )


@triton.jit
def _key_bases(t, z, head, start, x, near: tl.constexpr):
    """`second_key_bases`, those of k, v and their cotangents moved to token `start`."""
    k, v, w, of_v, c, shift = second_key_bases(t, z, head, x)
    return (
        _moved(t.k, k, start, near),
        _moved(t.v, v, start, near),
        _moved(t.of_k, w, start, near),
        _moved(t.of_v, of_v, start, near),
        c,
        shift,
    )


@triton.jit
def _tile(
    t,
    z,
    head,
    start_m,
    start_n,
    fixed,
    x,
    whole: tl.constexpr,
    near: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """The tile dS, with t.m gS, of the queries at start_m and the keys at start_n."""
    places_m, places_n, used_m, used_n, starts, seed = fixed
    rows, j = start_m + places_m, start_n + places_n
    inside = used_m & (rows < x.n_q)
    present = used_n & (j >= 0) & (j < key_limit(x, z))
    rows_near, keys_near = rows, j
    if near:
        rows_near, keys_near = places_m, places_n
    bases = _query_bases(t, z, head, start_m, x, near)
    query = load_second_queries(t, bases, rows_near, inside, head, x, whole)
    key = load_second_keys_at(
        t, _key_bases(t, z, head, start_n, x, near), keys_near, j, present, x, whole
    )
    words, number = head_of_words(x, z), z * x.heads + head
    p = second_weights(t, query, key, starts[0], rows, words, x, whole, False)
    factors = second_factors(key, rows, seed, number, x, False, x.bias_width % 4 == 0)
    d = upstream(t, query, key, factors, x, False, block_m, block_n)
    if t.m is not None:
        m = score_cotangent(t, query, key, starts[1], x, False)
        m -= load_vector(t.m, bases[2], rows_near, inside)[:, None]
        d = d * m - load_vector(t.e, bases[3], rows_near, inside)[:, None]
        d = add_value_cotangent(t, query, key, factors, d, x, False, block_m, block_n)
    ds = p * d
    if not whole and x.code[0] != FULL:  # a row may be NaN by a key that others do not see
        ds = tl.where(p == 0.0, 0.0, ds)
    return ds


@triton.jit
def attention_bias_gradient(
    t: Second,
    partial,
    x: Scoring,
    cut: Cut,
    sequences,
    splits,
    whole: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """The sum of dS, with t.m of gS, of one offset over a share of all sequences and places.

    `whole`: all tiles lie inside the map, and every query sees every key.
    """
    height: tl.constexpr = x.bias_height
    width: tl.constexpr = x.bias_width
    one: tl.constexpr = cut.parts_m == 1 and cut.parts_n == 1
    # Tokens of a tile lie alike everywhere, unless the layout has rows of another length.
    near: tl.constexpr = t.q.inner == 1 or (width % t.q.inner == 0 and one)
    pid = tl.program_id(0)
    number, rest = pid % cut.offsets, pid // cut.offsets
    part_n, rest = rest % cut.parts_n, rest // cut.parts_n
    part_m, rest = rest % cut.parts_m, rest // cut.parts_m
    head, split = rest % x.heads, rest // x.heads

    shift = (number + cut.first) * cut.rows_n  # from the queries' first map row to the keys'
    places_m = part_m * block_m + tl.arange(0, block_m)
    places_n = part_n * block_n + tl.arange(0, block_n)
    used_m, used_n = places_m < cut.rows_m * width, places_n < cut.rows_n * width
    used = used_m[:, None] & used_n[None, :]
    bias = _table_tile(x.table, head, places_m, places_n, used, shift, x)
    y = _table_tile(t.of_table, head, places_m, places_n, used, shift, x)
    seed = 0
    if x.dropout:
        seed = tl.load(x.seed)

    # Tiles of queries whose keys are not all outside the map.
    low = tl.maximum(-shift + (cut.rows_m - cut.rows_n), 0) // cut.rows_m
    high = tl.minimum(tl.cdiv(-shift + height, cut.rows_m), cut.tiles)
    count = high - low
    share = tl.cdiv(sequences * count, splits)
    begin = tl.minimum(split * share, sequences * count)
    end = tl.minimum(begin + share, sequences * count)
    z, place = begin // count, low + begin % count
    acc = tl.zeros((block_m, block_n), tl.float32)
    for _ in range(begin, end):
        start_m = place * cut.rows_m * width
        start_n = start_m + shift * width
        starts = (bias.to(tl.float32), y.to(tl.float32))
        fixed = (places_m, places_n, used_m, used_n, starts, seed)
        acc += _tile(t, z, head, start_m, start_n, fixed, x, whole, near, block_m, block_n)
        last = place + 1 == high
        place = tl.where(last, low, place + 1)
        z = tl.where(last, z + 1, z)
    cells = tl.arange(0, block_m)[:, None] * block_n + tl.arange(0, block_n)[None, :]
    tl.store(partial + pid.to(tl.int64) * (block_m * block_n) + cells, acc)


@dataclass(frozen=True)
class BiasPlan:
    """How the gradient of one table is computed: the cut, and the shape of what programs write.

    shape (splits, heads, parts_m, parts_n, offsets, block_m, block_n).
    """

    size: tuple[int, int]
    rows_m: int
    rows_n: int
    first: int
    shape: tuple[int, ...]

    def fold(self, partial: Tensor) -> Tensor:
        """The table's gradient ((2h-1)(2w-1), heads) float32 from what the programs wrote."""
        (height, width), rows_m, rows_n = self.size, self.rows_m, self.rows_n
        tiles = partial.sum(0).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        tiles = tiles[:, :, : rows_m * width, : rows_n * width]
        tiles = tiles.unflatten(3, (rows_n, width)).unflatten(2, (rows_m, width))
        # (heads, offset, y_i, x_i, y_j, x_j) in the tile -> (heads, x_i, y_i, offset and y_j, x_j)
        rows = tiles.permute(0, 3, 2, 1, 4, 5).flatten(3, 4)
        # y_j - y_i = row - y_i + const: rows of length n + rows_m, read as rows one shorter, shift
        # by one each, and what belongs together stands in a column.
        n = rows.shape[3]
        padded = rows.new_zeros(*rows.shape[:2], rows_m, n + rows_m, width)
        padded[:, :, :, :n] = rows.flip(2)
        skewed = padded.flatten(2, 3)[:, :, : rows_m * (n + rows_m - 1)]
        sums = skewed.unflatten(2, (rows_m, n + rows_m - 1)).sum(2)
        start = rows_m - self.first * rows_n - height
        expanded = sums[:, :, start : start + 2 * height - 1]
        return reduce_expanded(expanded.flatten(2), self.size)


def bias_plan(size: tuple[int, int], heads: int, sequences: int, tile: Tile) -> BiasPlan:
    """The plan for a map of `size`, so many heads and sequences."""
    cut = cut_of(size, tile)
    parts_m, parts_n = cut.parts_m.value, cut.parts_n.value
    offsets = cut.offsets.value
    programs = heads * parts_m * parts_n * offsets
    splits = max(1, min(_PROGRAMS // programs, sequences * cut.tiles.value))
    shape = (splits, heads, parts_m, parts_n, offsets, tile.block_m, tile.block_n)
    return BiasPlan(size, cut.rows_m.value, cut.rows_n.value, cut.first.value, shape)


def bias_launch(call: Call, x: Scoring, t: Second, partial: Tensor, tile: Tile) -> Launch:
    """The kernel that writes `partial`, of the plan's shape, float32; t.m None: sums of dS."""
    if call.size is None:
        raise ValueError("a call without a relative position bias has no gradient of its table.")
    (height, width), cut = call.size, cut_of(call.size, tile)
    rows_m, rows_n = cut.rows_m.value, cut.rows_n.value
    exact = (rows_m * width, rows_n * width) == (tile.block_m, tile.block_n)
    exact = exact and not (rows_m % rows_n or height % rows_m or height % rows_n)
    shown = isinstance(call.mask, Full) and call.key_bias is None and call.key_lengths is None
    return Launch(
        attention_bias_gradient,
        partial.numel() // (tile.block_m * tile.block_n),
        (t, partial, x, cut, sequences_of(call, t), partial.shape[0]),
        {"whole": exact and shown, "block_m": tile.block_m, "block_n": tile.block_n},
        tile.warps,
        tile.stages,
        tile.options(),
    )


def table_gradient(call: Call, x: Scoring, t: Second, tile: Tile) -> Tensor:
    """The gradient of the call's table, in its shape and dtype; t.m None: the first derivative's.

    x of `scoring_of`; t of `first_of`, or of `second_of` with m and e written.
    """
    if call.size is None or call.table is None:
        raise ValueError("a call without a relative position bias has no gradient of its table.")
    plan = bias_plan(call.size, x.heads, sequences_of(call, t), tile)
    partial = torch.empty(plan.shape, dtype=torch.float32, device=call.table.device)
    bias_launch(call, x, t, partial, tile).run()
    return plan.fold(partial).to(call.table.dtype)

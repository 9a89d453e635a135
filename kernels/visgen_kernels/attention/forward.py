"""K1, the forward kernel: softmax over tiles of keys, one tile of queries a program.

    m   largest score of a row so far (base 2)      l   sum of exp2(s - m)
    acc sum of exp2(s - m) v                        o = acc / l,  lse = (m + log2 l) ln 2

(Milakov & Gimelshein 2018; Dao 2022, algorithm 1.) Tiles that every row sees carry no mask code:
the loop over keys is cut into such tiles and the others. The head dimension comes in two parts of
a power of two, so that 144 costs 128 + 16 and not 256.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false

from __future__ import annotations

from functools import partial

import triton
import triton.language as tl
from torch import Tensor

from visgen_kernels.attention.arguments import (
    Keys,
    Lists,
    Rows,
    Scoring,
    lists_of,
    rows_of,
    vector_of,
)
from visgen_kernels.attention.problem import Call
from visgen_kernels.attention.tile_lists import TileLists
from visgen_kernels.attention.tiles import Tile
from visgen_kernels.attention.tiles_jit import (
    FULL,
    LN2,
    bias_rows,
    biased_dot,
    finite,
    head_of_words,
    keep_factors,
    key_bias_base,
    key_limit,
    load_both,
    load_queries,
    operand,
    operands,
    position,
    sequence_base,
    start_scores,
    store_both,
    token_offsets,
    visible,
)
from visgen_kernels.attention.walks_jit import walk_keys
from visgen_kernels.launch import Launch


@triton.jit
def _tile(
    state,
    query,
    keys,
    x,
    at,
    limit,
    whole: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """Keys at .. at + block_n; `whole`: every row sees every one of them."""
    m, l, acc_0, acc_1, broken_rows = state
    q_0, q_1, k_base, v_base, c_base, words, table_rows, i, word_seed, sequence = query
    partly: tl.constexpr = (not whole) and x.code[0] != FULL  # some rows see a key, others do not
    n = tl.multiple_of(at, block_n) + tl.arange(0, block_n)
    j, inside = position(n, x)
    present = inside & (j < limit)
    if x.key_bias is not None:
        c = tl.load(c_base + j)
        if not whole:
            c = tl.where(present, c, -float("inf"))
        present = c > -float("inf")  # a key hidden from all rows is not even read
    every: tl.constexpr = whole and x.key_bias is None
    s = start_scores(table_rows, j, present, x, whole, False, block_m, block_n)
    k_0, k_1 = load_both(keys.k, k_base, token_offsets(keys.k, j), present, every)
    k_0, k_1 = operands(keys.k, k_0, k_1, x)
    s = biased_dot(keys.k, q_0, q_1, k_0, k_1, s, x)
    if x.key_bias is not None:
        s += c[None, :]
    if partly:
        s = tl.where(visible(i[:, None], j[None, :], x, words), s, -float("inf"))
    if not whole and x.key_bias is None:
        s = tl.where(present[None, :], s, -float("inf"))
    top = tl.maximum(m, tl.max(s, 1) * x.scale)
    base = top
    if partly or x.key_bias is not None:  # a row may have seen nothing yet
        base = tl.where(top == -float("inf"), 0.0, top)
    p = tl.exp2(s * x.scale - base[:, None])
    shrink = tl.exp2(m - base)
    l = l * shrink + tl.sum(p, 1)
    if x.dropout:
        p *= keep_factors(word_seed, sequence, i - (x.n_k - x.n_q), j, x, False)
    v_0, v_1 = load_both(keys.v, v_base, token_offsets(keys.v, j), present, every)
    if partly:  # what a row does not see has no influence, NaN included
        broken = _broken(v_0)
        if keys.v.d1 > 0:
            broken = tl.maximum(broken, _broken(v_1))
        broken_rows = tl.maximum(broken_rows, tl.max(tl.where(p > 0, broken[None, :], 0), 1))
        v_0, v_1 = finite(v_0), finite(v_1)
    rounded = operand(p, keys.v.base.dtype.element_ty, x.emulate)
    v_0, v_1 = operands(keys.v, v_0, v_1, x)
    acc_0 = tl.dot(rounded, v_0, acc_0 * shrink[:, None], input_precision=x.precision)
    if keys.v.d1 > 0:
        acc_1 = tl.dot(rounded, v_1, acc_1 * shrink[:, None], input_precision=x.precision)
    return top, l, acc_0, acc_1, broken_rows


@triton.jit
def _broken(v):
    """Which rows hold something that is not finite, int32."""
    return tl.max((~(tl.abs(v.to(tl.float32)) < float("inf"))).to(tl.int32), 1)


@triton.jit
def attention_forward(
    q: Rows,
    keys: Keys,
    out: Rows,
    lse: Rows,
    x: Scoring,
    lists: Lists,
    blocks,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    masked_n: tl.constexpr,
):
    """One program: a tile of queries of one head of one sequence; `blocks` tiles a sequence."""
    pid = tl.program_id(0)
    head = pid // blocks % x.heads
    z = pid // blocks // x.heads
    tile = pid % blocks
    rows, inside = position(tile * block_m + tl.arange(0, block_m), x)
    inside = inside & (rows < x.n_q)
    i = rows + (x.n_k - x.n_q)
    q_base = sequence_base(q, z, head, x.sizes)
    q_0, q_1 = load_queries(q, q_base, token_offsets(q, rows), inside, x, False)
    k_base = sequence_base(keys.k, z, head, x.sizes)
    v_base = sequence_base(keys.v, z, head, x.sizes)
    number = z * x.heads + head
    c_base = key_bias_base(x, number)
    word_seed = 0
    if x.dropout:
        word_seed = tl.load(x.seed)
    limit = key_limit(x, z)
    words = head_of_words(x, z)
    table_rows = bias_rows(rows, inside, head, x)
    query = (q_0, q_1, k_base, v_base, c_base, words, table_rows, i, word_seed, number)

    m = tl.full((block_m,), -float("inf"), tl.float32)
    l = tl.zeros((block_m,), tl.float32)
    acc_0 = tl.zeros((block_m, keys.v.d0), tl.float32)
    acc_1 = tl.zeros((block_m, keys.v.d1 if keys.v.d1 > 0 else 16), tl.float32)
    broken_rows = tl.zeros((block_m,), tl.int32)  # they see a value that is not finite
    state = (m, l, acc_0, acc_1, broken_rows)

    state = walk_keys(_tile, state, query, keys, x, lists, tile, limit, block_m, block_n, masked_n)
    m, l, acc_0, acc_1, broken_rows = state
    empty = l == 0.0
    inverse = 1.0 / tl.where(empty, 1.0, l)
    if x.code[0] != FULL:
        inverse = tl.where(broken_rows > 0, float("nan"), inverse)
    lse_base = sequence_base(lse, z, head, x.sizes)
    values = tl.where(empty, -float("inf"), (m + tl.log2(l)) * LN2)
    tl.store(lse_base + token_offsets(lse, rows), values, inside)
    o_base = sequence_base(out, z, head, x.sizes)
    acc_0, acc_1 = acc_0 * inverse[:, None], acc_1 * inverse[:, None]
    store_both(out, o_base, token_offsets(out, rows), inside, acc_0, acc_1)


def forward_launch(
    call: Call,
    x: Scoring,
    lists: TileLists | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    tile: Tile,
) -> Launch:
    """K1 for q, k, v -> out (b, *grid, h, d_v) in q's dtype and lse (b, *grid, h) in float32."""
    blocks = triton.cdiv(x.n_q, tile.block_m) if lists is None else lists.tiles
    sequences = call.layout.sequences(q.shape[1:-2]) * q.shape[0]
    place = partial(rows_of, call.layout)
    return Launch(
        attention_forward,
        sequences * x.heads * blocks,
        (
            place(q),
            Keys(place(k), place(v)),
            place(out),
            vector_of(call.layout, lse),
            x,
            lists_of(lists),
            blocks,
        ),
        tile.constants(),
        tile.warps,
        tile.stages,
        tile.options(),
    )

"""How a kernel walks over the tiles of the other side: by ranges, or along lists of tiles.

`body(state, fixed, others, x, at, limit, whole, block_m, block_n)` is a jit function that adds the
tile at `at` to a state (a tuple of tensors) and returns it; `whole`: all its scores are visible.
"""

# pyright: reportArgumentType=false, reportCallIssue=false, reportAssignmentType=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false
# pyright: reportPossiblyUnboundVariable=false, reportOperatorIssue=false

from __future__ import annotations

import triton
import triton.language as tl

from visgen_kernels.attention.tiles_jit import (
    BLOCKS_1D,
    FULL,
    SAME_GROUP,
    WINDOW,
    key_range,
    query_range,
)


@triton.jit
def walk_keys(
    body: tl.constexpr,
    state,
    fixed,
    others,
    x,
    lists,
    tile,
    limit,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    masked_n: tl.constexpr = 32,
):
    """All tiles of keys below `limit` that some query of tile number `tile` sees.

    Masked tiles are taken in pieces of masked_n keys: where a mask hides, keys pass through
    registers (see `finite`), and a whole tile of them would not fit beside the sums.
    """
    piece_n: tl.constexpr = masked_n if masked_n < block_n else block_n
    if lists is not None:
        start, split = tl.load(lists.starts + tile), tl.load(lists.splits + tile)
        stop = tl.load(lists.starts + tile + 1)
        if x.key_lengths is not None:  # no tile is known to be whole
            split = start
        for t in range(start, split):
            at = tl.load(lists.columns + t) * block_n
            state = body(state, fixed, others, x, at, limit, True, block_m, block_n)
        for t in range(split, stop):
            at = tl.load(lists.columns + t) * block_n
            for place in range(at, at + block_n, piece_n):
                state = body(state, fixed, others, x, place, limit, False, block_m, piece_n)
    else:
        first = tile * block_m + (x.n_k - x.n_q)
        last = tl.minimum(first + block_m, x.n_k) - 1
        ends = key_range(first, last, limit, x, block_n)
        # Stretches of tiles in order: global keys; masked; whole; masked.
        for stretch in tl.static_range(4):
            if not _no_keys(stretch, x):
                begin = 0 * ends[0] if stretch == 0 else ends[stretch]
                end = ends[0] if stretch == 0 else ends[stretch + 1]
                if stretch == 2:
                    for at in range(begin, end, block_n):
                        state = body(state, fixed, others, x, at, limit, True, block_m, block_n)
                else:
                    for at in range(begin, end, piece_n):
                        state = body(state, fixed, others, x, at, limit, False, block_m, piece_n)
    return state


@triton.jit
def _no_keys(stretch: tl.constexpr, x) -> tl.constexpr:
    """Whether no tile of keys falls into a stretch of `key_range`."""
    if stretch == 0:
        return x.code[0] != WINDOW or x.code[2] == 0
    if stretch == 1:
        return x.code[0] != WINDOW and x.code[0] != BLOCKS_1D
    if stretch == 2:
        return x.code[0] == SAME_GROUP
    return False


@triton.jit
def walk_queries(
    body: tl.constexpr,
    state,
    fixed,
    others,
    x,
    lists,
    tile,
    limit,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
):
    """All tiles of queries that see some key below `limit` of tile number `tile`."""
    if lists is not None:
        start, split = tl.load(lists.starts + tile), tl.load(lists.splits + tile)
        stop = tl.load(lists.starts + tile + 1)
        for t in range(start, split):
            at = tl.load(lists.columns + t) * block_m
            state = body(state, fixed, others, x, at, limit, True, block_m, block_n)
        for t in range(split, stop):
            at = tl.load(lists.columns + t) * block_m
            state = body(state, fixed, others, x, at, limit, False, block_m, block_n)
    else:
        first = tile * block_n
        last = tl.minimum(first + block_n, x.n_k) - 1
        ends = query_range(first, last, x, block_m)
        for stretch in tl.static_range(3):
            if not _no_queries(stretch, x):
                end = ends[stretch + 1]
                if limit <= first:  # no key of this sequence is in the tile
                    end = ends[stretch]
                for at in range(ends[stretch], end, block_m):
                    state = body(state, fixed, others, x, at, limit, stretch == 1, block_m, block_n)
    return state


@triton.jit
def _no_queries(stretch: tl.constexpr, x) -> tl.constexpr:
    """Whether no tile of queries falls into a stretch of `query_range`."""
    if stretch == 0:
        return x.code[0] == FULL or x.code[0] == SAME_GROUP
    if stretch == 1:
        return x.code[0] == SAME_GROUP
    return False

"""The yardstick of K1's main loop: softmax attention with nothing that a real call needs.

Every length is a multiple of the tile, heads lie apart in memory, nothing is masked or added, the
scale is folded into the exponent. Its instructions per score are what K1's are compared with.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def plain_loop(
    q, k, v, out, n, scale, d: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr
):
    """q, k, v, out (z, n, d), contiguous; one program per tile of queries and z."""
    base = tl.program_id(1).to(tl.int64) * n * d
    rows = tl.program_id(0) * block_m + tl.arange(0, block_m)
    keys, columns = tl.arange(0, block_n), tl.arange(0, d)
    queries = tl.load(q + base + rows[:, None] * d + columns[None, :])
    k_tile = k + base + keys[:, None] * d + columns[None, :]
    v_tile = v + base + keys[:, None] * d + columns[None, :]
    m = tl.full((block_m,), -float("inf"), tl.float32)
    total = tl.zeros((block_m,), tl.float32)
    acc = tl.zeros((block_m, d), tl.float32)
    for _ in range(0, n, block_n):
        s = tl.dot(queries, tl.load(k_tile).T)
        top = tl.maximum(m, tl.max(s, 1) * scale)
        p = tl.exp2(s * scale - top[:, None])
        shrink = tl.exp2(m - top)
        total = total * shrink + tl.sum(p, 1)
        acc = tl.dot(p.to(v.dtype.element_ty), tl.load(v_tile), acc * shrink[:, None])
        m = top
        k_tile += block_n * d
        v_tile += block_n * d
    acc /= total[:, None]
    tl.store(out + base + rows[:, None] * d + columns[None, :], acc.to(out.dtype.element_ty))

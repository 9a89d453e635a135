"""What each attention kernel computes and moves, from its maths alone.

A score costs products over the head dimension of q and k (d) and of v (d_v); 2 d FLOPs each. The
kernels recompute scores instead of storing them, so a backward pass executes seven products where
five would do, and a second backward 22 instead of twelve:

    kernel            products with d, with d_v                     tensors read -> written
    forward           1, 1   Q K^T; P V                             q k v -> o, lse
    delta             none                                          o dO lse -> delta, sums
    backward_queries  2, 1   Q K^T, dS K; G V^T                     q k v dO lse delta -> dq
    backward_keys     2, 2   Q K^T, dS^T Q; G V^T, P^T G            q k v dO lse delta -> dk dv
      ..._dk, ..._dv  2, 1; 1, 1   the same in two launches         each of them alone
    bias_gradient     1, 1   Q K^T; G V^T                           q k v dO lse delta -> dtable
    short_forward     1, 1   as forward                             q k v -> o, lse
    short_backward    3, 2   the five products once                 q k v dO lse -> dq dk dv
    double_rows       3, 4   Q K^T, U K^T, Q W^T; G V^T, G X^T, N V, P X
                             q k v dO u w x lse delta -> gG, row sums
    double_queries    5, 2   those to score with; dS W, gS K        the same -> gQ
    double_keys       5, 3   those to score with; dS^T U, gS^T Q, N^T G   the same -> gK gV
    double_bias       3, 2   those to score with                    the same -> dtable
    decode            1, 1   as forward; nothing but the cache is long    q k v -> o

(kernels.md 3.8 for the letters.) Reading every tensor once is the least: tiles of keys are read
again by every tile of queries, which the L2 cache has to serve.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from visgen_kernels.roofline import Work
from visgen_kernels.shapes import Shape


@dataclass(frozen=True)
class Maths:
    """One kernel.

    Attributes:
        direction: It belongs to: forward, backward, double_backward.
        with_d: Products over the head dimension of q and k, for each score.
        with_d_v: Products over that of v.
        queries: How many tensors like q (n_q, d) are read or written, together.
        keys: Like k (n_k, d).
        values: Like v (n_k, d_v).
        outputs: Like o (n_q, d_v).
        rows: float32 numbers, one a query.
        scores: Whether scores and their exponentials are computed.
        of_keys: Whether a program owns a tile of keys and walks over queries.
    """

    direction: str
    with_d: int
    with_d_v: int
    queries: int
    keys: int
    values: int
    outputs: int
    rows: int
    scores: bool = True
    of_keys: bool = False


MATHS: Mapping[str, Maths] = {
    "forward": Maths("forward", 1, 1, 1, 1, 1, 1, 1),
    "delta": Maths("backward", 0, 0, 0, 0, 0, 2, 3, scores=False),
    "backward_queries": Maths("backward", 2, 1, 2, 1, 1, 1, 2),
    "backward_keys": Maths("backward", 2, 2, 1, 2, 2, 1, 2, of_keys=True),
    "backward_keys_dk": Maths("backward", 2, 1, 1, 2, 1, 1, 2, of_keys=True),
    "backward_keys_dv": Maths("backward", 1, 1, 1, 1, 1, 1, 1, of_keys=True),
    "bias_gradient": Maths("backward", 1, 1, 1, 1, 1, 1, 2),
    "short_forward": Maths("forward", 1, 1, 1, 1, 1, 1, 1),
    "short_backward": Maths("backward", 3, 2, 2, 2, 2, 1, 1),
    "double_rows": Maths("double_backward", 3, 4, 2, 2, 2, 2, 4),
    "double_queries": Maths("double_backward", 5, 2, 3, 2, 2, 1, 4),
    "double_keys": Maths("double_backward", 5, 3, 2, 3, 3, 1, 4, of_keys=True),
    "double_bias": Maths("double_backward", 3, 2, 2, 2, 2, 1, 4),
    "decode": Maths("decode", 1, 1, 1, 1, 1, 1, 0),
}


# Products with d and d_v; how often each tensor moves (itself, its gradient, its cotangent, ...);
# float32 numbers a query.
_DIRECTIONS = {
    "forward": (1, 1, 1, 1),
    "backward": (3, 2, 2, 2),
    "double_backward": (7, 5, 3, 2),
    "decode": (1, 1, 1, 0),
}


def kernel_work(kernel: str, shape: Shape, *, itemsize: int = 2) -> Work:
    """The least that one kernel has to do for a layer; `itemsize` bytes a number.

    Raises:
        KeyError: for a kernel without an entry in MATHS.
    """
    maths, n_q, n_k, d, d_v = MATHS[kernel], shape.n_q, shape.n_k, shape.d, shape.d_v
    numbers = maths.queries * n_q * d + maths.keys * n_k * d
    numbers += maths.values * n_k * d_v + maths.outputs * n_q * d_v
    pairs = shape.pairs if maths.scores else 0.0
    return Work(
        flops=2.0 * shape.score_matrices * pairs * (maths.with_d * d + maths.with_d_v * d_v),
        bytes=float(shape.score_matrices * (itemsize * numbers + 4 * maths.rows * n_q)),
        exponentials=float(shape.score_matrices * pairs),
    )


def direction_work(direction: str, shape: Shape, *, itemsize: int = 2) -> Work:
    """The least that a whole direction has to do, in one kernel that stores no scores.

    Products count once each (`attention.flops`), tensors move once, scores are computed once.

    Raises:
        KeyError: for a direction that is none.
    """
    with_d, with_d_v, times, rows = _DIRECTIONS[direction]
    n_q, n_k, d, d_v = shape.n_q, shape.n_k, shape.d, shape.d_v
    numbers = times * (n_q * d + n_k * d + n_k * d_v + n_q * d_v)
    return Work(
        flops=2.0 * shape.score_matrices * shape.pairs * (with_d * d + with_d_v * d_v),
        bytes=float(shape.score_matrices * (itemsize * numbers + 4 * rows * n_q)),
        exponentials=float(shape.score_matrices * shape.pairs),
    )


def tile_flops(kernel: str, scores: float, d: int, d_v: int) -> float:
    """Matrix FLOPs for so many scores; d and d_v as the kernel pads them."""
    maths = MATHS[kernel]
    return 2.0 * scores * (maths.with_d * d + maths.with_d_v * d_v)

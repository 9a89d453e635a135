"""How many floating-point operations attention takes, by formula.

A product of (n, d) with (d, m) counts 2 n m d. What counts is the visible (query, key) pairs:
hidden ones need not be computed; the dense figure counts every pair. Exponentials, sums and biases
are left out, as is usual; Q K^T counts in every direction, whether or not it is computed again.
With d the head dimension of q and k, d_v that of v, per pair and head:

    forward           2 (d + d_v)              Q K^T, P V
    backward          2 (3 d + 2 d_v)          Q K^T, G V^T, P^T G, dS K, dS^T Q
    double_backward   2 (7 d + 5 d_v)          Q K^T, U K^T, Q W^T, dS W, gS K, dS^T U, gS^T Q;
                                               G V^T, G X^T, N V, P X, N^T G

The operators count only products whose result is asked for. key_lengths, -inf in a key bias and
dropout are data and do not lower the count. `FlopCounterMode` sees the operators on every device,
meta included; `FlopCounterMode(custom_mapping=DENSE_FLOPS)` counts every pair instead.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from visgen_kernels import layouts, masks
from visgen_kernels.layouts import Layout
from visgen_kernels.masks import Full, Mask

Direction = Literal["forward", "backward", "double_backward"]

# Products of each direction: how many contract or yield the head dimension of q and k, of v.
_PRODUCTS: dict[Direction, tuple[int, int]] = {
    "forward": (1, 1),
    "backward": (3, 2),
    "double_backward": (7, 5),
}


def attention_flops(
    q: Sequence[int],
    k: Sequence[int] | None = None,
    v: Sequence[int] | None = None,
    *,
    layout: Layout | None = None,
    mask: Mask | None = None,
    direction: Direction = "forward",
    dense: bool = False,
) -> int:
    """FLOPs of one call with all gradients asked for, from shapes as `attention` takes them.

    q (b, *grid, h, d), k, v; or q alone, packed (b, *grid, 3, h, d). dense counts hidden pairs too.
    """
    layout, mask = layout or layouts.Sequence(), mask or Full()
    if k is None or v is None:
        q = k = v = (*q[:-3], *q[-2:])
    with_d, with_d_v = _PRODUCTS[direction]
    pairs = _pairs(q, k, layout, mask.encode(), masks.tensors(mask)[1], dense)
    return 2 * pairs * (with_d * q[-1] + with_d_v * v[-1])


def _pairs(
    q: Sequence[int],
    k: Sequence[int],
    layout: Layout,
    mask: Sequence[int],
    entries: Tensor | None,
    dense: bool,
) -> int:
    """Pairs of a query and a key in all samples, sequences and heads; mask is encoded."""
    grid, n_k = q[1:-2], layout.length(k[1:-2])
    if dense:
        in_sample = layout.sequences(grid) * layout.length(grid) * n_k
    else:
        in_sample = masks.visible_pairs(mask, entries, layout, grid, n_k)
    return q[0] * q[-2] * in_sample


def _pairs_and_dims(inputs: Sequence[Any], dense: bool) -> tuple[int, int, int]:
    """Pairs of all heads, d and d_v, from the operator's arguments (see `op`)."""
    q, k, v = inputs[:3]
    q_shape = q.shape if v is not None else (*q.shape[:-3], *q.shape[-2:])
    k_shape, d_v = (q_shape, q.shape[-1]) if v is None else (k.shape, v.shape[-1])
    layout, entries, mask = layouts.decode(inputs[9]), inputs[7], inputs[10]
    pairs = _pairs(q_shape, k_shape, layout, mask, entries, dense)
    return pairs, q.shape[-1], d_v


def _unpacked(flags: Sequence[bool], packed: bool) -> tuple[bool, bool, bool, bool]:
    """Flags of q, k, v, table, key bias -> q, k, v, any bias."""
    if packed:
        return flags[0], flags[0], flags[0], flags[3] or flags[4]
    return flags[0], flags[1], flags[2], flags[3] or flags[4]


def _forward(dense: bool, *inputs: Any) -> int:
    pairs, d, d_v = _pairs_and_dims(inputs, dense)
    return 2 * pairs * (d + d_v)


def _backward(dense: bool, *arguments: Any) -> int:
    _, _, _, _, *inputs, wanted = arguments
    pairs, d, d_v = _pairs_and_dims(inputs, dense)
    q, k, v, bias = _unpacked(wanted, inputs[1] is None)
    scores = q or k or bias
    return 2 * pairs * (d * (1 + q + k) + d_v * (v + scores))


def _double_backward(
    dense: bool, _: Any, grad: Any, out: Any, lse: Any, kept: Any, *rest: Any
) -> int:
    *inputs, given, wanted = rest
    pairs, d, d_v = _pairs_and_dims(inputs, dense)
    packed = inputs[1] is None
    u, w, x, _ = _unpacked(given, packed)
    q, k, v, bias = _unpacked(wanted[1:], packed)
    g = wanted[0]
    scores = q or k or bias
    with_d = 1 + u + w + q * (1 + w) + k * (1 + u)
    with_d_v = v + g * (1 + x) + scores * (1 + x)
    return 2 * pairs * (d * with_d + d_v * with_d_v)


def _formula(count: Callable[..., int], dense: bool) -> Callable[..., int]:
    def formula(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        return count(dense, *args)

    formula._get_raw = True  # type: ignore[attr-defined]  # FlopCounterMode then passes tensors
    return formula


_COUNTS: tuple[tuple[Any, Callable[..., int]], ...] = (
    (torch.ops.visgen.attention, _forward),
    (torch.ops.visgen.attention_backward, _backward),
    (torch.ops.visgen.attention_double_backward, _double_backward),
)
for _operator, _count in _COUNTS:
    register_flop_formula(_operator, get_raw=True)(_formula(_count, dense=False))

DENSE_FLOPS: dict[Any, Callable[..., int]] = {
    operator: _formula(count, dense=True) for operator, count in _COUNTS
}
"""`FlopCounterMode(custom_mapping=DENSE_FLOPS)` counts hidden pairs too."""

"""A decoding step on a CPU: only keys that a query sees are read.

Samples in a row that stand at the same position are computed together, each query over its own
keys: a run of the cache is a view of it, a list of blocks is gathered once. One query over keys as
wide as its values goes to torch's fused CPU kernel, which takes any strides. 16-bit tensors are
computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from visgen_kernels.key_blocks import KeyLists, visible_keys

_HALF = (torch.float16, torch.bfloat16)


def decode_chunked(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    lists: KeyLists | None,
    scale: float,
) -> Tensor:
    """Output (b, n_q, h, d_v) in q's dtype; arguments as in `attention_decode`.

    Raises:
        ValueError: if a length is negative or beyond the cache.
    """
    batch, queries, heads, _ = q.shape
    known = checked_lengths(lengths, k_cache.shape[1])
    out = q.new_empty((batch, queries, heads, v_cache.shape[-1]))
    for samples in _alike(known, lists):
        length = known[samples.start]
        part, keys, values = q[samples], k_cache[samples], v_cache[samples]
        if lists is None and _together(part, keys, values, length):
            whole = _fused(part, keys[:, :length], values[:, :length], scale, causal=True)
            out[samples] = whole
            continue
        for query in range(queries):
            position = length - queries + query
            seen = visible_keys(lists, samples.start, position)
            one = part[:, query : query + 1]
            out[samples, query : query + 1] = _attend(
                one, _take(keys, seen), _take(values, seen), scale
            )
    return out


def checked_lengths(lengths: Tensor, keys: int) -> list[int]:
    """Lengths as numbers.

    Raises:
        ValueError: if one is negative or beyond the cache's keys.
    """
    known = lengths.tolist()
    if known and not 0 <= min(known) <= max(known) <= keys:
        raise ValueError(
            f"lengths are {known} and the cache holds {keys} keys; a length counts the keys of its "
            "sample that are there, the queries' own among them, from 0 to the cache's."
        )
    return known


def _alike(lengths: Sequence[int], lists: KeyLists | None) -> Iterator[slice]:
    """Runs of samples that see the same keys."""
    start = 0
    apart = lists is not None and lists.by_sample
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or apart or lengths[stop] != lengths[start]:
            yield slice(start, stop)
            start = stop


def _together(q: Tensor, k: Tensor, v: Tensor, length: int) -> bool:
    """Can all queries of the samples share one pass over the keys?

    The fused kernel multiplies hidden keys by 0, which a NaN survives: those of the last queries
    have to be finite. (A single query hides none.)
    """
    queries = q.shape[1]
    if queries == 1 or length < queries or k.shape[-1] != v.shape[-1]:
        return False
    hidden = slice(length - queries + 1, length)
    return bool(k[:, hidden].isfinite().all()) and bool(v[:, hidden].isfinite().all())


def _take(x: Tensor, keys: slice | Tensor) -> Tensor:
    """Keys of a cache (b, s, h, d); gathered in the order of its memory, which is what is fast."""
    if isinstance(keys, slice):
        return x[:, keys]
    if x.stride(1) >= x.stride(2):
        return x.index_select(1, keys)
    return x.transpose(1, 2).index_select(2, keys).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One query (b, 1, h, d) over all of k (b, n, h, d), v (b, n, h, d_v) -> (b, 1, h, d_v)."""
    if k.shape[1] == 0:
        return q.new_zeros((*q.shape[:-1], v.shape[-1]))
    if k.shape[-1] == v.shape[-1]:
        return _fused(q, k, v, scale, causal=False)
    q, k, v = _wide(q), _wide(k), _wide(v)
    outs = []
    for one, keys, values in zip(q.unbind(), k.unbind(), v.unbind(), strict=True):
        scores = torch.bmm(one.transpose(0, 1), keys.permute(1, 2, 0)).mul_(scale)  # (h, 1, n)
        outs.append(torch.bmm(scores.softmax(-1), values.transpose(0, 1)).transpose(0, 1))
    return torch.stack(outs)


def _fused(q: Tensor, k: Tensor, v: Tensor, scale: float, *, causal: bool) -> Tensor:
    """Torch's kernel over (b, n, h, d); causal: the queries are the last of the keys."""
    mask = None
    if causal:
        n_q, n_k = q.shape[1], k.shape[1]
        mask = torch.ones(n_q, n_k, dtype=torch.bool, device=q.device).tril(n_k - n_q)
    q, k, v = (_wide(x).transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALF else x

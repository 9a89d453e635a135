"""A decoding step on a CPU: only keys that a query sees are read.

Samples in a row that stand at the same position are computed together, each query over its own
keys: a run of the cache is a view of it, a list of blocks is gathered once. One query over keys as
wide as its values goes to torch's fused CPU kernel, which takes any strides. 16-bit tensors are
computed in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from visgen_kernels.key_blocks import KeyLists, Listed

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
    known = checked_lengths(lengths, k_cache.shape[1])
    apart = lists is not None and lists.by_sample
    if known and not apart and known.count(known[0]) == len(known):  # as a rule: one position
        return _group(q, k_cache, v_cache, known[0], lists, 0, scale)
    out = q.new_empty((*q.shape[:3], v_cache.shape[-1]))
    for samples in _alike(known, lists):
        tensors = (q[samples], k_cache[samples], v_cache[samples])
        out[samples] = _group(*tensors, known[samples.start], lists, samples.start, scale)
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


def _group(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    length: int,
    lists: KeyLists | None,
    sample: int,
    scale: float,
) -> Tensor:
    """Samples that see the same keys, those of `sample`: (b, n_q, h, d_v) in q's dtype."""
    queries = q.shape[1]
    if queries == 1:
        out = _attend(q, k, v, length - 1, lists, sample, scale)
    elif lists is None and _finite_at_the_end(q, k, v, length):
        out = _fused(q, k[:, :length], v[:, :length], scale, causal=True)
    else:
        start = length - queries
        out = torch.cat(
            [
                _attend(q[:, i : i + 1], k, v, start + i, lists, sample, scale)
                for i in range(queries)
            ],
            dim=1,
        )
    return out.to(q.dtype).contiguous()


def _finite_at_the_end(q: Tensor, k: Tensor, v: Tensor, length: int) -> bool:
    """Can several queries share one pass over the keys?

    The fused kernel multiplies hidden keys by 0, which a NaN survives: those of the last queries
    have to be finite.
    """
    queries = q.shape[1]
    if length < queries or k.shape[-1] != v.shape[-1]:
        return False
    hidden = slice(length - queries + 1, length)
    return bool(k[:, hidden].isfinite().all()) and bool(v[:, hidden].isfinite().all())


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    position: int,
    lists: KeyLists | None,
    sample: int,
    scale: float,
) -> Tensor:
    """One query (b, 1, h, d) at a position: (b, 1, h, d_v), float32 at least."""
    if lists is None or position < 0:
        run: slice | None = slice(0, position + 1)
    else:
        listed = lists.seen(sample, position)
        run = listed.run
        if run is None:
            return _over_all(q, _gather(k, listed), _gather(v, listed), scale)
    if run.stop <= run.start:
        return q.new_zeros((*q.shape[:3], v.shape[-1]))
    keys = run.stop - run.start
    return _over_all(q, k.narrow(1, run.start, keys), v.narrow(1, run.start, keys), scale)


def _gather(x: Tensor, listed: Listed) -> Tensor:
    """Listed keys of a cache (b, s, h, d); copied in the order of its memory, which is fast."""
    heads_first = x.stride(1) < x.stride(2)
    memory, axis = (x.transpose(1, 2), 2) if heads_first else (x, 1)
    if x.shape[1] % listed.size:
        taken = memory.index_select(axis, listed.keys.to(x.device))
    else:  # whole blocks are longer pieces
        before, after = memory.shape[:axis], memory.shape[axis + 1 :]
        indices = _indices(listed.blocks).to(x.device)
        blocks = memory.view(*before, -1, listed.size, *after)
        taken = blocks.index_select(axis, indices).flatten(axis, axis + 1)
        taken = taken.narrow(axis, 0, listed.count)
    return taken.transpose(1, 2) if heads_first else taken


@lru_cache(maxsize=1024)
def _indices(blocks: tuple[int, ...]) -> Tensor:
    """As int64; the layers of a model, and 32 steps in a row, ask for the same."""
    with torch.inference_mode(False):  # else the tensor would be good for inference alone
        return torch.tensor(blocks, dtype=torch.int64, device="cpu")


def _over_all(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One query (b, 1, h, d) over all of k (b, n, h, d), v (b, n, h, d_v) -> (b, 1, h, d_v)."""
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
    if q.dtype in _HALF:
        q, k, v = q.float(), k.float(), v.float()
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALF else x

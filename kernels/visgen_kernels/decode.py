"""A decoding step: a few new queries attend over a cache of keys and values.

    position of query r in sample b:   i = lengths[b] - n_q + r
    it sees the keys                   j <= i, and of these the listed blocks if there are lists
    o = sum_j p_j v_j                  p = softmax_j(scale * q . k_j)      0 if it sees nothing

Models write the new tokens' keys and values into the cache, count them in `lengths`, and call this.
What the cache holds elsewhere, NaN included, has no influence. There is no gradient.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake
from torch.utils.flop_counter import register_flop_formula

from visgen_kernels.attention import DENSE_FLOPS, ImplementationUnavailable
from visgen_kernels.decode_chunked import checked_lengths, decode_chunked
from visgen_kernels.key_blocks import KeyBlocks, KeyLists, visible_keys
from visgen_kernels.launch import INTERPRETED
from visgen_kernels.masks import BlockList

MAX_QUERIES, MAX_HEAD_DIM = 16, 256
IMPLEMENTATIONS = ("triton", "chunked", "reference")
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int32, torch.int64)


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    blocks: BlockList | KeyBlocks | None = None,
    scale: float | None = None,
    splits: int | None = None,
    implementation: str | None = None,
) -> Tensor:
    """Attention of the last tokens of every sample over its cache, causal among themselves.

    Args:
        q: (b, n_q, h, d), 1 <= n_q <= 16: queries of the last n_q keys of a sample; d <= 256.
        k_cache: (b, s, h, d), q's dtype (float64, float32, bfloat16 or float16); the last axis has
            stride 1, others are free: a cache (b, h, s, d) comes in by transpose(1, 2), and is
            the faster one on a CPU.
        v_cache: (b, s, h, d_v), d_v <= 256.
        lengths: (b,) integers on q's device: keys of each sample, the queries' own among them. Read
            where it lies, without a word to the host, so that a captured graph can be replayed. On
            a CPU a length beyond the cache raises; a GPU takes it as the whole cache.
        blocks: what a query sees of its sample's keys. `BlockList`: the list of the block that its
            position is in, as in `attention(mask=)`. `KeyBlocks`: a list for every sample. None:
            all. Only listed blocks are read. Tensors of the lists lie on q's device.
        scale: factor of q k^T; d ** -0.5 if None.
        splits: programs that share the keys of one head in "triton", which has no influence but
            rounding; None: `decode_launch.decode_splits` of the device's multiprocessors.
        implementation: "triton" (GPUs), "chunked" (any device, float64 too; on a GPU it waits for
            `lengths`), "reference" (the definition, differentiable) or None: chunked on a CPU and
            for float64, else triton.

    Returns:
        (b, n_q, h, d_v) in q's dtype, contiguous.

    Raises:
        ValueError: shapes, strides or arguments that do not fit.
        ImplementationUnavailable: the implementation asked for cannot do this.
        NotImplementedError: if a gradient is asked for, unless of "reference".
    """
    _check_tensors(q, k_cache, v_cache, lengths)
    lists = _lists(blocks, q, k_cache.shape[1])
    if splits is not None and splits < 1:
        raise ValueError(f"splits={splits}: 1 or more, or None for the rule.")
    factor = q.shape[-1] ** -0.5 if scale is None else float(scale)
    chosen = implementation or _default(q)
    reason = decode_unsupported(chosen, q.device, q.dtype)
    if reason is not None:
        raise ImplementationUnavailable(reason)
    if chosen == "reference" and not q.is_meta:
        return attention_decode_reference(q, k_cache, v_cache, lengths, lists=lists, scale=factor)
    inputs = (
        *(q, k_cache, v_cache, lengths),
        *((None, None, 0, False) if lists is None else _fields(lists)),
        *(factor, splits or 0, chosen),
    )
    if torch.compiler.is_compiling():
        return decode_op(*inputs)
    return _decode_autograd(*inputs)


def decode_unsupported(implementation: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why an implementation cannot decode there, in one sentence; None if it can.

    Raises ValueError for a name that does not exist.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f'unknown implementation "{implementation}" of attention_decode; there are '
            f"{', '.join(IMPLEMENTATIONS)}."
        )
    if implementation != "triton" or device.type == "meta":
        return None
    if device.type == "cpu" and not INTERPRETED:
        return (
            'implementation "triton" wants a CUDA or ROCm device (or Triton\'s interpreter, '
            'TRITON_INTERPRET=1), the tensors are on the CPU; use "chunked".'
        )
    if dtype == torch.float64:
        return 'implementation "triton" has no float64; use "chunked".'
    return None


def attention_decode_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    lists: KeyLists | None = None,
    scale: float,
) -> Tensor:
    """The definition, query by query, in the tensors' own dtype; arguments as in the call."""
    rows = []
    for sample, length in enumerate(checked_lengths(lengths, k_cache.shape[1])):
        for query in range(q.shape[1]):
            seen = visible_keys(lists, sample, length - q.shape[1] + query)
            k, v = k_cache[sample, seen], v_cache[sample, seen]  # (n, h, d or d_v)
            weights = (scale * (k * q[sample, query]).sum(-1)).softmax(0)
            rows.append((weights[..., None] * v).sum(0))
    shape = (*q.shape[:3], v_cache.shape[-1])
    return torch.stack(rows).view(shape) if rows else q.new_empty(shape)


def _default(q: Tensor) -> str:
    wide = q.dtype == torch.float64
    return "chunked" if wide or q.device.type in ("cpu", "meta") else "triton"


def _lists(blocks: BlockList | KeyBlocks | None, q: Tensor, keys: int) -> KeyLists | None:
    """The lists as the operator takes them; checked as far as the host knows them."""
    if blocks is None:
        return None
    by_sample = isinstance(blocks, KeyBlocks)
    lists = KeyLists(blocks.offsets, blocks.columns, blocks.block, by_sample)
    rows = lists.offsets.shape[0] - 1
    if by_sample and rows != q.shape[0]:
        raise ValueError(
            f"KeyBlocks has {rows} lists for {q.shape[0]} samples; offsets are (b + 1,)."
        )
    if not by_sample and rows * lists.block < keys:
        raise ValueError(
            f"the BlockList lists {rows} blocks of {lists.block}, that is {rows * lists.block} "
            f"tokens, and the cache holds {keys} keys; it has to list all of them."
        )
    if not q.is_meta and lists.offsets.device != q.device:
        raise ValueError(
            f"the lists of blocks are on {lists.offsets.device} and q on {q.device}; make them "
            "once from offsets.to(device) and columns.to(device)."
        )
    return lists


def _fields(lists: KeyLists) -> tuple[Any, ...]:
    return lists.offsets, lists.columns, lists.block, lists.by_sample


def _check_tensors(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor) -> None:
    shape, k_shape, v_shape = tuple(q.shape), tuple(k.shape), tuple(v.shape)
    got = f"got {shape}, {k_shape}, {v_shape}"
    if not len(shape) == len(k_shape) == len(v_shape) == 4:
        raise ValueError(f"q, k_cache and v_cache are (b, n, h, d), four axes each; {got}.")
    (batch, queries, _, d), d_v = shape, v_shape[3]
    fits = batch == k_shape[0] and shape[2:] == k_shape[2:] and k_shape[:3] == v_shape[:3]
    if not fits:
        raise ValueError(
            f"q (b, n_q, h, d), k_cache (b, s, h, d) and v_cache (b, s, h, d_v) do not fit: {got}."
        )
    if not 1 <= queries <= MAX_QUERIES:
        raise ValueError(
            f"attention_decode takes 1 to {MAX_QUERIES} queries a sample, got {queries}; use "
            "attention(..., mask=Causal(), key_lengths=...) for longer pieces."
        )
    if not (1 <= d <= MAX_HEAD_DIM and 1 <= d_v <= MAX_HEAD_DIM):
        raise ValueError(
            f"head dimensions are 1 to {MAX_HEAD_DIM}, got {d} of q and k_cache and {d_v} of "
            "v_cache; use more heads."
        )
    if not q.dtype == k.dtype == v.dtype or q.dtype not in _DTYPES:
        raise ValueError(
            "q, k_cache and v_cache share one dtype, float64, float32, bfloat16 or float16; got "
            f"{q.dtype}, {k.dtype}, {v.dtype}."
        )
    for name, x in (("q", q), ("k_cache", k), ("v_cache", v)):
        if x.stride(-1) != 1 and x.shape[-1] > 1:
            raise ValueError(
                f"the last axis of {name} has stride {x.stride(-1)}, it must be 1; keep the cache "
                "with the head dimension last."
            )
    if tuple(lengths.shape) != (batch,) or lengths.dtype not in _INTEGERS:
        raise ValueError(
            f"lengths has one int32 or int64 per sample, shape ({batch},); got "
            f"{tuple(lengths.shape)} of {lengths.dtype}."
        )
    if not q.device == k.device == v.device == lengths.device:
        raise ValueError(
            "q, k_cache, v_cache and lengths lie on one device; got "
            f"{q.device}, {k.device}, {v.device}, {lengths.device}."
        )


# The operator. Its autograd kernel is written out, as in attention/op.py, because going through
# torch.library.register_autograd costs more than a small step takes.


def _decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    offsets: Tensor | None,
    columns: Tensor | None,
    block: int,
    by_sample: bool,
    scale: float,
    splits: int,
    implementation: str,
) -> Tensor:
    lists = _listed(offsets, columns, block, by_sample)
    if implementation != "triton":
        return decode_chunked(q, k_cache, v_cache, lengths, lists, scale)
    # Imported here: it needs Triton, which nobody pays for on a CPU.
    from visgen_kernels.decode_launch import decode_launches, decode_splits

    out = q.new_empty((*q.shape[:3], v_cache.shape[-1]))
    if out.numel() == 0:
        return out
    keys = k_cache.shape[1] if lists is None else lists.average_keys
    count = splits or decode_splits(q.shape[0] * q.shape[2], keys, multiprocessors(q.device))
    tensors = (out, q, k_cache, v_cache, lengths, lists)
    amd = torch.version.hip is not None
    for launch in decode_launches(*tensors, scale=scale, splits=count, amd=amd):
        launch.run()
    return out


@cache
def multiprocessors(device: torch.device) -> int:
    """Of a device (AMD: compute units); 1 for a CPU, where only the interpreter runs kernels."""
    if device.type == "cpu":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _listed(
    offsets: Tensor | None, columns: Tensor | None, block: int, by_sample: bool
) -> KeyLists | None:
    if offsets is None or columns is None:
        return None
    return KeyLists(offsets, columns, block, by_sample)


def _decode_fake(q: Tensor, k_cache: Tensor, v_cache: Tensor, *rest: Any) -> Tensor:
    return q.new_empty((*q.shape[:3], v_cache.shape[-1]))


class _NoGradient(torch.autograd.Function):
    """The output of tensors that want a gradient, and an error where it is asked for."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        with _BelowAutograd():
            return decode_op(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, ...]:
        raise NotImplementedError(
            "attention_decode has no gradient, it is for generation under torch.no_grad(); train "
            'with attention(..., mask=Causal()), or use implementation="reference".'
        )


def _decode_autograd(*inputs: Any) -> Tensor:
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs[:3]):
        return _NoGradient.apply(*inputs)
    with _BelowAutograd():
        return decode_op(*inputs)


def _flops(dense: bool) -> Any:
    """2 (d + d_v) for every pair and head; visible pairs, or all pairs of queries and the cache.

    Visible pairs follow from `lengths`. Where they have no content (meta, fake tensors) the cache
    counts as full, and lists as long as they are on average.
    """

    def formula(
        q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, offsets: Tensor | None,
        columns: Tensor | None, block: int, by_sample: bool, *rest: Any, **kwargs: Any,
    ) -> int:  # fmt: skip
        batch, queries, heads, d = q.shape
        lists, keys = _listed(offsets, columns, block, by_sample), k.shape[1]
        if dense:
            pairs = batch * queries * keys
        elif lengths.is_meta or is_fake(lengths):
            seen = keys if lists is None else min(keys, lists.average_keys)
            pairs = batch * sum(max(0, seen - back) for back in range(queries))
        else:
            pairs = 0
            for sample, length in enumerate(checked_lengths(lengths, keys)):
                for position in range(length - queries, length):
                    found = visible_keys(lists, sample, position)
                    is_run = isinstance(found, slice)
                    pairs += found.stop - found.start if is_run else len(found)
        return 2 * pairs * heads * (d + v.shape[-1])

    formula._get_raw = True  # type: ignore[attr-defined]  # FlopCounterMode then passes tensors
    return formula


_BelowAutograd = torch._C._AutoDispatchBelowAutograd
_LIBRARY = torch.library.Library("visgen", "FRAGMENT")
_LIBRARY.define(
    "attention_decode(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, Tensor? offsets, "
    "Tensor? columns, int block, bool by_sample, float scale, int splits, str implementation) "
    "-> Tensor"
)
_LIBRARY.impl("attention_decode", _decode, "CompositeExplicitAutograd")
_LIBRARY.impl("attention_decode", _decode_autograd, "Autograd")
torch.library.register_fake("visgen::attention_decode", _decode_fake, lib=_LIBRARY)
decode_op = torch.ops.visgen.attention_decode.default
register_flop_formula(torch.ops.visgen.attention_decode, get_raw=True)(_flops(dense=False))
DENSE_FLOPS[torch.ops.visgen.attention_decode] = _flops(dense=True)

"""The dropout mask of attention: a counter, not a stored tensor.

Philox4x32-10 (Salmon et al., SC 2011) with the 64-bit seed as key and the counter
(j // 4, i, sequence * heads + head, 0); score (i, j) takes word j % 4 of the result. So forward,
backward and second backward see the same mask, whatever their tiles, on every device
(`tl.philox(seed, j // 4, i, s, 0)` in Triton gives the same words).
"""

from __future__ import annotations

import torch
from torch import Tensor

_MULTIPLY_A, _MULTIPLY_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85
_WORD = 0xFFFFFFFF


def philox(seed: int, c0: Tensor, c1: Tensor, c2: Tensor, c3: Tensor) -> tuple[Tensor, ...]:
    """Ten rounds of Philox4x32: four int64 tensors of counters (0 .. 2^32-1) -> four of words."""
    k0, k1 = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        # The product of two 32-bit words wraps in int64; its bits are right, and masking the
        # arithmetic shift gives the upper half as an unsigned word.
        product_a, product_b = c0 * _MULTIPLY_A, c2 * _MULTIPLY_B
        c0, c1 = ((product_b >> 32) & _WORD) ^ c1 ^ k0, product_b & _WORD
        c2, c3 = ((product_a >> 32) & _WORD) ^ c3 ^ k1, product_a & _WORD
        k0, k1 = (k0 + _KEY_A) & _WORD, (k1 + _KEY_B) & _WORD
    return c0, c1, c2, c3


def keep_factors(
    seed: int, sequences: Tensor, rows: Tensor, keys: Tensor, probability: float, dtype: torch.dtype
) -> Tensor:
    """0 where a score is dropped, 1 / (1 - probability) where it is kept.

    sequences (s,) = sequence * heads + head, rows (r,), keys (k,), all int64 -> (s, r, k) in dtype.
    """
    first, last = int(keys.min()) // 4, int(keys.max()) // 4
    c0 = torch.arange(first, last + 1, device=keys.device)
    c0, c1, c2 = torch.broadcast_tensors(
        c0[None, None, :], rows[None, :, None], sequences[:, None, None]
    )
    words = torch.stack(philox(seed, c0, c1, c2, torch.zeros_like(c0)), dim=-1).flatten(-2)
    kept = words.index_select(-1, keys - 4 * first) >= int(probability * 2**32)
    return kept.to(dtype).div_(1.0 - probability)

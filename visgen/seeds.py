"""Random numbers that depend on a sample's seed alone: counter-based Philox4x32-10.

Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a counter and a
key into four 32-bit words. Here the key is a sample's seed and the counter is (position in the
draw, name of the draw), so a value never depends on the batch it is drawn in, on the rank that
draws it, or on what was drawn before. The rounds are integer tensor operations and therefore equal
on every device.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF
_ROUNDS = 10


def philox4x32(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32.

    Args:
        counter: Four int64 tensors that broadcast, each holding 32-bit words (0 .. 2**32 - 1).
        key: Two such tensors.

    Returns:
        Four int64 tensors of 32-bit words.
    """
    # torch.broadcast_shapes would import sympy, a second of every worker's life.
    shape = torch.broadcast_tensors(*counter, *key)[0].shape
    c0, c1, c2, c3 = (word.expand(shape) for word in counter)
    # Both multiplications of a round are one operation on (2, ...): draws are many and small.
    even, odd = torch.stack((c0, c2)), torch.stack((c3, c1))
    multipliers = even.new_tensor(_MULTIPLIERS).view(2, *(1,) * len(shape))
    keys = torch.stack((key[1].expand(shape), key[0].expand(shape)))
    steps = even.new_tensor(_KEY_STEPS[::-1]).view_as(multipliers)
    for _ in range(_ROUNDS):
        # An int64 product wraps modulo 2**64, so both halves of the unsigned product are in it.
        product = even * multipliers
        even = ((product >> 32) & _WORD) ^ odd ^ keys  # (c2, c0) of the next round
        even, odd = even.flip(0), (product & _WORD)  # (c0, c2), (c3, c1)
        keys = (keys + steps) & _WORD
    return even[0], odd[1], even[1], odd[0]


def _stream_words(stream: str) -> tuple[int, int]:
    digest = hashlib.blake2b(stream.encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def words(seeds: Tensor, stream: str, count: int) -> Tensor:
    """32-bit words for each seed.

    Args:
        seeds: int64 (n,), any value.
        stream: Name of the draw; other names give independent words.
        count: Words per seed, at most 2**34.

    Returns:
        int64 (n, count), each in 0 .. 2**32 - 1.

    Raises:
        ValueError: if `seeds` is not a one-dimensional int64 tensor.
    """
    if seeds.dtype != torch.int64 or seeds.ndim != 1:
        raise ValueError(
            f"seeds is {seeds.dtype} of shape {tuple(seeds.shape)}; it must be int64 of shape (n,)."
        )
    blocks = -(-count // 4)
    position = torch.arange(blocks, device=seeds.device)[None, :]  # (1, blocks)
    low, high = _stream_words(stream)
    constant = position.new_full((1, 1), low), position.new_full((1, 1), high)
    key = (seeds & _WORD)[:, None], ((seeds >> 32) & _WORD)[:, None]  # (n, 1)
    out = philox4x32((position, torch.zeros_like(position), *constant), key)
    return torch.stack(out, dim=-1).flatten(1)[:, :count]


def uniform(seeds: Tensor, stream: str, shape: tuple[int, ...]) -> Tensor:
    """Uniform in [0, 1) with 24 bits: float32 (n, *shape) from int64 seeds (n,)."""
    count = math.prod(shape)
    values = (words(seeds, stream, count) >> 8).to(torch.float32) * 2.0**-24
    return values.view(seeds.shape[0], *shape)


def normal(seeds: Tensor, stream: str, shape: tuple[int, ...]) -> Tensor:
    """Standard normal by Box-Muller: float32 (n, *shape) from int64 seeds (n,).

    Logarithm and cosine are taken in float64, so that devices whose float64 functions differ in the
    last bit still agree once the result is rounded to float32.
    """
    count = math.prod(shape)
    drawn = words(seeds, stream, count + count % 2).double()
    radius = torch.sqrt(-2.0 * torch.log((drawn[:, 0::2] + 1.0) * 2.0**-32))  # (0, 1]: no log 0
    angle = drawn[:, 1::2] * (2.0 * math.pi * 2.0**-32)
    pair = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return pair.flatten(1)[:, :count].to(torch.float32).view(seeds.shape[0], *shape)


def integers(seeds: Tensor, stream: str, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
    """Integers in low .. high - 1: int64 (n, *shape). The bias is below (high - low) / 2**32."""
    drawn = words(seeds, stream, math.prod(shape)) * (high - low) >> 32
    return (low + drawn).view(seeds.shape[0], *shape)


def sample_seeds(run_seed: int, indices: Tensor) -> Tensor:
    """Seeds of samples `indices` of a run: int64 (n,), by the sample's place in the run alone.

    Args:
        run_seed: The run's seed (a Cell's `seed`).
        indices: int64 (n,), places in the run, 0-based.
    """
    key = torch.full((1,), run_seed, dtype=torch.int64, device=indices.device)
    low, high = _stream_words("sample")
    constant = indices.new_full((1,), low), indices.new_full((1,), high)
    first, second, _, _ = philox4x32(
        (indices & _WORD, (indices >> 32) & _WORD, *constant), (key & _WORD, (key >> 32) & _WORD)
    )
    return (second << 32) | first


def permutation(seed: int, stream: str, n: int) -> Tensor:
    """A permutation of 0 .. n - 1: int64 (n,), by one 62-bit word an index, ties by index."""
    high, low = (
        words(torch.tensor([seed], dtype=torch.int64), f"{stream}/permutation", 2 * n)
        .view(n, 2)
        .unbind(1)
    )
    return torch.argsort((high << 30) ^ low, stable=True)


@dataclass(frozen=True)
class Draws:
    """Named random draws of a batch: each sample's values come from its own seed.

    A network that needs noise asks for it by name; `fork` gives a part of the network names of its
    own. `step` is the training step, or 0 when sampling; it is part of every name.
    """

    seeds: Tensor
    stream: str = ""
    step: int = 0

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 (n, *shape)."""
        return normal(self.seeds, self._name(name), shape)

    def uniform(self, name: str, shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform float32 (n, *shape) in [0, 1)."""
        return uniform(self.seeds, self._name(name), shape)

    def integers(self, name: str, low: int, high: int, shape: tuple[int, ...] = ()) -> Tensor:
        """Integers int64 (n, *shape) in low .. high - 1."""
        return integers(self.seeds, self._name(name), low, high, shape)

    def batch_uniform(self, name: str) -> float:
        """One number in [0, 1) for the whole batch, by the name and the step alone."""
        seed = torch.zeros(1, dtype=torch.int64)
        return float(uniform(seed, self._name(f"batch/{name}"), ()))

    def batch_seed(self, name: str) -> Tensor:
        """A seed for the whole batch, int64 (1,) in 0 .. 2**62 - 1, by the name and the step."""
        high, low = words(self.seeds.new_zeros(1), self._name(f"batch/{name}"), 2)[0]
        return ((high << 30) ^ low)[None]

    def generator(self, name: str, device: torch.device) -> torch.Generator:
        """A generator of torch's for draws that may depend on the batch, as dropout's do."""
        return torch.Generator(device).manual_seed(int(self.batch_seed(name)))

    def fork(self, name: str) -> Draws:
        """The same seeds under names of their own."""
        return Draws(self.seeds, f"{self.stream}/{name}", self.step)

    def _name(self, name: str) -> str:
        return f"{self.stream}/{name}@{self.step}"

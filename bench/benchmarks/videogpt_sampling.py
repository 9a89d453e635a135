"""How much VideoGPT's cache is worth: ours against none, and against a cache that is always full.

    python bench/benchmarks/videogpt_sampling.py

Latents 4 x 16 x 16, width 240, 4 heads, 4 layers, 512 codes, batch 4, one thread. `none` runs the
whole grid for every code. `full` is the released code's way: keys and values of all 1,024 positions
lie in zeros, every step attends to all of them under a mask row, and the vectors of the whole grid
are looked up again. Steps at the same positions are timed in turns within this process; a ratio is
the median over rounds with a 95 % bootstrap interval. `sparse` is ours with strided lists, at the
end of the grid, where a step would see all 1,024 keys and sees 256 at most.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from visgen.models.prior import Block, Cache, Prior, PriorConfig, Seen

CONFIG = PriorConfig(
    grid=(4, 16, 16), code_dim=256, codes=512, width=240, layers=4, num_heads=4, dropout=0.0
)
BATCH = 4
PLACES = tuple(range(0, 1024, 64))  # of the steps that are timed in a round
ROUNDS, FULL_ROUNDS = 15, 5


class FullCache:
    """The released code's decoding step, written plainly."""

    def __init__(self, prior: Prior, codebook: Tensor) -> None:
        config = prior.config
        self.prior, self.codebook = prior, codebook
        shape = (BATCH, config.num_heads, config.tokens, config.width // config.num_heads)
        self.keys = [torch.zeros(shape) for _ in prior.blocks]
        self.values = [torch.zeros(shape) for _ in prior.blocks]

    def step(self, codes: Tensor, place: int) -> Tensor:
        """Logits (b, k) of the code at `place`; codes (b, l) are known before it."""
        prior = self.prior
        vectors = F.embedding(codes, self.codebook)  # of the whole grid
        x = (
            prior.embed(vectors[:, place - 1 : place])
            if place
            else prior.start.expand(BATCH, 1, -1)
        )
        x = x + prior.positions().flatten(0, -2)[place]
        mask = torch.arange(prior.config.tokens) <= place
        for number, block in enumerate(prior.blocks):
            assert isinstance(block, Block)
            y = block.norm1(x, block.norm1.affine(None))
            packed = block.attention.qkv(y).unflatten(-1, (3, prior.config.num_heads, -1))
            q, k, v = packed.transpose(1, 3).unbind(2)  # (b, heads, 1, d)
            self.keys[number][:, :, place : place + 1] = k
            self.values[number][:, :, place : place + 1] = v
            scores = q @ self.keys[number].mT * q.shape[-1] ** -0.5
            weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
            mixed = (weights @ self.values[number]).transpose(1, 2).flatten(-2)
            x = x + block.attention.out(mixed)
            x = x + block.mlp(block.norm3(x, block.norm3.affine(None)))
        return prior.out(prior.norm(x, prior.norm.affine(None)))[:, 0]


def at(prior: Prior, cache: Cache, vectors: Tensor, place: int) -> Tensor:
    """Our step at any place of a filled cache."""
    cache.at = place
    return prior.step(vectors[:, place - 1] if place else None, cache)


def timed(work: Callable[..., object], *arguments: object) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def interval(ratios: Sequence[float]) -> str:
    """Median and its 95 % bootstrap interval."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(ratios, k=len(ratios))) for _ in range(1000))
    return f"{statistics.median(ratios):.2f} [{medians[25]:.2f}, {medians[975]:.2f}]"


def tell(text: str) -> None:
    """One line."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def main() -> int:
    """Print the ratios; 1 if one misses its figure."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        return measure()


def measure() -> int:
    """All rounds."""
    prior, sparse = CONFIG.build(), replace(CONFIG, sparse=True).build()
    sparse.load_state_dict(prior.state_dict())
    torch.nn.init.normal_(prior.out.weight, std=0.1)
    codebook = torch.randn(CONFIG.codes, CONFIG.code_dim)
    codes = torch.randint(0, CONFIG.codes, (BATCH, CONFIG.tokens))
    vectors = F.embedding(codes, codebook)
    grid = vectors.view(BATCH, *CONFIG.grid, -1)
    cache, full = prior.cache(Seen(), BATCH), FullCache(prior, codebook)
    whole = prior(grid, Seen())
    worst = 0.0
    for place in range(CONFIG.tokens):  # fills both caches, and proves that they compute the same
        ours, theirs = at(prior, cache, vectors, place), full.step(codes, place)
        worst = max(worst, float((ours - theirs).abs().max()))
        worst = max(worst, float((ours - whole[:, place]).abs().max()))
    tell(f"largest difference of logits: {worst:.1e}")
    ours, theirs, uncached, listed = [], [], [], []
    last = CONFIG.tokens - 1
    rounds: list[tuple[list[float], Callable[[], float]]] = [
        (ours, lambda: sum(timed(at, prior, cache, vectors, place) for place in PLACES)),
        (theirs, lambda: sum(timed(full.step, codes, place) for place in PLACES)),
    ]
    for number in range(ROUNDS):
        for times, work in random.Random(number).sample(rounds, len(rounds)):
            times.append(work())
        if number < FULL_ROUNDS:  # the same work at every place
            uncached.append(len(PLACES) * timed(prior, grid, Seen()))
        dense = statistics.median(timed(at, prior, cache, vectors, last) for _ in range(9))
        few = statistics.median(timed(at, sparse, cache, vectors, last) for _ in range(9))
        listed.append(dense / few)
    per_step = statistics.median(ours) / len(PLACES)
    tell(f"a step: {1000 * per_step:.2f} ms, {BATCH / per_step:.0f} codes a second")
    against_none = [a / b for a, b in zip(uncached, ours, strict=False)]
    against_full = [a / b for a, b in zip(theirs, ours, strict=True)]
    tell(f"none / ours: {interval(against_none)} (at least 100)")
    tell(f"full / ours: {interval(against_full)} (at least 2)")
    tell(f"ours / sparse at the last code: {interval(listed)}")
    return int(statistics.median(against_none) < 100 or statistics.median(against_full) < 2)


if __name__ == "__main__":
    sys.exit(main())

"""How much VideoGPT's cache is worth: ours against none, and against the released code's.

    python bench/benchmarks/videogpt_sampling.py

Latents 4 x 16 x 16, width 240, 4 heads, 4 layers, 512 codes, batch 4, one thread. A step is what a
loop does for one code: look up vectors, logits, draw.

`none` runs the whole grid for every code. `released` is the loop of the released code
(wilson1yan/VideoGPT 733d2b1, `VideoGPT.sample`): keys and values of all 1,024 positions lie in
zeros and every step attends to all of them under a row of the mask; the vectors of the whole grid
are looked up again, and its positions laid out again, before one token of them is taken; the
cross-entropy of the logits is computed and not used. It projects that one token alone (`fc_in`).
`embedding` projects the whole grid as well, which the released code does not. Both go through our
layers (its q, k and v are three products, here they are one), and their attention is two products.

Steps at the same positions are timed in turns within this process, by its CPU time; a ratio is the
median over rounds with a 95 % bootstrap interval. `sparse` is ours with strided lists, at the end
of the grid, where a step would see all 1,024 keys and sees 256 at most.
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
from visgen.models.videogpt import Sampling, draw

CONFIG = PriorConfig(
    grid=(4, 16, 16), code_dim=256, codes=512, width=240, layers=4, num_heads=4, dropout=0.0
)
BATCH = 4
PLACES = tuple(range(0, 1024, 64))  # of the steps that are timed in a round
ROUNDS, FULL_ROUNDS = 25, 5
LEAST = {"none": 100, "released": 2, "embedding": 2}  # times as long as ours


class FullCache:
    """The released code's loop; with `embeds` it projects the whole grid at every step."""

    def __init__(self, prior: Prior, codebook: Tensor, *, embeds: bool = False) -> None:
        config = prior.config
        self.prior, self.codebook, self.embeds = prior, codebook, embeds
        shape = (BATCH, config.num_heads, config.tokens, config.width // config.num_heads)
        self.keys = [torch.zeros(shape) for _ in prior.blocks]
        self.values = [torch.zeros(shape) for _ in prior.blocks]
        self.hidden = torch.ones(config.tokens, config.tokens, dtype=torch.bool).triu(1)
        self.generator = torch.Generator().manual_seed(0)

    def logits(self, codes: Tensor, place: int) -> Tensor:
        """(b, k) of the code at `place`; codes (b, l) are known before it."""
        prior, before = self.prior, slice(max(0, place - 1), max(1, place))
        vectors = F.embedding(codes, self.codebook)  # of the whole grid
        x = prior.embed(vectors)[:, before] if self.embeds else prior.embed(vectors[:, before])
        if place == 0:
            x = prior.start.expand(BATCH, 1, -1)
        x = x + prior.positions().flatten(0, -2)[place]
        hidden = self.hidden[place]
        for keys, values, block in zip(self.keys, self.values, prior.blocks, strict=True):
            assert isinstance(block, Block)
            y = block.norm1(x, block.norm1.affine(None))
            packed = block.attention.qkv(y).view(BATCH, 1, 3, prior.config.num_heads, -1)
            q, k, v = packed.transpose(1, 3).unbind(2)  # (b, heads, 1, d)
            keys[:, :, place : place + 1] = k
            values[:, :, place : place + 1] = v
            scores = q * q.shape[-1] ** -0.5 @ keys.mT
            mixed = scores.masked_fill_(hidden, -torch.inf).softmax(-1) @ values
            x = x + block.attention.out(mixed.transpose(1, 2).flatten(-2))
            x = x + block.mlp(block.norm3(x, block.norm3.affine(None)))
        return prior.out(prior.norm(x, prior.norm.affine(None)))[:, 0]

    def step(self, codes: Tensor, place: int) -> Tensor:
        """The code (b,) at `place`."""
        logits = self.logits(codes, place)
        F.cross_entropy(logits, codes[:, max(0, place - 1)])
        return torch.multinomial(logits.softmax(-1), 1, generator=self.generator)[:, 0]


class Ours:
    """Our loop, at any place of a filled cache."""

    def __init__(self, prior: Prior, codebook: Tensor, cache: Cache | None = None) -> None:
        self.prior, self.codebook = prior, codebook
        self.cache = prior.cache(Seen(), BATCH) if cache is None else cache
        self.numbers = torch.rand(BATCH, prior.config.tokens)

    def logits(self, codes: Tensor, place: int) -> Tensor:
        """As `FullCache.logits`."""
        self.cache.at = place
        vectors = F.embedding(codes[:, place - 1], self.codebook) if place else None
        return self.prior.step(vectors, self.cache)

    def step(self, codes: Tensor, place: int) -> Tensor:
        """As `FullCache.step`."""
        return draw(self.logits(codes, place), self.numbers[:, place], Sampling())


def timed(work: Callable[..., object], *arguments: object) -> float:
    """Seconds of one call: of this process alone, whatever else the machine does."""
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


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
    grid = F.embedding(codes, codebook).view(BATCH, *CONFIG.grid, -1)
    ours, released = Ours(prior, codebook), FullCache(prior, codebook)
    embedding = FullCache(prior, codebook, embeds=True)
    embedding.keys, embedding.values = released.keys, released.values
    few = Ours(sparse, codebook, ours.cache)
    whole = prior(grid, Seen())
    worst = 0.0
    for place in range(CONFIG.tokens):  # fills both caches, and proves that they compute the same
        mine, theirs = ours.logits(codes, place), released.logits(codes, place)
        worst = max(worst, float((mine - theirs).abs().max()))
        worst = max(worst, float((mine - whole[:, place]).abs().max()))
    tell(f"largest difference of logits: {worst:.1e}")
    ways = {"ours": ours, "released": released, "embedding": embedding}
    seconds = {name: list[float]() for name in (*ways, "none")}
    last, listed = CONFIG.tokens - 1, list[float]()
    for number in range(ROUNDS):
        for name in random.Random(number).sample(list(ways), len(ways)):
            step = ways[name].step
            seconds[name].append(sum(timed(step, codes, place) for place in PLACES) / len(PLACES))
        if number < FULL_ROUNDS:  # the same work at every place
            seconds["none"].append(timed(prior, grid, Seen()))
        dense = statistics.median(timed(ours.step, codes, last) for _ in range(9))
        listed.append(dense / statistics.median(timed(few.step, codes, last) for _ in range(9)))
    for name, times in seconds.items():
        per_step = statistics.median(times)
        tell(f"{name}: {1000 * per_step:.2f} ms a step, {BATCH / per_step:.0f} codes a second")
    missed = False
    for name, least in LEAST.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds["ours"], strict=False)]
        missed |= statistics.median(ratios) < least
        tell(f"{name} / ours: {interval(ratios)} (at least {least})")
    tell(f"ours / sparse at the last code: {interval(listed)}")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())

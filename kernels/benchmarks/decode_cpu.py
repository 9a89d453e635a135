"""attention_decode on a CPU against a cache whose every position is attended to, in turns.

    python kernels/benchmarks/decode_cpu.py
    python kernels/benchmarks/decode_cpu.py --grid 4 32 32 --width 576 --batch 1 --layers 8
    python kernels/benchmarks/decode_cpu.py --tokens-first --threads 2

The attention of VideoGPT's cached sampling: one call is 32 steps at evenly spaced positions of a
clip, each through the caches of all layers. "all positions" is the way of its official code: scores
of every position of a cache (b, h, n, d), a row of the mask, softmax, product. The strided layout
is compared with the same, its mask being that layout's. Ours has caches in the same memory, or with
--tokens-first in the order (b, n, h, d).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from math import prod

import torch
from pairs import OURS, report, timed
from torch import Tensor

from visgen_kernels import BlockList, attention_decode
from visgen_kernels.masks import Causal, Mask

STEPS = 32


def all_positions(q: Tensor, k: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """Queries (b, h, 1, d), k and v (b, h, n, d), visible (n,) -> (b, h, 1, d)."""
    scores = (q @ k.mT) * q.shape[-1] ** -0.5
    return scores.masked_fill(~visible, -torch.inf).softmax(-1) @ v


def ways(
    q: Tensor, caches: Tensor, mask: Mask, blocks: BlockList | None, tokens_first: bool
) -> dict[str, Callable[[], object]]:
    """Both ways through q (b, h, 1, d) and caches (layers, 2, b, h, n, d), at the same steps."""
    n = caches.shape[-2]
    positions = range(n // STEPS - 1, n, n // STEPS)
    lengths = [torch.full((q.shape[0],), i + 1, dtype=torch.int32) for i in positions]
    rows = [mask.visible(torch.tensor(i), torch.arange(n)) for i in positions]
    query, own = q.transpose(1, 2), caches.transpose(-2, -3)
    if tokens_first:
        own = own.contiguous()
    mine, theirs = own.unbind(), caches.unbind()

    def step_ours() -> None:
        for length in lengths:
            for k, v in mine:
                attention_decode(query, k, v, length, blocks=blocks)

    def step_theirs() -> None:
        for row in rows:
            for k, v in theirs:
                all_positions(q, k, v, row)

    return {OURS: step_ours, "all positions": step_theirs}


def main() -> None:
    """Parse the command line, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--grid", type=int, nargs=3, default=(4, 16, 16))
    parser.add_argument("--width", type=int, default=240)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens-first", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    generator = torch.Generator().manual_seed(0)
    (t, h, w), n, heads = arguments.grid, prod(arguments.grid), arguments.heads
    d, batch, layers = arguments.width // heads, arguments.batch, arguments.layers
    q = torch.randn(batch, heads, 1, d, generator=generator)
    caches = torch.randn(layers, 2, batch, heads, n, d, generator=generator)
    strided = BlockList.strided(t, h, w)
    what = f"{t}x{h}x{w}, width {arguments.width}, batch {batch}, {layers} layers"
    for name, mask, blocks in (("causal", Causal(), None), ("strided", strided, strided)):
        both = ways(q, caches, mask, blocks, arguments.tokens_first)
        report(f"{name}, {what}", timed(both, arguments.rounds))


if __name__ == "__main__":
    main()

"""Runs the decoding kernels in Triton's interpreter and prints their errors as JSON.

A process of its own: Triton reads TRITON_INTERPRET when it decorates the kernels.
"""

import json
import sys
from typing import Any

import torch
from torch import Tensor

from visgen_kernels import BlockList
from visgen_kernels.decode import attention_decode
from visgen_kernels.decode_launch import decode_launches
from visgen_kernels.key_blocks import KeyBlocks, KeyLists

LENGTHS = (0, 1, 2, 33, 70)
STRIDED = BlockList.strided(3, 4, 8, block=8)  # 96 tokens in 12 blocks
BY_SAMPLE = KeyBlocks(
    torch.tensor([0, 3, 3, 4, 6, 9], dtype=torch.int32),
    torch.tensor([0, 1, 2, 0, 2, 0, 4, 0, 1], dtype=torch.int32),
    16,
)


def cases() -> dict[str, dict[str, Any]]:
    """Arguments of `run` by name."""
    found: dict[str, dict[str, Any]] = {}
    for d in (1, 4, 8, 16, 24, 48, 60, 64, 72, 96, 120, 128, 144, 256):
        found[f"head dimension {d}"] = {"d": d, "lengths": (20,), "keys": 20}
    for d in (4, 24, 60, 72, 144):
        half = torch.bfloat16
        found[f"5 queries, head dimension {d}"] = {
            "d": d, "queries": 5, "dtype": half, "lengths": (37,), "keys": 37,
        }  # fmt: skip
    for splits in (1, 7):
        found[f"lengths, splits {splits}"] = {"splits": splits}
        found[f"lengths, splits {splits}, 3 queries"] = {
            "splits": splits, "queries": 3, "dtype": torch.bfloat16,
        }  # fmt: skip
    return found | {
        "values narrower": {"d": 48, "d_v": 20, "splits": 3},
        "values wider": {"d": 24, "d_v": 60, "splits": 3},
        "values wider, 4 queries": {"d": 24, "d_v": 60, "queries": 4, "dtype": torch.float16},
        "float32, 3 queries": {"queries": 3, "splits": 2},
        "16 queries": {"queries": 16, "dtype": torch.bfloat16, "splits": 2},
        "2 queries, too wide for matrix products": {
            "queries": 2, "d": 256, "dtype": torch.bfloat16, "lengths": (5, 9),
        },
        "bf16": {"dtype": torch.bfloat16, "d": 144, "splits": 2},
        "strided lists": {"blocks": STRIDED, "lengths": (0, 1, 8, 9, 64, 65, 96), "splits": 2},
        "strided lists, bf16": {
            "blocks": STRIDED, "lengths": (3, 40, 96), "dtype": torch.bfloat16, "d": 60,
        },
        "strided lists, 3 queries": {"blocks": STRIDED, "lengths": (2, 33, 96), "queries": 3},
        "lists of samples": {"blocks": BY_SAMPLE, "splits": 2},
        "lists of samples, 2 queries": {"blocks": BY_SAMPLE, "queries": 2},
        "head-major memory": {"memory": "heads first", "splits": 2},
        "head-major memory, 3 queries": {
            "memory": "heads first", "queries": 3, "dtype": torch.float16,
        },
        "a cache shared by all samples": {"memory": "expanded"},
        "a base that is not aligned": {"memory": "shifted", "d": 24},
        "negative scale": {"scale": -0.4},
        "scale 0": {"scale": 0.0, "queries": 2, "dtype": torch.float16},
        "sharp": {"scale": 25.0},
        "sharp, 3 queries": {"scale": 25.0, "queries": 3, "dtype": torch.float16},
    }  # fmt: skip


def inputs(
    *,
    d: int = 20,
    d_v: int | None = None,
    keys: int = 96,
    queries: int = 1,
    heads: int = 2,
    lengths: tuple[int, ...] = LENGTHS,
    dtype: torch.dtype = torch.float32,
    memory: str = "",
    poison: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v, lengths; what lies beyond a sample's length is NaN."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        if memory == "shifted":
            flat = torch.randn(torch.Size(shape).numel() + 1, generator=generator).to(dtype)
            return flat[1:].view(shape)
        return torch.randn(shape, generator=generator).to(dtype)

    batch = len(lengths)
    stored = 1 if memory == "expanded" else batch
    q = draw(batch, queries, heads, d)
    k, v = draw(stored, keys, heads, d), draw(stored, keys, heads, d_v or d)
    if poison and memory != "expanded":
        for sample, length in enumerate(lengths):
            k[sample, length:] = v[sample, length:] = torch.nan
    if memory == "heads first":
        k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v))
    k, v = (x.expand(batch, -1, -1, -1) for x in (k, v))
    return q, k, v, torch.tensor(lengths)


def lists_of(blocks: BlockList | KeyBlocks | None) -> KeyLists | None:
    if blocks is None:
        return None
    by_sample = isinstance(blocks, KeyBlocks)
    return KeyLists(blocks.offsets, blocks.columns, blocks.block, by_sample)


def poisoned(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lengths: Tensor,
    blocks: Any,
    scale: float,
    splits: int,
    *,
    amd: bool = False,
) -> Tensor:
    """The kernels' output where every buffer they write held NaN before."""
    out = q.new_full((*q.shape[:3], v.shape[-1]), torch.nan)
    launches = decode_launches(
        out, q, k, v, lengths, lists_of(blocks), scale=scale, splits=splits, amd=amd
    )
    for launch in launches:
        for argument in launch.arguments:
            if isinstance(argument, Tensor) and argument.is_floating_point():
                argument.fill_(torch.nan)
    for launch in launches:
        launch.run()
    return out


def run(
    *,
    blocks: BlockList | KeyBlocks | None = None,
    splits: int = 1,
    scale: float | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Errors against the float64 definition, and those of the definition in the kernel's dtype."""
    q, k, v, lengths = inputs(**fields)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    options: dict[str, Any] = {"blocks": blocks, "scale": factor}
    out = attention_decode(q, k, v, lengths, **options, splits=splits, implementation="triton")
    again = poisoned(q, k, v, lengths, blocks, factor, splits)
    options |= {"implementation": "reference"}
    exact = attention_decode(q.double(), k.double(), v.double(), lengths, **options)
    low = attention_decode(q, k, v, lengths, **options)
    return {
        "error": float((out.double() - exact).abs().max()),
        "low": float((low.double() - exact).abs().max()),
        "rounding": float((exact - exact.to(q.dtype).double()).abs().max()),
        "same_bits_again": bool(torch.equal(out, again)),
        "empty_is_zero": not bool(out[lengths == 0].any()),
        "shape": list(out.shape),
    }


def hidden_values() -> dict[str, bool]:
    """Of several queries, those that see a value that is not finite are hurt, no others."""
    q, k, v, lengths = inputs(queries=6, lengths=(40, 70), dtype=torch.float16, poison=False)
    clean = attention_decode(q, k, v, lengths, splits=2, implementation="triton")
    # Position 37 is that of query 3 of the first sample, 66 that of query 2 of the second.
    v[0, 37, 1, 3], v[1, 66, 0, 5], k[1, 69, 1] = torch.nan, torch.inf, torch.nan
    hurt = attention_decode(q, k, v, lengths, splits=2, implementation="triton")
    sees = torch.zeros(2, 6, 2, dtype=torch.bool)
    sees[0, 3:, 1] = sees[1, 2:, 0] = sees[1, 5:, 1] = True
    broken = ~hurt.isfinite().all(-1)
    return {
        "those_who_see_it": bool((broken == sees).all()),
        "no_others": bool(torch.equal(hurt[~sees], clean[~sees])),
    }


def splits_agree() -> float:
    """Largest difference of one and of seven shares, for one query and for three."""
    worst = 0.0
    for queries, dtype in ((1, torch.float32), (3, torch.float16)):
        tensors = inputs(queries=queries, dtype=dtype, keys=160, lengths=(0, 150))
        one, seven = (
            attention_decode(*tensors, splits=splits, implementation="triton") for splits in (1, 7)
        )
        worst = max(worst, float((one - seven).abs().max()) / torch.finfo(dtype).eps)
    return worst


def far_apart() -> bool:
    """The second sample begins beyond 2^31 numbers. (Memory that is not touched is not used.)"""
    apart = 2**31 + 64
    memory = torch.empty(apart + 1024, dtype=torch.float16)
    near = [memory[at : at + 320].normal_() for at in (0, 512, apart, apart + 512)]
    k, v = (memory[at:].as_strided((2, 20, 1, 16), (apart, 16, 16, 1)) for at in (0, 512))
    assert torch.equal(v[1].flatten(), near[3])
    q, lengths = torch.ones(2, 1, 1, 16, dtype=torch.float16), torch.tensor([20, 20])
    far = attention_decode(q, k, v, lengths, implementation="triton")
    k, v = (torch.stack([near[i], near[i + 2]]).view(2, 20, 1, 16) for i in (0, 1))
    return bool(torch.equal(far, attention_decode(q, k, v, lengths, implementation="triton")))


def tiles_of_amd() -> dict[str, float]:
    """Errors with the tiles that only gfx942 uses."""
    errors = {}
    for queries in (1, 5):
        q, k, v, lengths = inputs(queries=queries, dtype=torch.float16, d=24)
        out = poisoned(q, k, v, lengths, None, 0.3, 2, amd=True)
        wide = (q.double(), k.double(), v.double(), lengths)
        exact = attention_decode(*wide, scale=0.3, implementation="reference")
        errors[f"{queries} queries"] = float((out.double() - exact).abs().max())
    return errors


def beyond_the_cache() -> bool:
    """On a device a length beyond the cache is the whole cache."""
    q, k, v, _ = inputs(lengths=(96, 96), keys=96)
    options = {"implementation": "triton", "splits": 2}
    much = attention_decode(q, k, v, torch.tensor([1000, 97]), **options)
    return bool(torch.equal(much, attention_decode(q, k, v, torch.tensor([96, 96]), **options)))


if __name__ == "__main__":
    results = {
        "errors": {name: run(**arguments) for name, arguments in cases().items()},
        "hidden_values": hidden_values(),
        "splits_agree": splits_agree(),
        "far_apart": far_apart(),
        "tiles_of_amd": tiles_of_amd(),
        "beyond_the_cache": beyond_the_cache(),
    }
    json.dump(results, sys.stdout)

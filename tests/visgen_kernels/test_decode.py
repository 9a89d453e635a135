"""The decoding step: its kernels in Triton's interpreter, its CPU route, the operator."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from visgen_kernels import (
    DENSE_FLOPS,
    BlockList,
    Causal,
    ImplementationUnavailable,
    KeyBlocks,
    attention,
    attention_decode,
)
from visgen_kernels.decode_chunked import decode_chunked
from visgen_kernels.decode_launch import decode_splits
from visgen_kernels.key_blocks import KeyLists

OPERATOR = torch.ops.visgen.attention_decode.default
STRIDED = BlockList.strided(3, 4, 8, block=8)  # 96 tokens


def draw(*shape: int, of: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(of)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def step(
    lengths: tuple[int, ...],
    *,
    queries: int = 1,
    keys: int = 96,
    d: int = 12,
    d_v: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, caches with NaN beyond the lengths, lengths."""
    batch, heads = len(lengths), 3
    q = draw(batch, queries, heads, d, dtype=dtype)
    k = draw(batch, keys, heads, d, of=1, dtype=dtype)
    v = draw(batch, keys, heads, d_v or d, of=2, dtype=dtype)
    for sample, length in enumerate(lengths):
        k[sample, length:] = v[sample, length:] = torch.nan
    return q, k, v, torch.tensor(lengths)


def exact(q: Tensor, k: Tensor, v: Tensor, lengths: Tensor, **options: Any) -> Tensor:
    return attention_decode(
        q.double(), k.double(), v.double(), lengths, implementation="reference", **options
    )


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What `interpreted_decode.py` printed."""
    script = Path(__file__).with_name("interpreted_decode.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_kernels_are_within_twice_the_error_of_the_same_dtype(interpreted) -> None:
    for name, found in interpreted["errors"].items():
        allowed = 2 * found["low"] + 2 * found["rounding"] + 2e-6
        assert found["error"] <= allowed, (name, found)


def test_kernels_write_everything_and_repeat_themselves_to_the_bit(interpreted) -> None:
    for name, found in interpreted["errors"].items():
        assert found["same_bits_again"], name  # the second time into buffers of NaN
        assert found["empty_is_zero"], name


def test_the_number_of_splits_changes_only_rounding(interpreted) -> None:
    assert interpreted["splits_agree"] <= 4  # units in the last place of 1


def test_kernels_let_a_broken_value_reach_only_queries_that_see_it(interpreted) -> None:
    assert interpreted["hidden_values"] == {"those_who_see_it": True, "no_others": True}


def test_samples_may_lie_more_than_two_thousand_million_numbers_apart(interpreted) -> None:
    assert interpreted["far_apart"]


def test_the_tiles_of_amd_compute_the_same(interpreted) -> None:
    for name, error in interpreted["tiles_of_amd"].items():
        assert error <= 2e-3, name  # float16


def test_a_device_takes_a_length_beyond_the_cache_as_all_of_it(interpreted) -> None:
    assert interpreted["beyond_the_cache"]


@pytest.mark.parametrize("memory", ["tokens first", "heads first"])
@pytest.mark.parametrize("blocks", [None, STRIDED], ids=["all", "strided"])
def test_steps_give_what_attention_gives_at_once(blocks: BlockList | None, memory: str) -> None:
    q, k, v = (draw(2, 96, 3, 12, of=i, dtype=torch.float64) for i in range(3))
    whole = attention(q, k, v, mask=blocks or Causal())
    caches = torch.full((2, 2, 96, 3, 12), torch.nan, dtype=torch.float64)
    if memory == "heads first":
        caches = caches.transpose(2, 3).contiguous().transpose(2, 3)
    for i in range(96):
        caches[0, :, i], caches[1, :, i] = k[:, i], v[:, i]
        lengths = torch.full((2,), i + 1)
        out = attention_decode(q[:, i : i + 1], caches[0], caches[1], lengths, blocks=blocks)
        torch.testing.assert_close(out[:, 0], whole[:, i])


@st.composite
def problems(draw_from: st.DrawFn) -> dict[str, Any]:
    batch, keys = draw_from(st.integers(1, 4)), draw_from(st.integers(1, 96))
    lengths = draw_from(st.lists(st.integers(0, keys), min_size=batch, max_size=batch))
    if draw_from(st.booleans()):
        lengths = [lengths[0]] * batch
    return {
        "lengths": tuple(lengths),
        "keys": keys,
        "queries": draw_from(st.sampled_from([1, 1, 2, 7, 16])),
        "d": draw_from(st.sampled_from([1, 3, 12, 60])),
        "d_v": draw_from(st.sampled_from([None, 1, 20])),
        "dtype": draw_from(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])),
        "lists": draw_from(st.sampled_from(["none", "positions", "samples"])),
        "heads_first": draw_from(st.booleans()),
        "number": draw_from(st.integers(0, 2**16)),
    }


def random_lists(kind: str, batch: int, keys: int, number: int) -> BlockList | KeyBlocks | None:
    """Random increasing lists of blocks of 5 keys."""
    if kind == "none":
        return None
    generator = torch.Generator().manual_seed(number)
    blocks = -(-keys // 5)
    rows = blocks if kind == "positions" else batch
    lists = [torch.rand(blocks, generator=generator).lt(0.4).nonzero()[:, 0] for _ in range(rows)]
    offsets = torch.tensor([0, *(len(x) for x in lists)]).cumsum(0).to(torch.int32)
    columns = torch.cat(lists).to(torch.int32)
    make = BlockList if kind == "positions" else KeyBlocks
    return make(offsets, columns, 5)


@seed(20260)
@settings(max_examples=150, deadline=None, database=None)
@given(problems())
def test_the_cpu_route_is_the_definition(problem: dict[str, Any]) -> None:
    kind, number = problem.pop("lists"), problem.pop("number")
    heads_first = problem.pop("heads_first")
    q, k, v, lengths = step(**problem)
    blocks = random_lists(kind, len(lengths), problem["keys"], number)
    if heads_first:
        k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (k, v))
    wanted = exact(q, k, v, lengths, blocks=blocks)
    found = attention_decode(q, k, v, lengths, blocks=blocks)
    tolerance = {torch.float64: 1e-12, torch.float32: 5e-6, torch.bfloat16: 2**-8}[q.dtype]
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=tolerance)
    assert found.is_contiguous()


def test_blocks_that_are_not_listed_are_not_read() -> None:
    q, k, v, lengths = step((90, 40))
    clean = attention_decode(q, k, v, lengths, blocks=STRIDED)
    for sample, position in ((0, 89), (1, 39)):
        row = position // 8
        listed = STRIDED.columns[STRIDED.offsets[row] : STRIDED.offsets[row + 1]].tolist()
        for block in set(range(12)) - set(listed):
            k[sample, 8 * block : 8 * block + 8] = v[sample, 8 * block : 8 * block + 8] = torch.nan
    assert torch.equal(attention_decode(q, k, v, lengths, blocks=STRIDED), clean)


class KeysRead(TorchDispatchMode):
    """Keys that products over a cache were given."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "attention" in function.__name__:
            self.most = max(self.most, args[1].shape[-2])
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("grid", "blocks"), [((4, 16, 16), 8), ((4, 32, 32), 8), ((8, 32, 32), 12)]
)
def test_a_strided_step_reads_no_more_keys_than_its_blocks_hold(
    grid: tuple[int, int, int], blocks: int
) -> None:
    strided, tokens = BlockList.strided(*grid), math.prod(grid)
    assert int(strided.offsets.diff().max()) == blocks
    lists = KeyLists(strided.offsets, strided.columns, strided.block, by_sample=False)
    cache, query = draw(1, tokens, 1, 2), draw(1, 1, 1, 2)
    with KeysRead() as read:
        for length in range(32, tokens + 1, 32):  # the last code of a block sees most
            decode_chunked(query, cache, cache, torch.tensor([length]), lists, 1.0)
    assert read.most == 32 * blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_value_of_nan_reaches_only_the_queries_that_see_it(dtype: torch.dtype) -> None:
    q, k, v, lengths = step((40, 40), queries=5, dtype=dtype)
    clean = attention_decode(q, k, v, lengths)
    v[0, 37, 1, 0] = k[1, 39, 2, 0] = torch.nan
    hurt = attention_decode(q, k, v, lengths)
    sees = torch.zeros(2, 5, 3, dtype=torch.bool)
    sees[0, 2:, 1] = sees[1, 4:, 2] = True
    assert hurt[sees].isnan().any(-1).all()
    torch.testing.assert_close(hurt[~sees], clean[~sees])


def test_an_empty_batch_and_an_empty_cache_give_zeros() -> None:
    q, k, v, lengths = step((0, 0), keys=0)
    assert not attention_decode(q, k, v, lengths).any()
    assert attention_decode(q[:0], k[:0], v[:0], lengths[:0]).shape == (0, 1, 3, 12)


@pytest.mark.parametrize(
    ("heads", "keys", "multiprocessors", "expected"),
    [
        (32, 4096, 132, 9),  # ceil(264 / 32)
        (1, 4096, 132, 32),  # 128 keys each
        (1024, 4096, 132, 1),
        (8, 100, 132, 1),
        (0, 0, 108, 1),
    ],
)
def test_splits_give_each_multiprocessor_two_programs(
    heads: int, keys: int, multiprocessors: int, expected: int
) -> None:
    assert decode_splits(heads, keys, multiprocessors) == expected


def test_opcheck() -> None:
    tensors = step((7, 96))
    torch.library.opcheck(OPERATOR, (*tensors, None, None, 0, False, 0.3, 0, "chunked"))
    lists = (STRIDED.offsets, STRIDED.columns, 8, False)
    torch.library.opcheck(OPERATOR, (*step((7, 96), queries=3), *lists, 0.3, 0, "chunked"))


@pytest.mark.parametrize("blocks", [None, STRIDED], ids=["all", "strided"])
def test_compile_traces_without_a_break(blocks: BlockList | None) -> None:
    def call(*tensors: Tensor) -> Tensor:
        return attention_decode(*tensors, blocks=blocks).sin()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    tensors = step((7, 96))
    torch.testing.assert_close(compiled(*tensors), call(*tensors))


@pytest.mark.parametrize("implementation", [None, "triton", "chunked", "reference"])
def test_meta_gives_the_shape(implementation: str | None) -> None:
    q, k, v, lengths = (x.to("meta") for x in step((7, 96), d_v=20, queries=2))
    out = attention_decode(q, k, v, lengths, implementation=implementation)
    assert out.is_meta
    assert out.shape == (2, 2, 3, 20)


def counted(*tensors: Tensor, mapping: Any = None, **options: Any) -> int:
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        attention_decode(*tensors, **options)
    return counter.get_total_flops()


def test_flops_count_the_pairs_that_are_seen() -> None:
    q, k, v, lengths = step((0, 7, 96), d_v=20, queries=2)
    a_pair = 2 * (12 + 20) * 3
    assert counted(q, k, v, lengths) == a_pair * (6 + 7 + 95 + 96)
    assert counted(q, k, v, lengths, mapping=DENSE_FLOPS) == a_pair * 3 * 2 * 96
    one = STRIDED.pairs(0, 0)  # of all positions
    every = sum(counted(*step((n,)), blocks=STRIDED) for n in range(1, 97))
    assert every == 2 * (12 + 12) * 3 * one
    meta = [x.to("meta") for x in (q, k, v, lengths)]
    assert counted(*meta) == a_pair * 3 * (95 + 96)  # as if the cache were full


def test_a_gradient_is_refused_in_words() -> None:
    q, k, v, lengths = step((7, 96))
    out = attention_decode(q.requires_grad_(), k, v, lengths)
    with pytest.raises(NotImplementedError, match=r'implementation="reference"'):
        out.sum().backward()


def test_the_reference_has_a_gradient() -> None:
    q, k, v, lengths = step((7, 9), dtype=torch.float64)
    q.requires_grad_()

    def call(q: Tensor) -> Tensor:
        return attention_decode(q, k, v, lengths, implementation="reference")

    assert torch.autograd.gradcheck(call, (q,))


def changed(**changes: Any) -> dict[str, Any]:
    q, k, v, lengths = step((7, 96))
    return {"q": q, "k_cache": k, "v_cache": v, "lengths": lengths, **changes}


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "axes": ({"q": draw(2, 3, 12)}, "four axes each; got"),
    "heads": ({"q": draw(2, 1, 4, 12)}, "do not fit"),
    "values": ({"v_cache": draw(2, 95, 3, 12)}, "do not fit"),
    "too many queries": ({"q": draw(2, 17, 3, 12)}, r"1 to 16 queries .* got 17; use attention"),
    "no queries": ({"q": draw(2, 0, 3, 12)}, "got 0"),
    "wide heads": (
        {"q": draw(2, 1, 3, 257), "k_cache": draw(2, 96, 3, 257)},
        r"1 to 256, got 257 .*more heads",
    ),
    "dtype": ({"k_cache": draw(2, 96, 3, 12, dtype=torch.float16)}, "share one dtype"),
    "strides": ({"k_cache": draw(2, 96, 12, 3).mT}, r"k_cache has stride 3, it must be 1"),
    "lengths' shape": ({"lengths": torch.tensor([3])}, r"shape \(2,\); got \(1,\)"),
    "lengths' dtype": ({"lengths": torch.tensor([3.0, 4.0])}, "int32 or int64"),
    "a length beyond": ({"lengths": torch.tensor([3, 97])}, r"\[3, 97\] and the cache holds 96"),
    "a negative length": ({"lengths": torch.tensor([-1, 9])}, "from 0 to the cache's"),
    "splits": ({"splits": 0}, "splits=0: 1 or more"),
    "implementation": ({"implementation": "sdpa"}, 'unknown implementation "sdpa"'),
    "a short list": ({"blocks": BlockList.strided(2, 4, 8, block=8)}, "it has to list all of them"),
    "lists of other samples": (
        {"blocks": KeyBlocks(torch.tensor([0, 1]), torch.tensor([0]))},
        "1 lists for 2 samples",
    ),
    "a block twice": (
        {"blocks": KeyBlocks(torch.tensor([0, 2, 2]), torch.tensor([0, 0]))},
        "each block once",
    ),
    "lists elsewhere": (
        {"blocks": KeyBlocks(torch.empty(3, device="meta"), torch.empty(3, device="meta"))},
        "on meta and q on cpu",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_named(name: str) -> None:
    changes, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        attention_decode(**changed(**changes))


def test_key_blocks_want_vectors() -> None:
    with pytest.raises(ValueError, match="have one axis"):
        KeyBlocks(torch.zeros(2, 2), torch.zeros(3))


def test_triton_without_a_device_is_refused_with_the_alternative() -> None:
    with pytest.raises(ImplementationUnavailable, match=r'CUDA or ROCm device .* use "chunked"'):
        attention_decode(**changed(implementation="triton"))

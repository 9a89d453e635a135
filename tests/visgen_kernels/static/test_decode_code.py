"""Machine code of the decoding and codebook kernels, at the shapes that they are judged on.

Compiles in this process, where Triton's interpreter is off.
"""

import pytest

from visgen_kernels import BlockList
from visgen_kernels.codebook_kernel import default_precision, meta_nearest_launch
from visgen_kernels.decode_launch import meta_decode_launches
from visgen_kernels.key_blocks import KeyLists
from visgen_kernels.launch import Launch
from visgen_kernels.static.compile import compile_launch
from visgen_kernels.static.report import Report, report
from visgen_kernels.static.targets import TARGETS


def read(launch: Launch, target: str, *, flops: float | None = None) -> Report:
    """What the code says; flops of one pass through the loop."""
    return report(compile_launch(launch, TARGETS[target]), scores=None, flops=flops)


def check_clean(found: Report) -> None:
    assert found.compiled.stack == 0
    assert not found.compiled.spilled
    assert found.whole.counts.local == 0
    assert found.compiled.fits
    assert found.occupancy.blocks >= 1


def strided_lists() -> KeyLists:
    blocks = BlockList.strided(4, 32, 32)
    return KeyLists(blocks.offsets, blocks.columns, blocks.block, False)


@pytest.mark.parametrize("target", TARGETS)
def test_a_step_over_listed_blocks_reads_sixteen_bytes_at_a_time(target: str) -> None:
    amd = TARGETS[target].is_amd
    one, _ = meta_decode_launches(
        batch=8, heads=4, keys=4096, d=144, lists=strided_lists(), amd=amd
    )
    found = read(one, target)
    check_clean(found)
    assert found.occupancy.blocks >= 2  # what the rule for splits counts on
    share = found.whole.counts.wide_share(16)
    assert share is not None
    assert share >= 0.9
    assert not found.whole.counts.atomics


def test_several_queries_repeat_no_matrix_products() -> None:
    several, combine = meta_decode_launches(batch=8, heads=4, keys=4096, d=144, queries=8)
    keys = several.arguments[-1].block_n.value
    found = read(several, "sm_80", flops=2 * 16 * keys * 2 * 144)
    check_clean(found)
    assert combine.programs == 8 * 8 * 4
    assert len(found.loops) == 2  # tiles that all queries see, and the last ones
    for loop in found.loops:
        assert loop.mma_ratio == pytest.approx(1.0)


def test_one_split_writes_the_output_itself() -> None:
    (alone,) = meta_decode_launches(batch=128, heads=4, keys=4096, d=64)
    assert alone.programs == 512


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "gfx942"])
def test_the_search_for_codes_uses_matrix_units_without_repeated_work(target: str) -> None:
    launch = meta_nearest_launch(vectors=32_768, codes=2048, d=256, target=target)
    tile = launch.constants
    needed = 2 * tile["block_m"] * tile["block_k"] * tile["block_d"]
    found = read(launch, target, flops=needed)
    check_clean(found)
    assert found.whole.counts.matrix
    products = 3 if default_precision(target) == "tf32x3" else 1
    assert found.interior.mma_ratio == pytest.approx(products)
    share = found.whole.counts.wide_share(8)
    assert share is not None
    assert share >= 0.9
    if target == "sm_90":
        assert any(name.startswith("HGMMA") for name in found.whole.counts.matrix)


def test_few_vectors_are_searched_for_by_all_multiprocessors() -> None:
    launch = meta_nearest_launch(vectors=1024, codes=2048, d=256, target="sm_90")
    assert launch.programs == 128

"""What the package's kernels cost on four targets, read from their machine code.

Compiles in this process, where Triton's interpreter is off.
"""

import functools
from collections.abc import Callable

import pytest

from visgen_kernels.attention import launch as attention
from visgen_kernels.attention.gradients import Needs
from visgen_kernels.attention.tiles import Tile
from visgen_kernels.launch import recorded
from visgen_kernels.masks import Blocks1d, Causal, Full, Mask, SlidingWindow
from visgen_kernels.shapes import SHAPES, Shape
from visgen_kernels.static.analysis import Specimen
from visgen_kernels.static.analysis import read as read_code
from visgen_kernels.static.compile import compile_launch
from visgen_kernels.static.facts import facts_of
from visgen_kernels.static.report import Report, report
from visgen_kernels.static.specimens import Layer, plain_specimen, specimens
from visgen_kernels.static.targets import TARGETS

TILES = {
    ("sm_80", 64): Tile(64, 64, 4, 2),
    ("sm_90", 64): Tile(64, 64, 4, 2),
    ("sm_90", 72): Tile(64, 64, 4, 2),
    ("sm_90", 128): Tile(128, 64, 8, 2),
    ("sm_100", 64): Tile(64, 64, 4, 2),
    ("gfx942", 64): Tile(128, 64, 4, 2),
}
CLASSES = [key for key in TILES if key[1] != 72]


def layer(d: int, mask: Callable[[], Mask] = Full, *, lengths: bool = False) -> Shape:
    """1024 tokens, packed."""
    return Shape(
        id="x", what="", batch=8, grid=(1024,), heads=4, d=d, mask=mask, key_lengths=lengths
    )


@functools.cache
def read(kernel: str, shape: Shape, target: str) -> Report:
    layer, tile = Layer(shape), TILES[target, shape.d]
    q, k, v = layer.inputs.q, layer.inputs.k, layer.inputs.v
    with recorded(target) as launches:
        if kernel == "forward":
            attention.forward_tiled(layer.call, q, k, v, tile)
        else:
            grad, needs = layer.out, Needs(True, True, True, False, False)
            attention.backward_tiled(
                layer.call,
                grad,
                grad,
                layer.row,
                q,
                k,
                v,
                tile,
                tile,
                of_table=tile,
                needs=needs,
                packed=True,
            )
    found = [Specimen(one, facts_of(one, shape, "")) for one in launches]
    (one,) = (one for one in found if one.facts.kernel == kernel)
    compiled = compile_launch(one.launch, TARGETS[target])
    return read_code(compiled, one.facts)


def instructions(found: Report) -> float:
    """Of the loop over whole tiles, for each score."""
    assert found.interior.instructions is not None
    return found.interior.instructions


def is_clean(found: Report) -> None:
    """No spills, fits, matrix units, no repeated work."""
    assert found.compiled.stack == 0
    assert not found.compiled.spilled
    assert found.whole.counts.local == 0
    assert found.compiled.fits
    assert found.occupancy.blocks >= 1
    assert found.whole.counts.matrix
    assert found.whole.counts.atomics == 0
    for loop in found.loops:
        assert loop.exponentials is not None
        # Four lanes share a row and each computes its factor exp(m - m'): 4 of 64 scores of a row,
        # or of 32 where masked tiles are taken in pieces.
        assert loop.exponentials <= (1.1 if loop.scores == found.whole.scores else 1.13)
        assert loop.mma_ratio in (None, pytest.approx(1.0))


@pytest.mark.parametrize(("target", "d"), CLASSES)
def test_k1_uses_matrix_units_without_spills_or_repeated_work(target: str, d: int) -> None:
    found = read("forward", layer(d), target)
    is_clean(found)
    assert len(found.loops) == 2  # whole tiles, and the last one
    share = found.whole.counts.wide_share(16)
    assert share is not None
    # On gfx942 the output is stored 8 bytes at a time, because its products leave it so.
    assert share >= (0.9 if target != "gfx942" else 0.75)


@pytest.mark.parametrize(("target", "d"), [("sm_80", 64), ("sm_90", 64), ("sm_90", 128)])
def test_k1_costs_at_most_a_tenth_more_than_the_plain_loop(target: str, d: int) -> None:
    yardstick = plain_specimen(TILES[target, d], d)
    compiled = compile_launch(yardstick.launch, TARGETS[target])
    plain = report(compiled, scores=yardstick.facts.scores, flops=yardstick.facts.flops)
    ours = read("forward", layer(d), target)
    assert plain.compiled.stack == ours.compiled.stack == 0
    assert instructions(ours) <= 1.10 * instructions(plain)


@pytest.mark.parametrize(
    "masked",
    [
        layer(64, Causal),
        layer(64, lambda: SlidingWindow(32, 1)),
        layer(64, lambda: Blocks1d(256)),
        layer(64, lengths=True),
    ],
    ids=lambda shape: shape.extras,
)
def test_masks_are_free_in_whole_tiles(masked: Shape) -> None:
    found = read("forward", masked, "sm_90")
    is_clean(found)
    assert instructions(found) <= 1.10 * instructions(read("forward", layer(64), "sm_90"))


def test_the_position_bias_is_cheap() -> None:
    found = read("forward", SHAPES["G4"], "sm_90")
    assert instructions(found) <= 1.35 * instructions(read("forward", layer(64), "sm_90"))


def test_wgmma_is_what_hopper_multiplies_with() -> None:
    found = read("forward", layer(64), "sm_90")
    assert all(mnemonic.startswith("HGMMA") for mnemonic in found.whole.counts.matrix)


def test_a_head_stride_that_is_no_multiple_of_16_keeps_loads_wide() -> None:
    counts = read("forward", layer(72), "sm_90").whole.counts
    share = counts.wide_share(16)
    assert share is not None
    assert share >= 0.9
    assert {access.width for access in counts.stores.others} == {4}  # the log-sum-exp


@pytest.mark.parametrize("kernel", ["backward_queries", "backward_keys"])
def test_k2_uses_matrix_units_without_spills_or_repeated_work(kernel: str) -> None:
    is_clean(read(kernel, layer(64), "sm_90"))


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_keys_that_begin_at_no_multiple_of_16_bytes_are_loaded_as_wide_as_their_strides_allow(
    target: str,
) -> None:
    (found,) = specimens(Layer(SHAPES["S3"]), "forward", TARGETS[target])  # heads of 30, packed
    counts = read_code(compile_launch(found.launch, TARGETS[target]), found.facts).whole.counts
    assert found.facts.widest == 4
    assert {access.width for access in counts.loads.tensors} == {4}


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_delta_loads_16_bytes_a_lane_of_narrow_parts_too(target: str) -> None:
    delta, *_ = specimens(Layer(SHAPES["D5"]), "backward", TARGETS[target])  # heads of 64 + 8
    counts = read_code(compile_launch(delta.launch, TARGETS[target]), delta.facts).whole.counts
    assert counts.wide_share(16) == 1

"""The package's kernels as real calls launch them."""

import pytest
import torch

from visgen_kernels.attention.arguments import Rows, head_parts, rows_of
from visgen_kernels.launch import Launch
from visgen_kernels.layouts import Sequence
from visgen_kernels.shapes import SHAPES, Shape
from visgen_kernels.static.analysis import Specimen
from visgen_kernels.static.compile import source_of
from visgen_kernels.static.specimens import Layer, specimens, widest_access
from visgen_kernels.static.targets import TARGETS

SM_90 = TARGETS["sm_90"]


@pytest.mark.parametrize("shape", [s for s in SHAPES.values() if s.kind == "attention"], ids=str)
def test_every_layer_can_be_launched_on_every_target(shape: Shape) -> None:
    layer = Layer(shape)
    for target in TARGETS.values():
        for found in specimens(layer, "forward", target):
            assert found.facts.programs == found.launch.programs > 0
            assert found.facts.direction == "forward"
            assert found.facts.work is not None
            source = source_of(found.launch, target)
            assert source.options["num_warps"] == found.facts.tile["warps"]


def named(id: str, direction: str = "forward") -> dict[str, Specimen]:
    found = specimens(Layer(SHAPES[id]), direction, SM_90)
    return {one.facts.kernel: one for one in found}


def test_a_backward_is_its_kernels_in_order() -> None:
    assert list(named("P1", "backward")) == ["delta", "backward_queries", "backward_keys"]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_programs_and_passes_cover_all_scores(direction: str) -> None:
    needed = SHAPES["P1"].pairs * SHAPES["P1"].score_matrices
    for found in named("P1", direction).values():
        facts = found.facts
        if facts.kernel == "delta":
            assert (facts.scores, facts.flops) == (None, None)
            continue
        assert facts.whole is not None
        assert facts.scores is not None
        assert facts.scores == facts.tile["block_m"] * facts.tile["block_n"]
        computed = facts.programs * (facts.whole + facts.masked) * facts.scores
        assert needed <= computed <= 1.05 * needed


def test_flops_of_a_tile_count_padded_head_dimensions() -> None:
    assert sum(head_parts(144)) == 144  # 128 + 16
    forward = named("P1")["forward"].facts
    assert forward.scores is not None
    assert forward.flops == 2 * forward.scores * 2 * 144
    keys = named("C2", "backward")["backward_keys"].facts  # d_v 60 becomes 64
    assert keys.scores is not None
    assert keys.flops == 2 * keys.scores * (2 * 144 + 2 * 64)


@pytest.mark.parametrize(("id", "widest"), [("W1", 16), ("D2", 16), ("G6", 8), ("S3", 4)])
def test_the_widest_access_is_what_head_strides_allow(id: str, widest: int) -> None:
    assert named(id)["forward"].facts.widest == widest


def test_vectors_do_not_make_rows_narrow() -> None:
    x = torch.empty(2, 8, 3, 64, device="meta", dtype=torch.bfloat16)
    row = rows_of(Sequence(), x)
    assert isinstance(row, Rows)
    assert widest_access(Launch(None, 1, ((row, 3), None, 7))) == 16

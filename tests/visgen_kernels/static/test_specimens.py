"""The package's kernels as real calls launch them."""

import pytest
import torch

from visgen_kernels.attention.arguments import Rows, rows_of
from visgen_kernels.attention.tiles import Tile
from visgen_kernels.launch import Launch
from visgen_kernels.layouts import Sequence
from visgen_kernels.shapes import SHAPES, Shape
from visgen_kernels.static.compile import source_of
from visgen_kernels.static.specimens import BUILDERS, Layer, specimen, widest_access
from visgen_kernels.static.targets import TARGETS

TILE = Tile(64, 32, 4, 2)


@pytest.mark.parametrize("shape", [s for s in SHAPES.values() if s.kind == "attention"], ids=str)
def test_every_layer_can_be_launched_on_every_target(shape: Shape) -> None:
    layer = Layer(shape)
    for kernel in BUILDERS:
        found = specimen(kernel, layer, TILE)
        assert found.facts.programs == found.launch.programs > 0
        for target in TARGETS.values():
            source = source_of(found.launch, target)
            assert source.options["num_warps"] == 4


def test_programs_and_passes_cover_all_scores() -> None:
    layer = Layer(SHAPES["P1"])
    for kernel in ("forward", "backward_queries", "backward_keys"):
        found = specimen(kernel, layer, TILE)
        assert found.facts.scores == 64 * 32
        assert found.facts.whole is not None
        computed = found.launch.programs * (found.facts.whole + found.facts.masked) * 64 * 32
        needed = SHAPES["P1"].pairs * SHAPES["P1"].score_matrices
        assert needed <= computed <= 1.05 * needed


def test_flops_of_a_tile_count_padded_head_dimensions() -> None:
    found = specimen("forward", Layer(SHAPES["P1"]), TILE)  # 144 = 128 + 16
    assert found.facts.flops == 2 * 64 * 32 * 2 * 144
    found = specimen("backward_keys", Layer(SHAPES["C2"]), TILE)  # d_v 60 becomes 64
    assert found.facts.flops == 2 * 64 * 32 * (2 * 144 + 2 * 64)


@pytest.mark.parametrize(("id", "widest"), [("W1", 16), ("D1", 16), ("G6", 8), ("S2", 4)])
def test_the_widest_access_is_what_head_strides_allow(id: str, widest: int) -> None:
    assert specimen("forward", Layer(SHAPES[id]), TILE).facts.widest == widest


def test_vectors_do_not_make_rows_narrow() -> None:
    x = torch.empty(2, 8, 3, 64, device="meta", dtype=torch.bfloat16)
    row = rows_of(Sequence(), x)
    assert isinstance(row, Rows)
    assert widest_access(Launch(None, 1, ((row, 3), None, 7))) == 16

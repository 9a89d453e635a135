"""The package's kernels as real calls launch them."""

import pytest

from visgen_kernels.attention.tiles import Tile
from visgen_kernels.shapes import SHAPES, Shape
from visgen_kernels.static.compile import source_of
from visgen_kernels.static.specimens import Layer, plain_specimen, specimens
from visgen_kernels.static.targets import TARGETS


@pytest.mark.parametrize("shape", SHAPES.values(), ids=lambda shape: shape.id)
def test_every_layer_can_be_launched_on_every_target(shape: Shape) -> None:
    layer = Layer(shape)
    direction = "forward" if shape.kind == "attention" else shape.kind
    for target in TARGETS.values():
        for found in specimens(layer, direction, target):
            assert found.facts.programs == found.launch.programs > 0
            assert found.facts.direction == direction
            assert found.facts.work is not None
            source = source_of(found.launch, target)
            assert source.options["num_warps"] == found.facts.tile["warps"]


def kernels(id: str) -> list[str]:
    found = specimens(Layer(SHAPES[id], "fp32"), "backward", TARGETS["sm_90"])
    return [one.facts.kernel for one in found]


def test_a_backward_writes_all_gradients() -> None:
    assert kernels("W1") == ["delta", "backward_queries", "backward_keys"]
    assert kernels("G2")[-1] == "bias_gradient"


def test_the_yardstick_is_a_launch_too() -> None:
    found = plain_specimen(Tile(64, 32, 4, 2), 64, n=1024, heads=8)
    assert found.launch.programs == 8 * 16
    assert found.facts.whole == 32
    assert source_of(found.launch, TARGETS["gfx942"]).constants[(6,)] == 64

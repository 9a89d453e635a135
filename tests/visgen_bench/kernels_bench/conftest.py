"""Small layers of every kind, for comparing ways over them."""

import pytest

from visgen_kernels import (
    Axis,
    BlockList,
    Blocks1d,
    Blocks2d,
    Causal,
    SameGroup,
    SlidingWindow,
    Windows,
)
from visgen_kernels.shapes import Shape

_SMALL = {
    shape.id: shape
    for shape in (
        Shape(id="bias", what="", batch=2, grid=(9,), heads=2, d=5, bias=(3, 3)),
        Shape(id="axis", what="", batch=2, grid=(3, 4), heads=2, d=6, layout=Axis(1)),
        Shape(id="part", what="", batch=2, grid=(7,), heads=1, stored_heads=2, d=4),
        Shape(id="key bias", what="", batch=2, grid=(6,), heads=2, d=4, key_bias=True),
        Shape(
            id="key bias of windows", what="", batch=1, grid=(4, 4), heads=2, d=3,
            layout=Windows(2, 2), key_bias=True,
        ),
        Shape(id="causal", what="", batch=2, grid=(6,), heads=2, d=4, mask=Causal),
        Shape(
            id="causal over frames", what="", batch=1, grid=(6,), heads=2, d=4,
            mask=lambda: Causal(2),
        ),
        Shape(
            id="window", what="", batch=1, grid=(11,), heads=2, d=4,
            mask=lambda: SlidingWindow(2, 1),
        ),
        Shape(
            id="cross", what="", batch=3, grid=(5,), key_grid=(7,), heads=2, d=4, value_d=3,
            separate=True, key_lengths=True,
        ),
        Shape(
            id="blocks", what="", batch=2, grid=(12,), heads=2, d=4, mask=lambda: Blocks1d(4)
        ),
        Shape(
            id="blocks of a map", what="", batch=2, grid=(24,), heads=2, d=4,
            mask=lambda: Blocks2d((4, 6), (2, 3), (1, 2)),
        ),
        Shape(
            id="block list", what="", batch=1, grid=(64,), heads=1, d=4,
            mask=lambda: BlockList.strided(4, 4, 4, block=8),
        ),
        Shape(
            id="shifted", what="", batch=2, grid=(4, 4), heads=2, d=3, layout=Windows(2, 2),
            bias=(2, 2), mask=lambda: SameGroup.shifted((4, 4), (2, 2), 1),
        ),
    )
}  # fmt: skip
_CODES = Shape(
    id="codes", what="", batch=2, grid=(5,), key_grid=(7,), heads=1, d=3, separate=True,
    kind="codebook",
)  # fmt: skip


@pytest.fixture
def layers() -> dict[str, Shape]:
    """Layers by what is special about them."""
    return _SMALL


@pytest.fixture
def codes() -> Shape:
    """A codebook of seven codes."""
    return _CODES

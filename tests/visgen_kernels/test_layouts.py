"""Layouts are views of sequences, and invert exactly."""

import pytest
import torch

from visgen_kernels import Axis, Sequence, Windows
from visgen_kernels.layouts import Layout, decode


@pytest.mark.parametrize(
    ("layout", "grid"),
    [
        (Sequence(), (7,)),
        (Axis(1), (3, 5)),
        (Axis(2), (3, 5)),
        (Axis(2), (2, 5, 3)),
        (Windows(2, 3), (4, 9)),
        (Windows(4, 1), (4, 3)),
    ],
)
def test_join_inverts_split(layout: Layout, grid: tuple[int, ...]) -> None:
    x = torch.arange(2 * 60 * 8).float()[: 2 * torch.Size(grid).numel() * 8].view(2, *grid, 4, 2)
    split = layout.split(x, len(grid))
    assert split.shape == (2 * layout.sequences(grid), layout.length(grid), 4, 2)
    assert torch.equal(layout.join(split, 2, grid), x)


def test_axis_gathers_what_differs_in_that_axis_only() -> None:
    x = torch.arange(2 * 3 * 5 * 4).view(2, 3, 5, 4, 1, 1)
    split = Axis(2).split(x, 3)
    expected = [x[b, t, :, s] for b in range(2) for t in range(3) for s in range(4)]
    assert torch.equal(split, torch.stack(expected))


def test_windows_and_their_tokens_are_in_raster_order() -> None:
    x = torch.arange(4 * 6).view(1, 4, 6, 1, 1)
    split = Windows(2, 3).split(x, 2).flatten(1)
    expected = [x[0, y : y + 2, c : c + 3].flatten() for y in (0, 2) for c in (0, 3)]
    assert torch.equal(split, torch.stack(expected))


def test_axis_over_the_last_grid_axis_is_a_view() -> None:
    x = torch.zeros(2, 3, 5, 4, 2)
    assert Axis(2).split(x, 2).data_ptr() == x.data_ptr()


@pytest.mark.parametrize("layout", [Sequence(), Axis(2), Windows(2, 3)])
def test_layout_survives_its_encoding(layout: Layout) -> None:
    assert decode(layout.encode()) == layout


@pytest.mark.parametrize(
    ("layout", "grid", "words"),
    [
        (Sequence(), (2, 3), "Axis"),
        (Axis(3), (2, 3), "1 to 2"),
        (Axis(0), (2, 3), "1 to 2"),
        (Windows(2, 2), (4, 5), "cannot be cut"),
        (Windows(2, 2), (4,), r"\(b, y, x, h, d\)"),
    ],
)
def test_grid_that_does_not_fit_is_named(layout: Layout, grid: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        layout.check(grid)


def test_window_without_area_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Windows(0, 4)

import pytest
import torch

from visgen_bench.extractors.images import check_images
from visgen_bench.metrics.errors import ImageRangeError


def test_uint8_batches_pass_unchanged() -> None:
    images = torch.zeros(2, 3, 5, 7, dtype=torch.uint8)
    assert check_images(images) is images
    assert len(check_images(images[:0])) == 0


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [(-1.0, 1.0, r"\[-1, 1\].*127\.5"), (0.0, 1.0, r"\[0, 1\].*255"), (0.0, 255.0, "from 0 to")],
)
def test_floats_are_refused_with_the_range_they_have(low: float, high: float, says: str) -> None:
    images = torch.linspace(low, high, 2 * 3 * 16).view(2, 3, 4, 4)
    with pytest.raises(ImageRangeError, match=says):
        check_images(images)


def test_nan_is_named() -> None:
    images = torch.zeros(2, 3, 4, 4)
    images[0, 0, 0, 0] = float("nan")
    with pytest.raises(ImageRangeError, match="NaN"):
        check_images(images)


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((2, 8, 8, 3), r"permute\(0, 3, 1, 2\)"),
        ((3, 8, 8), r"images\[None\]"),
        ((8, 8, 3), r"images\[None\]"),
        ((2, 1, 8, 8), "grey repeated 3 times"),
        ((2, 4, 3, 8, 8), r"give \(n, 3, h, w\)"),
        ((2, 3, 0, 8), "at least 1"),
    ],
)
def test_other_layouts_are_refused_with_the_fix(shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ImageRangeError, match=says):
        check_images(torch.zeros(shape, dtype=torch.uint8))


def test_other_integers_are_refused() -> None:
    with pytest.raises(ImageRangeError, match="int64"):
        check_images(torch.zeros(2, 3, 4, 4, dtype=torch.int64))

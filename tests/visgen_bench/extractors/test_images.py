import pytest
import torch

from visgen_bench.extractors.images import check_clips, check_images
from visgen_bench.metrics.errors import ClipShapeError, ImageRangeError


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


def clips(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


def test_clips_of_the_right_kind_pass_as_they_are() -> None:
    given = clips(2, 5, 3, 8, 9)
    assert check_clips(given) is given
    assert check_clips(given, 5) is given
    assert check_clips(clips(2, 3, 3, 3, 3), 3).shape == (2, 3, 3, 3, 3)
    assert len(check_clips(given[:0])) == 0


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((5, 3, 8, 8), r"clips\[None\]"),
        ((2, 5, 8, 9, 3), r"channels last.*permute\(0, 1, 4, 2, 3\)"),
        ((2, 3, 5, 8, 9), r"channels first.*permute\(0, 2, 1, 3, 4\)"),
        ((2, 5, 1, 8, 8), "grey repeated 3 times"),
        ((8, 8), r"give \(n, t, 3, h, w\)"),
        ((2, 0, 3, 8, 8), "at least 1"),
        ((2, 5, 3, 0, 8), "at least 1"),
    ],
)
def test_clips_of_another_shape_say_what_they_look_like(shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(ClipShapeError, match=says):
        check_clips(clips(*shape))


def test_clips_of_another_length_or_type_are_refused() -> None:
    with pytest.raises(ClipShapeError, match="have 5 frames, 16 were expected"):
        check_clips(clips(2, 5, 3, 8, 8), 16)
    with pytest.raises(ImageRangeError, match=r"clips are torch\.float32 in \[0, 1\]"):
        check_clips(torch.rand(1, 2, 3, 4, 4))
    with pytest.raises(ImageRangeError, match=r"clips are torch\.int64"):
        check_clips(torch.zeros(1, 2, 3, 4, 4, dtype=torch.int64))

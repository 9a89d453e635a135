"""Camera moves: the window stays inside the photograph and goes where the class says."""

import hashlib
import math

import numpy as np
import pytest
import torch
from PIL import Image

from visgen.data.camera_moves import (
    CLASSES,
    PANS,
    PHOTOGRAPHS,
    CameraMoves,
    Move,
    boxes,
    open_camera_moves,
    read_photograph,
)
from visgen.data.dataset import DataError, DataMissing
from visgen.data.videos import Clip, VideoData

SIDE, FRAMES = 32, 8


@pytest.fixture(scope="module")
def data() -> VideoData:
    return opened()


def opened(side: int = SIDE, frames: int = FRAMES, seed: int = 0) -> VideoData:
    return open_camera_moves(Clip(frames=frames, size=(side, side)), seed=seed)


def source_of(data: VideoData) -> CameraMoves:
    assert isinstance(data.source, CameraMoves)
    return data.source


def shift(first: torch.Tensor, second: torch.Tensor) -> tuple[int, int]:
    """How far the picture moved between two frames, by the peak of their phase correlation."""
    window = np.hanning(SIDE)[:, None] * np.hanning(SIDE)
    grey = [frame.double().mean(dim=0).numpy() for frame in (first, second)]
    a, b = (np.fft.fft2((frame - frame.mean()) * window) for frame in grey)
    cross = b * a.conj()
    peak = np.fft.ifft2(cross / (np.abs(cross) + 1e-3)).real
    y, x = np.unravel_index(peak.argmax(), peak.shape)
    return (int(y) + SIDE // 2) % SIDE - SIDE // 2, (int(x) + SIDE // 2) % SIDE - SIDE // 2


def test_clips_are_bytes_of_the_asked_size_with_ten_classes(data: VideoData) -> None:
    videos = data.videos(torch.arange(4))
    assert videos.shape == (4, FRAMES, 3, SIDE, SIDE)
    assert videos.dtype == torch.uint8
    assert videos.is_contiguous()
    assert data.classes == CLASSES
    assert len(CLASSES) == 10
    for split in ("train", "test"):
        labels = data.labels(data.split(split))
        assert labels is not None
        assert labels.unique().tolist() == list(range(10))


def test_labels_are_the_moves_that_are_drawn(data: VideoData) -> None:
    indices = torch.arange(0, len(data), 50)
    labels = data.labels(indices)
    assert labels is not None
    assert [move.kind for move in source_of(data).moves(indices)] == labels.tolist()


def test_train_and_test_look_at_different_photographs(data: VideoData) -> None:
    names = {split: {file for *_, file in some} for split, some in PHOTOGRAPHS.items()}
    assert names["test"] == {"chelsea.png", "flower.jpg"}
    assert not names["train"] & names["test"]
    pictures = source_of(data).photographs
    contents = {
        split: {hashlib.sha256(one.tobytes()).digest() for one in some}
        for split, some in pictures.items()
    }
    assert [len(contents[split]) for split in ("train", "test")] == [6, 2]
    assert not contents["train"] & contents["test"]
    for split, count in (("train", 6), ("test", 2)):
        moves = source_of(data).moves(data.split(split)[:300])
        assert {move.photograph for move in moves} == set(range(count))


def test_windows_stay_inside_the_photograph(data: VideoData) -> None:
    for split in ("train", "test"):
        for move in source_of(data).moves(data.split(split)[:1000]):
            columns, rows = source_of(data).photographs[split][move.photograph].size
            for left, top, right, bottom in boxes(move, (columns, rows), FRAMES):
                assert 0 <= left < right <= columns
                assert 0 <= top < bottom <= rows
                assert right - left == pytest.approx(bottom - top)
                assert right - left <= 2 * SIDE + 1e-9


@pytest.mark.parametrize("place", [0.0, 0.3, 1.0])
def test_a_pan_goes_evenly_the_way_of_its_class(place: float) -> None:
    turn = 0
    for kind, direction in enumerate(PANS.values()):
        move = Move(kind, 0, window=40.0, speed=3.0, place=(place, place))
        table = np.array(boxes(move, (500, 400), 10))
        assert math.hypot(*direction) == pytest.approx(1)
        assert np.allclose(np.diff(table[:, 1]), 3 * direction[0])
        assert np.allclose(np.diff(table[:, 0]), 3 * direction[1])
        assert np.allclose(table[:, 2] - table[:, 0], 40)
        # y points down: each class is an eighth of a turn clockwise of the one before.
        assert math.atan2(*direction) % math.tau == pytest.approx(turn * math.tau / 8)
        turn += 1
    assert turn == 8


def test_the_extreme_places_touch_the_edges() -> None:
    diagonal = CLASSES.index("pan up left")
    first = np.array(boxes(Move(diagonal, 0, 40.0, 3.0, (0.0, 0.0)), (500, 400), 10))
    last = np.array(boxes(Move(diagonal, 0, 40.0, 3.0, (1.0, 1.0)), (500, 400), 10))
    assert first[:, :2].min(axis=0).tolist() == [0, 0]
    assert last[:, 2:].max(axis=0).tolist() == pytest.approx([500, 400])


def test_zooming_out_is_zooming_in_backwards() -> None:
    inward, outward = (
        np.array(boxes(Move(CLASSES.index(name), 0, 40.0, 3.0, (0.3, 0.6)), (500, 400), 10))
        for name in ("zoom in", "zoom out")
    )
    assert np.allclose(inward, outward[::-1])
    widths = inward[:, 2] - inward[:, 0]
    assert widths[0] == pytest.approx(40)
    assert np.allclose(widths[:-1] / widths[1:], 1.02)
    assert np.allclose((inward[:, 2] + inward[:, 0]) / 2, (inward[0, 2] + inward[0, 0]) / 2)


def test_the_picture_moves_against_the_camera(data: VideoData) -> None:
    # Both photographs of the test split have texture nearly everywhere; frames three apart.
    indices = data.split("test")[:120]
    moves, videos = source_of(data).moves(indices), data.videos(indices)
    right, total = 0, 0
    for video, move in zip(videos, moves, strict=True):
        if move.kind >= len(PANS) or video.double().std() < 20:
            continue
        way = np.array(list(PANS.values())[move.kind])
        expected = -3 * move.speed * SIDE / move.window * way
        right += int(np.abs(np.array(shift(video[0], video[3])) - expected).max() < 1)
        total += 1
    assert total > 50
    assert right / total > 0.9


def test_a_window_of_whole_pixels_is_the_photograph_itself() -> None:
    picture = read_photograph(*PHOTOGRAPHS["test"][0]).pixels
    box = boxes(Move(CLASSES.index("pan right"), 0, 32.0, 2.0, (0.0, 0.0)), picture.size, 4)[3]
    assert box == (6, 0, 38, 32)
    seen = picture.resize((32, 32), Image.Resampling.BILINEAR, box=box)
    assert np.array_equal(np.asarray(seen), np.asarray(picture)[:32, 6:38])


def test_a_clip_is_the_same_alone_and_in_any_batch(data: VideoData) -> None:
    indices = (11_023, 5, 5, 10_000)
    together = data.videos(torch.tensor(indices))
    for row, index in enumerate(indices):
        assert torch.equal(data.videos(torch.tensor([index]))[0], together[row])


def test_splits_follow_each_other(data: VideoData) -> None:
    assert torch.equal(data.split("train"), torch.arange(10_000))
    assert torch.equal(data.split("test"), torch.arange(10_000, 11_024))
    assert len(data) == 11_024
    assert data.captions(torch.arange(3)) is None
    assert data.actions(torch.arange(3)) is None


def test_fingerprint_and_clips_depend_on_the_seed_and_the_kind_of_clip(data: VideoData) -> None:
    again, other, shorter = opened(), opened(seed=1), opened(frames=4)
    assert data.fingerprint == again.fingerprint
    assert len({one.fingerprint for one in (data, other, shorter)}) == 3
    assert not torch.equal(data.videos(torch.arange(4)), other.videos(torch.arange(4)))


def test_photographs_that_are_not_there_are_named_with_the_command() -> None:
    with pytest.raises(DataMissing, match="no_such_package, which is not installed: pip install"):
        read_photograph("no_such_package", "data", "chelsea.png")
    with pytest.raises(DataMissing, match=r"gone\.png: pip install \"visgen-harness\[photos\]\""):
        read_photograph("skimage", "data", "gone.png")
    with pytest.raises(
        DataError, match=r"is damaged .* reinstall sklearn: pip install scikit-lear"
    ):
        read_photograph("sklearn", ".", "__init__.py")


def test_clips_that_cannot_be_drawn_are_refused_in_words() -> None:
    longest = open_camera_moves(Clip(frames=44, size=(64, 64)))
    assert longest.videos(torch.tensor([10_000])).shape == (1, 44, 3, 64, 64)
    with pytest.raises(DataError, match="With 64 pixels there may be 44 frames, with 45 frames 62"):
        opened(64, 45)
    with pytest.raises(DataError, match="With 200 pixels there may be 0 frames"):
        opened(200, 4)
    with pytest.raises(DataError, match=r"camera-moves draws square clips .* got 64x32"):
        open_camera_moves(Clip(frames=4, size=(64, 32)))
    with pytest.raises(DataError, match="got stride 2"):
        open_camera_moves(Clip(frames=4, size=(64, 64), stride=2))

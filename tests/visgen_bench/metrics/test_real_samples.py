from dataclasses import replace

import pytest
import torch
from torch import Tensor

from visgen.data.videos import Clip, VideoData
from visgen_bench.metrics.errors import ClipShapeError, ImageRangeError, StateError
from visgen_bench.metrics.real_samples import RealSamples


def noise(n: int, side: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def test_clips_have_a_key_of_their_own_and_images_keep_theirs() -> None:
    clips = noise(8).unflatten(0, (4, 2))
    real = RealSamples.of(clips, "a" * 64, "test")
    assert (real.media, real.frames, real.n) == ("video", 2, 4)
    frames = real.as_frames()
    assert (frames.media, frames.frames, frames.n) == ("frame", 2, 8)
    assert torch.equal(torch.cat(list(frames.checked())), noise(8))
    images = RealSamples.of(noise(8), "a" * 64, "test")
    assert set(images.identity()) == {"fingerprint", "split", "n", "image_size", "selection"}
    assert frames.identity() != images.identity()
    assert frames.identity() != replace(frames, frames=4).identity()


def test_clips_of_a_video_set_are_read_in_the_order_of_the_split() -> None:
    stored = noise(12).unflatten(0, (6, 2))

    class Source:
        def read(self, indices: Tensor, seeds: Tensor | None) -> Tensor:
            return (
                stored[indices] if seeds is None else stored[indices] + seeds.max().to(torch.uint8)
            )

        def captions(self, indices: Tensor) -> list[str] | None:
            return None

        def actions(self, indices: Tensor, seeds: Tensor | None) -> Tensor | None:
            return None

    split = torch.tensor([4, 1, 3])
    data = VideoData(
        name="made", fingerprint="b" * 64, splits={"test": split},
        clip=Clip(frames=2, size=(8, 8)), channels=3, levels=256, source=Source(), count=6,
    )  # fmt: skip
    real = RealSamples.from_videos(data, "test", batch=2)
    assert torch.equal(torch.cat(list(real.checked())), stored[split])
    assert (real.n, real.frames, real.image_size) == (3, 2, (8, 8))
    drawn = replace(data, clip=Clip(frames=2, size=(8, 8), policy="random"))
    one, two = (RealSamples.from_videos(drawn, "test", torch.arange(3) + k) for k in range(2))
    assert one.identity() != two.identity()


def test_batches_of_another_kind_or_number_are_refused() -> None:
    clips = RealSamples.of(noise(6).unflatten(0, (3, 2)), "a" * 64, "test")
    with pytest.raises(ClipShapeError, match="have 2 frames, 4 were expected"):
        list(replace(clips, frames=4).checked())
    with pytest.raises(ImageRangeError):
        list(replace(clips, media="image").checked())
    with pytest.raises(StateError, match="hold 5 clips and gave 3"):
        list(replace(clips, n=5).checked())
    with pytest.raises(StateError, match="of the kind image"):
        RealSamples.of(noise(2), "a" * 64, "test").as_frames()

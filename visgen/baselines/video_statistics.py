"""Reference generators for video: what simple statistics of the training clips reach.

    real-videos       training clips themselves: the floor of every metric
    shuffled-videos   training clips whose pixels change places, in all frames alike
    mean-clip         the mean of the training clips, for every seed
    copy-last-frame   the given frames (one; of `copy-last-of-4` four), then the last of them again

They are fitted, not built, and read clips by index when they are asked: no set is held in memory.
n clips, t frames, h rows, w columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from visgen.baselines.predictor import first_frames
from visgen.baselines.statistical import real_subset
from visgen.data.videos import VideoData
from visgen.seeds import integers, sample_seeds, uniform
from visgen.tasks import refuse_condition

_READ = 64  # clips at a time


@dataclass(frozen=True, kw_only=True)
class RealVideosConfig:
    """Training clips as if they were generated."""

    family: ClassVar[str] = "reference"
    task: ClassVar[str] = "video-generation"
    clip_size: ClassVar[None] = None  # the data's

    def fit(self, data: VideoData, *, run_seed: int = 0) -> RealVideos:
        """Keep the set open; `run_seed` is the run whose samples shall not repeat."""
        return RealVideos(data, run_seed)


class RealVideos(nn.Module):
    """Draws training clips: without replacement in the run it was fitted for.

    Sample i of that run is clip i of `real_subset`; any other seed is hashed to a clip.
    """

    known_seeds: Tensor
    known_clips: Tensor

    def __init__(self, data: VideoData, run_seed: int) -> None:
        super().__init__()
        self.data, self.clip_size = data, (data.clip.frames, *data.clip.size)
        train = _training(data)
        ordered, place = sample_seeds(run_seed, torch.arange(len(train))).sort()
        self.register_buffer("known_seeds", ordered)
        self.register_buffer("known_clips", real_subset(train, run_seed, len(train))[place])

    def networks(self) -> dict[str, nn.Module]:
        """Nothing is trained."""
        return {}

    def generate(self, seeds: Tensor, condition: None = None, sampling: None = None) -> Tensor:
        """Clips for seeds int64 (n,): uint8 (n, t, 3, h, w)."""
        refuse_condition("real-videos", condition)
        return self.drawn(seeds)

    def drawn(self, seeds: Tensor) -> Tensor:
        """The training clips of seeds int64 (n,): uint8 (n, t, 3, h, w), on the seeds' device."""
        device, seeds = seeds.device, seeds.to(self.known_seeds.device)
        place = torch.searchsorted(self.known_seeds, seeds).clamp(max=len(self.known_seeds) - 1)
        hashed = integers(seeds, "real-images", 0, len(self.known_seeds), ())
        place = torch.where(self.known_seeds[place] == seeds, place, hashed)
        return self.data.videos(self.known_clips[place].cpu(), seeds.cpu()).to(device)


@dataclass(frozen=True, kw_only=True)
class ShuffledVideosConfig:
    """Training clips without structure between pixels, but with all of it between frames."""

    family: ClassVar[str] = "reference"
    task: ClassVar[str] = "video-generation"
    clip_size: ClassVar[None] = None  # the data's

    def fit(self, data: VideoData, *, run_seed: int = 0) -> ShuffledVideos:
        """Keep the set open; `run_seed` as for `RealVideosConfig`."""
        return ShuffledVideos(data, run_seed)


class ShuffledVideos(nn.Module):
    """The clips of `RealVideos`, each with its pixels in an order of its own."""

    def __init__(self, data: VideoData, run_seed: int) -> None:
        super().__init__()
        self.real = RealVideos(data, run_seed)
        self.clip_size = self.real.clip_size

    def networks(self) -> dict[str, nn.Module]:
        """Nothing is trained."""
        return {}

    def generate(self, seeds: Tensor, condition: None = None, sampling: None = None) -> Tensor:
        """Clips for seeds int64 (n,): uint8 (n, t, 3, h, w)."""
        refuse_condition("shuffled-videos", condition)
        clips = self.real.drawn(seeds)
        flat = clips.flatten(3)  # (n, t, 3, h w)
        order = uniform(seeds, "shuffled-videos", (flat.shape[-1],)).argsort(dim=1, stable=True)
        return flat.gather(3, order[:, None, None].expand_as(flat)).view_as(clips)


@dataclass(frozen=True, kw_only=True)
class MeanClipConfig:
    """The mean of all training clips."""

    family: ClassVar[str] = "reference"
    task: ClassVar[str] = "video-generation"
    clip_size: ClassVar[None] = None  # the data's

    def fit(self, data: VideoData, *, run_seed: int = 0) -> MeanClip:
        """Read every training clip once; where random clips begin hangs on `run_seed`."""
        train = _training(data)
        seeds = sample_seeds(run_seed, torch.arange(len(train)))
        total = torch.zeros((data.clip.frames, 3, *data.clip.size), dtype=torch.float64)
        for some, own in zip(train.split(_READ), seeds.split(_READ), strict=True):
            total += data.videos(some, own).sum(0, dtype=torch.int64)
        return MeanClip((total / len(train) + 0.5).floor().to(torch.uint8))


class MeanClip(nn.Module):
    """One clip for every seed."""

    clip: Tensor

    def __init__(self, clip: Tensor) -> None:
        super().__init__()
        self.clip_size = (clip.shape[0], clip.shape[2], clip.shape[3])
        self.register_buffer("clip", clip)  # uint8 (t, 3, h, w), rounded half up

    def networks(self) -> dict[str, nn.Module]:
        """Nothing is trained."""
        return {}

    def generate(self, seeds: Tensor, condition: None = None, sampling: None = None) -> Tensor:
        """Clips for seeds int64 (n,): uint8 (n, t, 3, h, w), all the same."""
        refuse_condition("mean-clip", condition)
        return self.clip.expand(len(seeds), -1, -1, -1, -1).contiguous()


@dataclass(frozen=True, kw_only=True)
class CopyLastFrameConfig:
    """What a prediction has to beat."""

    context: int = 1  # frames that it is given
    conditions: ClassVar[tuple[str, ...]] = ("frames",)
    requires: ClassVar[tuple[str, ...]] = ("frames",)  # it draws nothing without
    family: ClassVar[str] = "reference"
    task: ClassVar[str] = "video-generation"
    clip_size: ClassVar[None] = None  # the data's

    def fit(self, data: VideoData, *, run_seed: int = 0) -> CopyLastFrame:
        """Take over the clips' size; nothing is read, and `run_seed` is not used."""
        del run_seed
        return CopyLastFrame((data.clip.frames, *data.clip.size))


class CopyLastFrame(nn.Module):
    """Given frames, then the last one repeated; seeds are only counted."""

    def __init__(self, clip_size: tuple[int, int, int]) -> None:
        super().__init__()
        self.clip_size = clip_size

    def networks(self) -> dict[str, nn.Module]:
        """Nothing is trained."""
        return {}

    def generate(self, seeds: Tensor, condition: object = None, sampling: None = None) -> Tensor:
        """Clips uint8 (n, t, 3, h, w).

        Raises:
            ValueError: without FirstFrames, or for frames of another size or more than a clip's.
        """
        given = first_frames(condition, len(seeds), "copy-last-frame")
        frames, rows, columns = self.clip_size
        if not 1 <= given.shape[1] <= frames or given.shape[3:] != (rows, columns):
            raise ValueError(
                f"copy-last-frame goes on from 1 to {frames} frames of {rows}x{columns} pixels, "
                f"got first frames of shape {tuple(given.shape)}."
            )
        copies = given[:, -1:].expand(-1, frames - given.shape[1], -1, -1, -1)
        return torch.cat([given, copies], 1)


def _training(data: VideoData) -> Tensor:
    train = data.split("train")
    if not len(train):
        raise ValueError(f"{data.name} has no training clips; a reference generator wants some.")
    return train


PRESETS = {
    "real-videos": RealVideosConfig(),
    "shuffled-videos": ShuffledVideosConfig(),
    "mean-clip": MeanClipConfig(),
    "copy-last-frame": CopyLastFrameConfig(),
    "copy-last-of-4": CopyLastFrameConfig(context=4),
}

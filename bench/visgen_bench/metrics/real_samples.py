"""Real images, clips or frames of clips as a stream that can be read more than once.

What a stream is goes into the keys under which statistics of it are stored: the data's fingerprint,
split, number, size and order, and for clips how long they are. Images have no more in their keys
than they had before there were clips.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from visgen_bench.extractors.images import check_clips, check_images
from visgen_bench.metrics.errors import ProtocolError, StateError
from visgen_bench.metrics.protocol import Media, Protocol

if TYPE_CHECKING:
    from visgen.data import Data
    from visgen.data.videos import VideoData


@dataclass(frozen=True, kw_only=True)
class RealSamples:
    """A stream of real images or clips that can be read more than once, and its identity.

    Attributes:
        batches: Gives a fresh iterator of uint8 (b, 3, h, w), or (b, t, 3, h, w) for clips; batches
            may differ in size (then b is 1).
        n: Images, clips, or frames of clips, in all.
        fingerprint: Hash of the data's content; for clips, of their kind too.
        split: Which part of it.
        image_size: (h, w) they were brought to, or None for as stored; part of the identity.
        selection: Which images of the split, if not all ("first 1000").
        media: What a batch holds.
        frames: Of a clip; of the clips that single frames were taken from; 1 for images.
    """

    batches: Callable[[], Iterable[Tensor]]
    n: int
    fingerprint: str
    split: str
    image_size: tuple[int, int] | None = None
    selection: str = "all"
    media: Media = "image"
    frames: int = 1

    @classmethod
    def of(cls, samples: Tensor, fingerprint: str, split: str, batch: int = 256) -> Self:
        """From images in memory, uint8 (n, 3, h, w), or clips, uint8 (n, t, 3, h, w)."""
        size = (samples.shape[-2], samples.shape[-1])
        clips = samples.ndim == 5
        return cls(
            batches=lambda: samples.split(batch),
            n=len(samples),
            fingerprint=fingerprint,
            split=split,
            image_size=size,
            media="video" if clips else "image",
            frames=samples.shape[1] if clips else 1,
        )

    @classmethod
    def from_data(
        cls, data: Data, split: str, size: tuple[int, int] | None = None, batch: int = 256
    ) -> Self:
        """From a split of a data set, brought to `size` if one is given."""
        indices = data.split(split)
        return cls(
            batches=lambda: (data.images(part, size) for part in indices.split(batch)),
            n=len(indices),
            fingerprint=data.fingerprint,
            split=split,
            image_size=size or data.size,
        )

    @classmethod
    def from_videos(
        cls,
        data: VideoData,
        split: str,
        seeds: Tensor | None = None,
        batch: int = 16,
        *,
        first: Tensor | None = None,
    ) -> Self:
        """From a split of a video set.

        Args:
            data: The set.
            split: Its name, which goes into the identity.
            seeds: int64 (n,), place clips of the policy `random`.
            batch: Clips that are read together.
            first: int64 (n,), the clips of the split that are meant, if not all.
        """
        indices = data.split(split) if first is None else first
        selection = "all" if first is None else f"first {len(first)}"
        if seeds is not None:
            drawn = hashlib.sha256(seeds.cpu().numpy().tobytes()).hexdigest()
            selection = f"{selection}, seeds {drawn[:16]}"

        def batches() -> Iterator[Tensor]:
            for part in torch.arange(len(indices)).split(batch):
                yield data.videos(indices[part], None if seeds is None else seeds[part])

        return cls(
            batches=batches,
            n=len(indices),
            fingerprint=data.fingerprint,
            split=split,
            image_size=data.clip.size,
            selection=selection,
            media="video",
            frames=data.clip.frames,
        )

    def as_frames(self) -> RealSamples:
        """Every frame of these clips as a picture: frame f of clip i is number i * frames + f."""
        if self.media != "video":
            raise StateError(f"only clips have frames; these are of the kind {self.media}.")
        clips = self.checked
        return replace(
            self,
            batches=lambda: (batch.flatten(0, 1) for batch in clips()),
            n=self.n * self.frames,
            media="frame",
        )

    def identity(self) -> dict[str, Any]:
        """What a cache key takes from the data."""
        size = list(self.image_size) if self.image_size else None
        found: dict[str, Any] = {
            "fingerprint": self.fingerprint,
            "split": self.split,
            "n": self.n,
            "image_size": size,
            "selection": self.selection,
        }
        if self.media == "image":
            return found
        return found | {"media": self.media, "frames": self.frames}

    def checked(self) -> Iterator[Tensor]:
        """The batches, after checks of range, shape and number."""
        seen = 0
        for batch in self.batches():
            seen += len(self.check(batch))
            yield batch
        if seen != self.n:
            raise StateError(
                f'split "{self.split}" was to hold {self.n} {NOUN[self.media]} and gave {seen}.'
            )

    def check(self, batch: Tensor) -> Tensor:
        """Return a batch if it is of this kind.

        Raises:
            ImageRangeError: as `check_images` and `check_clips`.
            ClipShapeError: as `check_clips`.
        """
        return check_clips(batch, self.frames) if self.media == "video" else check_images(batch)


NOUN: dict[Media, str] = {"image": "images", "video": "clips", "frame": "frames"}


def same_medium(entry: Protocol, real: RealSamples) -> None:
    """Raise ProtocolError if a metric looks at another medium than these samples are."""
    if entry.media == real.media:
        return
    fix = ""
    if (entry.media, real.media) == ("frame", "video"):
        fix = " Give it RealSamples.as_frames(), as VideoEvaluation does."
    raise ProtocolError(
        f"{entry.metric} looks at {NOUN[entry.media]}, and these are {NOUN[real.media]}.{fix}"
    )

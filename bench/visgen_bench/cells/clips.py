"""Where the clips of a quality cell come from: a model with its weights, or a user's folder.

Sample i stands beside real clip i of the split (again from the first after the last): what the
model is asked for, and the frames it is given, are that clip's.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from visgen.conditions import (
    Actions,
    ClassLabel,
    Condition,
    FirstFrames,
    Text,
    combined,
)
from visgen.data.videos import VideoData
from visgen.seeds import sample_seeds
from visgen_bench import media
from visgen_bench.cell import QualityCell
from visgen_bench.cells import splits
from visgen_bench.cells.generated import check_clips
from visgen_bench.cells.samples import ModelSource, Source
from visgen_bench.context import Context

REDRAW = 2**31  # a second draw of sample i takes the seed of sample i + REDRAW


class RealClips:
    """Clips of a split, of which the first `most` are used."""

    def __init__(self, data: VideoData, split: str, most: int | None = None) -> None:
        self.data, self.split = data, split
        self.indices = splits.indices(data, split)[:most]
        # A half is no split of the set's own, and a capped split is not all of it.
        self.part = most is not None or split not in data.splits

    def seeds(self, places: Tensor) -> Tensor | None:
        """Where clips of the policy `random` begin; the same at every reading."""
        return sample_seeds(0, places) if self.data.clip.policy == "random" else None

    def at(self, samples: Tensor) -> Tensor:
        """The clips beside samples int64 (n,): uint8 (n, t, 3, h, w)."""
        places = samples % len(self.indices)
        return self.data.videos(self.indices[places], self.seeds(places))

    def condition(self, kinds: tuple[str, ...], context: int, samples: Tensor) -> Condition | None:
        """What samples int64 (n,) are asked for; `context` first frames of their clips."""
        places = samples % len(self.indices)
        chosen, parts = self.indices[places], []
        for kind in kinds:
            if kind == "class":
                parts.append(ClassLabel(_known(self.data.labels(chosen))))
            elif kind == "frames":
                parts.append(FirstFrames(self.at(samples)[:, :context]))
            elif kind == "text":
                parts.append(Text(tuple(_known(self.data.captions(chosen)))))
            else:
                parts.append(Actions(_known(self.data.actions(chosen, self.seeds(places)))))
        return combined(parts)


def _known(found: Any) -> Any:
    if found is None:
        raise ValueError("the data does not know what the condition asks for.")
    return found


class FolderClips(Source):
    """A folder's videos in name order, one clip each."""

    def __init__(self, cell: QualityCell, context: Context) -> None:
        self.data = media.open_set(
            cell.images or "", cell, None, root=context.data_root, offline=True
        )
        self.indices = splits.indices(self.data, cell.images_split)
        self.count = min(len(self.indices), cell.samples or len(self.indices))
        self.batch = cell.batch

    def draw(self, indices: Tensor) -> Iterator[Tensor]:
        assert isinstance(self.data, VideoData)
        for part in indices.split(self.batch):
            seeds = sample_seeds(0, part) if self.data.clip.policy == "random" else None
            yield self.data.videos(self.indices[part], seeds)


class ModelClips(ModelSource):
    """A generator's clips under the cell's condition."""

    def __init__(
        self, cell: QualityCell, config: Any, data: VideoData, context: Context, real: RealClips
    ) -> None:
        super().__init__(cell, config, data, context)
        self.real = real
        self.context = int(getattr(config, "context", 0)) if "frames" in cell.conditions else 0
        self.choices = None
        if cell.sampling is not None:
            self.choices = config.sampling_choices(**cell.sampling)

    def condition(self, samples: Tensor) -> Condition | None:
        """What these samples are asked for."""
        return self.real.condition(self.cell.conditions, self.context, samples)

    def draw(self, indices: Tensor) -> Iterator[Tensor]:
        yield from self._drawn(indices, 0)

    def draw_again(self, indices: Tensor) -> Tensor:
        """Other clips under the same conditions: uint8 (n, t, 3, h, w)."""
        return torch.cat(list(self._drawn(indices, REDRAW)))

    @torch.no_grad()
    def _drawn(self, indices: Tensor, shift: int) -> Iterator[Tensor]:
        for part in indices.split(self.cell.batch):
            seeds = sample_seeds(self.cell.seed, part + shift).to(self.device)
            with self.precision():
                clips = self.model.generate(seeds, self.condition(part), self.choices)
            check_clips(clips, len(part), self.model, self.cell.model)
            yield clips.cpu()

    @torch.no_grad()
    def reconstructed(self, clips: Tensor) -> Tensor | None:
        """What the model's codes keep of real clips; None for a model without codes."""
        if not hasattr(self.model, "reconstruct"):
            return None
        with self.precision():
            return self.model.reconstruct(clips.to(self.device)).cpu()

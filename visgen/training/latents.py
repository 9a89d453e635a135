"""Clips as codes, computed once: what a prior learns from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from visgen.conditions import Text
from visgen.data.dataset import DataError
from visgen.data.videos import VideoData
from visgen.models.videogpt import VideoGPT
from visgen.objectives.videogpt import CodeBatch
from visgen.pixels import to_unit

BATCH = 16  # clips that are encoded at a time


@torch.no_grad()
def encoded(
    model: VideoGPT,
    data: VideoData,
    split: str,
    *,
    device: str = "cpu",
    on_batch: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The codes of all clips of a split, int32 (n, t, h, w), on the CPU.

    Args:
        model: Whose VQ-VAE encodes; it is put into eval mode.
        data: Opened for clips of the model's size.
        split: Of the data.
        device: Where to encode.
        on_batch: Called with (clips done, clips) after each batch.

    Raises:
        DataError: for clips that begin elsewhere at every reading, whose codes cannot be kept.
    """
    if data.clip.policy == "random":
        raise DataError(
            f'{data.name} is opened with policy "random", so its codes differ at every reading; '
            'open it with "first" or "uniform-K" for a prior.'
        )
    vqvae = model.vqvae.to(device).eval()
    indices = data.split(split)
    codes = torch.empty(len(indices), *model.config.prior.grid, dtype=torch.int32)
    for start in range(0, len(indices), BATCH):
        clips = data.videos(indices[start : start + BATCH])
        codes[start : start + len(clips)] = vqvae.encode(to_unit(clips).to(device))
        if on_batch:
            on_batch(start + len(clips), len(indices))
    return codes


class Latents:
    """Codes of one split, with the conditions that the model takes and the data has."""

    def __init__(self, model: VideoGPT, data: VideoData, split: str, codes: Tensor) -> None:
        self.model, self.data, self.codes = model, data, codes
        self.indices = data.split(split)
        content = hashlib.sha256(codes.contiguous().numpy().tobytes()).hexdigest()
        self.fingerprint = f"{data.fingerprint}:{split}:{content}"

    @property
    def count(self) -> int:
        """Clips of the split."""
        return len(self.indices)

    def take(self, places: Tensor, seeds: Tensor) -> CodeBatch:
        """Codes at places, and what is known of their clips; nothing is drawn."""
        return CodeBatch(self.codes[places].long(), self.conditions(self.indices[places]))

    def conditions(self, indices: Tensor) -> dict[str, Tensor]:
        """What `Prior.look` takes, for clips of the data."""
        config, found = self.model.config.prior, {}
        labels, actions = self.data.labels(indices), self.data.actions(indices)
        if config.classes and labels is not None:
            found["labels"] = labels
        if config.actions and actions is not None:
            found["actions"] = actions
        if config.frames:
            found["frames"] = to_unit(self.data.videos(indices)[:, : config.frames])
        sentences = self.data.captions(indices)
        if config.words and sentences is not None:
            found["words"], found["lengths"] = self.model.words(Text(tuple(sentences)))
        return found

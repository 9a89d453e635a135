"""C3D (arXiv:1412.0767, "conv3d deepnetA"), fine-tuned on UCF-101: the Inception Score of videos.

Files, layers and preprocessing are those of pfnet-research/tgan2, on which the published scores of
UCF-101 clips rest: `conv3d_deepnetA_ucf.npz` (Chainer's names, `conv1a/W` and so on) and
`mean2.npz` (`mean`, a mean volume (3, 16, h, w) in BGR of 0..255). Clips of 16 frames: to -1..1,
RGB to BGR, times 128, corner-aligned bilinear resize to 112 x 112 (Chainer's `resize_images`),
plus 128, minus the mean's rows and columns 8..119.

Nobody publishes hashes of the two, so they are pinned (`pins`); they are read without pickle. They
were not at hand here: their layout is typed in from tgan2's code, and no score was reproduced.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visgen_bench.extractors.images import check_clips
from visgen_bench.extractors.pins import pin, read_pinned
from visgen_bench.extractors.precision import full_precision
from visgen_bench.extractors.weights import (
    WeightsError,
    WeightsUnreadable,
    fetch,
    known_weights,
)

NAME = "c3d-ucf101"
NETWORK, MEAN = "c3d-ucf101", "c3d-mean"  # names in weights.toml
CLASSES, FRAMES, SIDE = 101, 16, 112
_CUT = 8  # first row and column of the mean volume that is used
_CHUNK = 4  # clips at once


class C3D(nn.Module):
    """78,409,573 parameters; the names of its layers are the weight file's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1a = nn.Conv3d(3, 64, 3, padding=1)
        self.conv2a = nn.Conv3d(64, 128, 3, padding=1)
        self.conv3a = nn.Conv3d(128, 256, 3, padding=1)
        self.conv3b = nn.Conv3d(256, 256, 3, padding=1)
        self.conv4a = nn.Conv3d(256, 512, 3, padding=1)
        self.conv4b = nn.Conv3d(512, 512, 3, padding=1)
        self.conv5a = nn.Conv3d(512, 512, 3, padding=1)
        self.conv5b = nn.Conv3d(512, 512, 3, padding=1)
        self.fc6 = nn.Linear(512 * 4 * 4, 4096)
        self.fc7 = nn.Linear(4096, 4096)
        self.fc8 = nn.Linear(4096, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Prepared clips float (n, 3, 16, 112, 112) -> logits (n, 101)."""
        x = F.max_pool3d(F.relu(self.conv1a(x)), (1, 2, 2))  # (n, 64, 16, 56, 56)
        x = F.max_pool3d(F.relu(self.conv2a(x)), 2)  # (n, 128, 8, 28, 28)
        x = F.relu(self.conv3b(F.relu(self.conv3a(x))))
        x = F.max_pool3d(x, 2)  # (n, 256, 4, 14, 14)
        x = F.relu(self.conv4b(F.relu(self.conv4a(x))))
        x = F.max_pool3d(x, 2)  # (n, 512, 2, 7, 7)
        x = F.relu(self.conv5b(F.relu(self.conv5a(x))))
        # Chainer's pools cover every pixel: 7 rows give 4, the last from one row alone.
        x = F.max_pool3d(x, 2, ceil_mode=True)  # (n, 512, 1, 4, 4)
        x = F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))  # (n, 4096)
        return self.fc8(x)


def prepare(clips: Tensor, mean: Tensor) -> Tensor:
    """Clips uint8 (n, 16, 3, h, w) -> float32 (n, 3, 16, 112, 112), BGR.

    mean: float32 (3, 16, 112, 112), in BGR of 0..255, already cut.
    """
    frames = (2.0 * clips.flatten(0, 1).float() / 255.0 - 1.0).flip(1) * 128.0
    frames = F.interpolate(frames, (SIDE, SIDE), mode="bilinear", align_corners=True)
    return frames.unflatten(0, clips.shape[:2]).transpose(1, 2) + 128.0 - mean


def unavailable(paths: Mapping[str, Path]) -> str | None:
    """Why the network cannot be used here, or None; files that are there are hashed."""
    reasons = []
    for name in (NETWORK, MEAN):
        file = known_weights()[name]
        try:
            read_pinned(fetch(file, path=paths.get(name)), file)
        except WeightsError as error:
            reasons.append(str(error))
    return " ".join(reasons) or None


class C3DLogits:
    """The extractor of `isc_video`. Its hash is the sha256 of both files, one after the other."""

    name = NAME
    widths = {"logits": CLASSES}  # noqa: RUF012 - read only

    def __init__(self, network: C3D, mean: Tensor, sha256: str, device: str = "cpu") -> None:
        self.sha256 = sha256
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)
        self.mean = mean.to(self.device)

    @classmethod
    def open(cls, paths: Mapping[str, Path], *, device: str = "cpu") -> Self:
        """The network with the weights of `paths`, or of wherever `weights.fetch` finds them.

        Args:
            paths: By the names "c3d-ucf101" and "c3d-mean"; others are not looked at.
            device: Where it runs.

        Raises:
            WeightsMissing: if a path does not exist.
            WeightsMismatch: if a file is not the one that was used here first.
            WeightsOffline: if a file is missing.
            WeightsUnreadable: if a file does not hold what it should.
        """
        files = [known_weights()[name] for name in (NETWORK, MEAN)]
        places = [fetch(file, path=paths.get(file.name)) for file in files]
        read = [read_pinned(place, file) for place, file in zip(places, files, strict=True)]
        network = build(_arrays(read[0][0], str(places[0])), str(places[0]))
        mean = cut_mean(_arrays(read[1][0], str(places[1])), str(places[1]))
        for place, (_, sha256) in zip(places, read, strict=True):
            pin(place, sha256)
        both = hashlib.sha256(read[0][0] + read[1][0]).hexdigest()
        return cls(network, mean, both, device)

    def layers(self, clips: Tensor, names: tuple[str, ...] = ("logits",)) -> dict[str, Tensor]:
        """uint8 (n, 16, 3, h, w), 0..255 -> {"logits": float32 (n, 101)} on the CPU.

        Raises:
            ClipShapeError: for clips of another number of frames.
        """
        check_clips(clips, FRAMES)
        with full_precision(self.device):
            parts = [
                self.network(prepare(part.to(self.device), self.mean)).cpu()
                for part in clips.split(_CHUNK)
                if len(part)
            ]
        found = torch.cat(parts) if parts else torch.empty(0, CLASSES)
        return {name: found for name in names}


def build(arrays: Mapping[str, Tensor], origin: str) -> C3D:
    """The network with Chainer's arrays (`conv1a/W`, `conv1a/b`, ... `fc8/b`).

    Raises:
        WeightsUnreadable: if names or shapes are not this network's.
    """
    parts = {"W": "weight", "b": "bias"}
    state = {}
    for name, values in arrays.items():
        layer, _, part = name.rpartition("/")
        state[f"{layer}.{parts.get(part, part)}"] = values
    network = C3D()
    try:
        network.load_state_dict(state, strict=True)
    except RuntimeError as error:  # load_state_dict lists what does not fit
        raise WeightsUnreadable(
            f"{origin} does not hold C3D with {CLASSES} classes: {str(error)[:300]}"
        ) from error
    return network


def cut_mean(arrays: Mapping[str, Tensor], origin: str) -> Tensor:
    """The part of the mean volume that is subtracted: float32 (3, 16, 112, 112).

    Raises:
        WeightsUnreadable: if there is no `mean` (3, 16, h, w) of at least 120 rows and columns.
    """
    mean = arrays.get("mean")
    if mean is not None and mean.ndim == 5 and len(mean) == 1:
        mean = mean[0]
    least = _CUT + SIDE
    if mean is None or mean.shape[:2] != (3, FRAMES) or min(mean.shape[2:]) < least:
        shapes = {name: tuple(values.shape) for name, values in arrays.items()}
        raise WeightsUnreadable(
            f"{origin} holds {shapes}; a mean volume is mean (3, {FRAMES}, h, w) with h and w of "
            f"{least} or more."
        )
    return mean[:, :, _CUT:least, _CUT:least].float()


def _arrays(data: bytes, origin: str) -> dict[str, Tensor]:
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            return {name: torch.from_numpy(np.array(file[name])) for name in file.files}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise WeightsUnreadable(
            f"{origin} cannot be read as an npz of plain arrays: {str(error)[:200]}"
        ) from error

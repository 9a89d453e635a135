"""Writing a video set as HDF5 in the clean layout that `video_hdf5.py` reads."""

import os
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from visgen.data.dataset import DataError
from visgen.data.videos import VideoData

_AT_ONCE = 16  # clips asked for and held at a time


def write_video_hdf5(path: Path, data: VideoData, *, splits: Sequence[str]) -> None:
    """Write the clips of these splits, with labels, captions and actions where the set has them.

    Every clip becomes a video of its own, of as many frames. Actions are laid out by frame where
    their number allows it, otherwise by the gaps between frames. The file appears under its name
    once it is complete.

    Raises:
        DataError: a split that is not there, clips placed at random, or actions that belong to
            neither frames nor gaps.
    """
    if data.clip.policy == "random":
        raise DataError(
            f'{data.name} was opened with the policy "random", whose clips differ at each reading; '
            'open it with "first" or "uniform-K" to write it.'
        )
    if not splits or len(set(splits)) != len(splits):
        raise DataError(f"splits={list(splits)}; name each split to be written once.")
    chosen = {split: data.split(split) for split in splits}
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        with h5py.File(unfinished, "w") as file:
            file.attrs["channels"], file.attrs["levels"] = data.channels, data.levels
            file.attrs["written_from"] = f"{data.name} {data.fingerprint}"
            if data.classes:
                file.create_dataset("classes", data=list(data.classes), dtype=h5py.string_dtype())
            for split, indices in chosen.items():
                _write_split(file, split, data, indices)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _write_split(file: h5py.File, split: str, data: VideoData, indices: Tensor) -> None:
    count, frames = len(indices), data.clip.frames
    shape = (count * frames, *data.clip.size, 3)
    videos = file.create_dataset(f"{split}_data", shape=shape, dtype=np.uint8)
    file.create_dataset(f"{split}_idx", data=np.arange(count, dtype=np.int64) * frames)
    labels = data.labels(indices)
    if labels is not None:
        file.create_dataset(f"{split}_labels", data=labels.numpy())
    for first in range(0, count, _AT_ONCE):
        some = indices[first : first + _AT_ONCE]
        rows = slice(first * frames, (first + len(some)) * frames)
        clips = data.videos(some).flatten(0, 1)  # (n * t, 3, h, w)
        videos[rows] = clips.permute(0, 2, 3, 1).contiguous().numpy()
        _write_captions(file, f"{split}_captions", data.captions(some), first, count)
        _write_actions(file, f"{split}_actions", data.actions(some), data, rows, shape[0])


def _write_captions(
    file: h5py.File, key: str, captions: list[str] | None, first: int, count: int
) -> None:
    if captions is None:
        return
    values = file.require_dataset(key, shape=(count,), dtype=h5py.string_dtype())
    values[first : first + len(captions)] = captions


def _write_actions(
    file: h5py.File, key: str, actions: Tensor | None, data: VideoData, rows: slice, total: int
) -> None:
    if actions is None:
        return
    frames, width = data.clip.frames, actions.shape[1]
    between = width % frames != 0
    steps = frames - 1 if between else frames
    if steps == 0 or width % steps:
        raise DataError(
            f"{data.name} has {width} actions a clip of {frames} frames; they can be written where "
            f"their number is a multiple of {frames} (frames) or {frames - 1} (gaps)."
        )
    laid_out = actions.view(len(actions), steps, width // steps)
    if between:  # the row of a clip's last frame, which no action follows
        laid_out = torch.cat((laid_out, torch.zeros_like(laid_out[:, :1])), dim=1)
    values = file.require_dataset(key, shape=(total, width // steps), dtype=np.float32)
    values.attrs["between"] = between
    values[rows] = laid_out.flatten(0, 1).numpy()

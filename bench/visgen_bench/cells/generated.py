"""What `generate` gives, checked where it arrives: a uint8 picture or clip a seed, of one size."""

from typing import Any

import torch


def check_pictures(pictures: Any, asked: int, model: Any, name: str) -> None:
    """Raise ValueError unless `pictures` is uint8 (asked, 3, h, w), with the model's own h and w.

    Args:
        pictures: What `generate` of `model` gave for `asked` seeds.
        asked: How many seeds it was given.
        model: May say its `image_size`; else any size will do.
        name: The preset, for the message.
    """
    shape = tuple(getattr(pictures, "shape", ()))
    wanted = (asked, 3, *(getattr(model, "image_size", None) or shape[2:] or ("h", "w")))
    if isinstance(pictures, torch.Tensor) and shape == wanted and pictures.dtype == torch.uint8:
        return
    kind = getattr(pictures, "dtype", None)
    given = type(pictures).__name__ if kind is None else f"{shape} {kind}"
    raise ValueError(
        f"generate of {name} gave {given} for {asked} seeds; it must give a tensor uint8 "
        f"({', '.join(map(str, wanted))}) (visgen.pixels.to_bytes makes bytes)"
    )


def check_clips(clips: Any, asked: int, model: Any, name: str) -> None:
    """Raise ValueError unless `clips` is uint8 (asked, t, 3, h, w), with the model's own h and w.

    Args:
        clips: What `generate` of `model` gave for `asked` seeds.
        asked: How many seeds it was given.
        model: Says its `clip_size`, (t, h, w); a sampling choice may make more frames.
        name: The preset, for the message.
    """
    shape = tuple(getattr(clips, "shape", ()))
    rows, columns = model.clip_size[1:]
    fits = shape[:1] == (asked,) and shape[2:] == (3, rows, columns)
    if isinstance(clips, torch.Tensor) and fits and clips.dtype == torch.uint8:
        return
    kind = getattr(clips, "dtype", None)
    given = type(clips).__name__ if kind is None else f"{shape} {kind}"
    raise ValueError(
        f"generate of {name} gave {given} for {asked} seeds; it must give a tensor uint8 "
        f"({asked}, frames, 3, {rows}, {columns}) (visgen.pixels.from_unit makes bytes)"
    )

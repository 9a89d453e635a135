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
    own = tuple(getattr(pictures, "shape", ()))[2:]
    size = getattr(model, "image_size", None) or own or ("h", "w")
    _check(pictures, (asked, 3, *size), "to_bytes", name)


def check_clips(clips: Any, asked: int, model: Any, name: str) -> None:
    """Raise ValueError unless `clips` is uint8 (asked, t, 3, h, w), with the model's own h and w.

    Args:
        clips: What `generate` of `model` gave for `asked` seeds.
        asked: How many seeds it was given.
        model: Says its `clip_size`, (t, h, w); a sampling choice may make more frames.
        name: The preset, for the message.
    """
    _check(clips, (asked, "frames", 3, *model.clip_size[1:]), "from_unit", name)


def _check(given: Any, wanted: tuple[int | str, ...], maker: str, name: str) -> None:
    """Raise ValueError unless `given` is uint8 of the shape `wanted`; "frames" is any number."""
    shape = tuple(getattr(given, "shape", ()))
    fits = len(shape) == len(wanted) and all(
        size in ("frames", own) for own, size in zip(shape, wanted, strict=True)
    )
    if isinstance(given, torch.Tensor) and fits and given.dtype == torch.uint8:
        return
    kind = getattr(given, "dtype", None)
    text = type(given).__name__ if kind is None else f"{shape} {kind}"
    raise ValueError(
        f"generate of {name} gave {text} for {wanted[0]} seeds; it must give a tensor uint8 "
        f"({', '.join(map(str, wanted))}) (visgen.pixels.{maker} makes bytes)"
    )

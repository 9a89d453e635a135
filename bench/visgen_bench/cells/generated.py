"""What `generate` gives, checked where it arrives: one uint8 picture a seed, of one size."""

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

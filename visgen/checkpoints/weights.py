"""A model's parts in one file: keys are `part.name`, e.g. `generator.first.weight`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from visgen.checkpoints.files import CheckpointError, read, sha256_of, write


def part_states(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """All parameters and buffers under `part.name`."""
    return {
        f"{part}.{name}": tensor
        for part, network in networks.items()
        for name, tensor in network.state_dict().items()
    }


def save_weights(
    path: Path, states: Mapping[str, Tensor], metadata: Mapping[str, str], *, half: bool = False
) -> str:
    """Write `part.name` tensors; floating ones as float16 if `half`. Returns the file's sha256."""
    if half:
        states = {k: t.half() if t.is_floating_point() else t for k, t in states.items()}
    write(path, states, metadata)
    return sha256_of(path)


def check_shapes(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: object
) -> None:
    """Raise CheckpointError naming the first key that is missing, unknown or of another shape."""
    for key in sorted(expected.keys() | found.keys()):
        if key not in found:
            raise CheckpointError(
                f"{where} has no {key} (shape {tuple(expected[key].shape)}); it holds {len(found)} "
                "tensors of another model or preset."
            )
        if key not in expected:
            raise CheckpointError(
                f"{where} has {key}, which the model does not; is it another preset's?"
            )
        if found[key].shape != expected[key].shape:
            raise CheckpointError(
                f"{where}: {key} has shape {tuple(found[key].shape)}, the model needs "
                f"{tuple(expected[key].shape)}; is it another preset's?"
            )


@torch.no_grad()
def load_weights(model: Any, path: Path) -> str:
    """Fill the parts that the file has (all of a part or nothing) and return the file's sha256.

    Args:
        model: Has `networks()`.
        path: A safetensors file of `save_weights`; float16 is widened to the parameter's dtype.

    Raises:
        CheckpointError: for a pickle, a damaged file, values that are not finite, or the first key
            that differs in name or shape. The model is then as it was.
    """
    tensors, _ = read(path)
    networks: dict[str, nn.Module] = model.networks()
    parts = {key.partition(".")[0] for key in tensors}
    if not parts or not parts <= networks.keys():
        raise CheckpointError(
            f"{path} holds parts {', '.join(sorted(parts)) or 'none'}; "
            f"the model has {', '.join(networks)}."
        )
    expected = part_states({part: networks[part] for part in parts})
    check_shapes(tensors, expected, path)
    for key, tensor in tensors.items():  # all of them, before the first is copied
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {key} has values that are not finite.")
    for key, tensor in tensors.items():
        expected[key].copy_(tensor)
    return sha256_of(path)

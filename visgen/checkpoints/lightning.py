"""Checkpoints of PyTorch Lightning 1.x, read without running anything that is in them.

Such a file is a pickle: a dict with `state_dict`, `hyper_parameters` and the trainer's state. It is
read by torch's restricted unpickler, which builds tensors and plain containers alone. Beside these
only `argparse.Namespace` is allowed, and classes of Lightning, by which the trainer's state is
keyed, become empty stand-ins: Lightning is neither needed nor imported. Any other name is refused.
"""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from visgen.checkpoints.files import CheckpointError

_LIGHTNING = ("pytorch_lightning.", "lightning.pytorch.")
_NAMESPACE = "argparse.Namespace"
_ZIP = b"PK\x03\x04"


@dataclass(frozen=True, eq=False)
class LightningFile:
    """What is kept of a checkpoint.

    Attributes:
        state: The model's tensors by name, on the CPU; floating ones are float32.
        options: The hyper-parameters that its training was started with.
    """

    state: dict[str, Tensor]
    options: dict[str, object]


def read_lightning(path: Path) -> LightningFile:
    """The tensors and options of a checkpoint.

    Raises:
        CheckpointError: for a file that is missing, damaged, no such checkpoint, or that names
            anything else than is allowed.
    """
    found = _unpickled(path)
    whole = found if isinstance(found, dict) else {}
    state = whole.get("state_dict")
    if not isinstance(state, dict) or not state:
        held = ", ".join(map(str, whole)) if whole else type(found).__name__
        raise CheckpointError(
            f"{path} has no state_dict, so it is no checkpoint of Lightning; it holds "
            f"{held[:200] or 'nothing'}."
        )
    for key, tensor in state.items():
        if not isinstance(key, str) or not isinstance(tensor, Tensor):
            raise CheckpointError(f"{path}: {key} in state_dict is no tensor with a name.")
    options = whole.get("hyper_parameters", {})
    options = options.get("args", options) if isinstance(options, dict) else options
    if isinstance(options, argparse.Namespace):
        options = vars(options)
    if not isinstance(options, dict):
        raise CheckpointError(f"{path}: hyper_parameters are {type(options).__name__}, no options.")
    wide = {k: t.float() if t.is_floating_point() else t for k, t in state.items()}
    return LightningFile(wide, {str(name): value for name, value in options.items()})


def _unpickled(path: Path) -> object:
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give the path of a released checkpoint.")
    with path.open("rb") as file:
        start = file.read(len(_ZIP))
    if start != _ZIP:
        raise CheckpointError(
            f"{path} is no checkpoint that torch 1.6 or newer wrote: it does not begin as a zip "
            "file does. Download it again."
        )
    try:
        names = set(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
        allowed: list[Callable[..., object] | tuple[Callable[..., object], str]] = []
        for name in sorted(names):
            if name == _NAMESPACE:
                allowed.append(argparse.Namespace)
            elif name.startswith(_LIGHTNING):
                allowed.append((type(name.rpartition(".")[2], (), {}), name))
            else:
                raise CheckpointError(
                    f"{path} names {name}, which may run code when it is opened; it was not "
                    f"opened. Beside tensors, {_NAMESPACE} and Lightning's classes are allowed."
                )
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except (RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile, EOFError, OSError,
            ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # fmt: skip
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} is no whole checkpoint ({reason[:200]}); download it again."
        ) from error

"""Safetensors files on disk.

A safetensors file is a JSON header and raw numbers; nothing in it can be executed. Pickles (.pt,
.pth, .bin) can, so they are refused by name before a byte of them is interpreted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


class CheckpointError(ValueError):
    """A weight file that cannot be used; the message says which, why, and what would do."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a file that appears whole or not at all: a hidden neighbour, synced, then renamed.

    Raises:
        OSError: if the disk is full or the folder may not be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        # One entry: the order of several is not fixed, so the file's hash would not be either.
        header = {"visgen": json.dumps(dict(metadata), sort_keys=True)}
        contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, partial, header)
        partial.chmod(0o644)  # the library makes files that only their owner can read
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except SafetensorError as error:
        # The library reports what the operating system said as text only.
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def check(path: Path) -> None:
    """Look at the start and the header of a file, not at its numbers.

    Raises:
        CheckpointError: if the file is missing, a pickle, or not a whole safetensors file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is not a file; give the path of a .safetensors file.")
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors header begins after eight bytes of length, which may look like a pickle's first.
    is_pickle = start.startswith(_PICKLE_STARTS) and start[8:] != b"{"
    if is_pickle or path.suffix in {".pt", ".pth", ".pkl", ".bin", ".ckpt"}:
        raise CheckpointError(
            f"{path} is a pickle, which may run code when it is opened; it was not opened. "
            "Weights are read from .safetensors files."
        )
    with _opened(path):
        pass


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file.

    Raises:
        CheckpointError: as `check` does.
    """
    check(path)
    with _opened(path) as file:
        names = list(file.keys())
        header = (file.metadata() or {}).get("visgen", "{}")
        return {name: file.get_tensor(name) for name in names}, json.loads(header)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({error}); copy or train it again."
        ) from error

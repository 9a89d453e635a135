"""The table `zoo.toml`: each weight file with its preset, recipe, seed, hash and figures."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from visgen.checkpoints import CheckpointError, load_weights, sha256_of
from visgen.names import hint

FOLDER = Path(__file__).parent
TABLE = "zoo.toml"


class UnknownZooEntry(ValueError):
    """A name that the zoo does not have."""


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """One weight file.

    Attributes:
        name: What `zoo:NAME` calls it.
        preset: Its model in the catalogue.
        file: Safetensors, float16, beside `zoo.toml`.
        sha256: Of the file.
        recipe: The train cell it came from, and the shipped suite that has it.
        seed: Of that cell.
        data: The set it was trained on.
        steps: Training steps.
        seconds: Wall time of the training on two cores.
        figures: Metrics reached, with the condition behind the name: mean over generation seeds.
    """

    name: str
    preset: str
    file: str
    sha256: str
    recipe: str
    seed: int
    data: str
    steps: int
    seconds: float
    figures: Mapping[str, float]

    @property
    def path(self) -> Path:
        """Where the file lies."""
        return FOLDER / self.file


@cache
def entries() -> dict[str, ZooEntry]:
    """All entries by name."""
    with (FOLDER / TABLE).open("rb") as file:
        table = tomllib.load(file)
    return {name: ZooEntry(name=name, **row) for name, row in table.items()}


def find(name: str) -> ZooEntry:
    """The entry called `name`.

    Raises:
        UnknownZooEntry: with the nearest name.
    """
    known = entries()
    if name not in known:
        raise UnknownZooEntry(
            f'the zoo has no weights "{name}"{hint(name, known)}; '
            f"it has {', '.join(known) or 'none'}. "
            "Train your own with a train cell, or score untrained weights."
        )
    return known[name]


def load(name: str, model: Any) -> str:
    """Fill `model` with the weights called `name` and return their sha256.

    Raises:
        UnknownZooEntry: if there is no such entry.
        CheckpointError: if the file's hash is not the table's, or it does not fit the model. The
            hash is checked before the file is read.
    """
    entry = find(name)
    found = sha256_of(entry.path)
    if found != entry.sha256:
        raise CheckpointError(
            f"{entry.file} has sha256 {found}, the zoo's table says {entry.sha256}; "
            "install the package again."
        )
    return load_weights(model, entry.path)

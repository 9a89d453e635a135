"""The zoo: every file is what its table says, fits its preset, and is small."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from visgen import zoo
from visgen.catalogue import find
from visgen.checkpoints import CheckpointError, read, sha256_of
from visgen.seeds import sample_seeds
from visgen.zoo import table


@pytest.mark.parametrize("name", sorted(zoo.entries()))
def test_every_entry_is_whole_and_draws_pictures(name: str) -> None:
    entry = zoo.find(name)
    assert sha256_of(entry.path) == entry.sha256
    assert entry.path.stat().st_size <= 1_000_000
    tensors, _ = read(entry.path)
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float16}
    model = find(entry.preset).build()
    zoo.load(name, model)
    images = model.generate(sample_seeds(0, torch.arange(16))).float()
    assert images.std(dim=0).mean() > 20  # the samples differ from one another


def test_the_zoo_has_a_transformer_and_its_baseline() -> None:
    assert {zoo.find(n).preset for n in zoo.entries()} >= {
        "transgan-digits8-tiny",
        "dcgan-digits8-tiny",
    }


def test_a_changed_file_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(table.FOLDER, tmp_path / "zoo")
    path = folder / "dcgan-digits8-tiny.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr(table, "FOLDER", folder)
    with pytest.raises(CheckpointError, match=r"the zoo's table says [0-9a-f]{64}"):
        zoo.load("dcgan-digits8-tiny", find("dcgan-digits8-tiny").build())


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(zoo.UnknownZooEntry, match='nearest: "transgan-digits8-tiny"'):
        zoo.find("transgan-digits8")

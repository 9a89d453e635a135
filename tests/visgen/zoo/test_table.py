"""The zoo: every file is what its table says, fits its preset, and is small."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from visgen import zoo
from visgen.catalogue import find
from visgen.checkpoints import CheckpointError, read, sha256_of
from visgen.conditions import FirstFrames
from visgen.data.video_opening import open_videos
from visgen.data.videos import Clip
from visgen.seeds import sample_seeds
from visgen.zoo import table

# Bytes that come with the package: one generator, or a VQ-VAE, its codebook and a prior.
SIZES = {"image-generation": 1_000_000, "video-generation": 2_500_000}


@pytest.mark.parametrize("name", sorted(zoo.entries()))
def test_every_entry_is_whole_and_draws_pictures(name: str) -> None:
    entry = zoo.find(name)
    assert sha256_of(entry.path) == entry.sha256
    assert entry.path.stat().st_size <= SIZES[find(entry.preset).task]
    tensors, _ = read(entry.path)
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {torch.float16}
    model = find(entry.preset).build()
    zoo.load(name, model)
    seeds, condition = sample_seeds(0, torch.arange(16)), None
    if "frames" in getattr(find(entry.preset), "requires", ()):
        condition = FirstFrames(drawn_digits(find(entry.preset)))
    images = model.generate(seeds, condition).float()
    # The samples differ from one another; most of a moving digit's frame is black in all of them.
    assert images.std(dim=0).mean() > (20 if images.ndim == 4 else 5)


def drawn_digits(config: Any) -> Tensor:
    """How sixteen moving digits begin: uint8 (16, k, 3, h, w)."""
    data = open_videos("moving-digits:1", Clip(frames=config.context, size=config.clip_size[1:]))
    return data.videos(data.split("test")[:16])


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

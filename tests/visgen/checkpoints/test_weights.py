"""Weight files: what is refused, and that nothing in them is executed."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from visgen.checkpoints import CheckpointError, load_weights, read, save_weights, sha256_of, write


class Model:
    """One part, a Linear."""

    def __init__(self, width: int = 3) -> None:
        self.part = nn.Linear(width, 2)

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.part}


def saved(tmp_path: Path, states: dict[str, torch.Tensor]) -> Path:
    path = tmp_path / "w.safetensors"
    save_weights(path, states, {})
    return path


GOOD = {"generator.weight": torch.ones(2, 3), "generator.bias": torch.zeros(2)}


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"generator.bias": torch.zeros(2)}, r"has no generator.weight \(shape \(2, 3\)\)"),
        (
            {**GOOD, "generator.extra": torch.zeros(1)},
            "has generator.extra, which the model does not",
        ),
        (
            {**GOOD, "generator.weight": torch.ones(2, 4)},
            r"generator.weight has shape \(2, 4\), the model needs \(2, 3\)",
        ),
        ({"critic.weight": torch.ones(1)}, "holds parts critic; the model has generator"),
        (
            {**GOOD, "generator.bias": torch.tensor([0.0, float("nan")])},
            "generator.bias has values that are not finite",
        ),
    ],
)
def test_a_file_of_another_model_is_refused_by_its_first_differing_key(
    tmp_path: Path, states: dict[str, torch.Tensor], message: str
) -> None:
    model = Model()
    before = {k: v.clone() for k, v in model.part.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        load_weights(model, saved(tmp_path, states))
    assert torch.equal(model.part.weight, before["weight"])


class Bomb:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["w.pt", "w.ckpt", "w.safetensors", "weights"])
@pytest.mark.parametrize("style", ["torch", "plain"])
def test_a_pickle_is_refused_by_name_and_nothing_in_it_runs(
    tmp_path: Path, name: str, style: str
) -> None:
    path, mark = tmp_path / name, tmp_path / "executed"
    if style == "torch":
        torch.save({"generator.weight": Bomb(mark)}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb(mark)))
    with pytest.raises(CheckpointError, match=name):
        load_weights(Model(), path)
    assert not mark.exists()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, GOOD)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere\.safetensors is not a file"):
        read(tmp_path / "nowhere.safetensors")


def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path) -> None:
    """The first eight bytes are the header's length; 640 starts with 0x80 0x02, as pickles do."""
    for padding in range(400, 700):
        path = tmp_path / "w.safetensors"
        write(path, GOOD, {"note": "x" * padding})
        if path.read_bytes()[:2] == b"\x80\x02":
            assert read(path)[1]["note"] == "x" * padding
            return
    pytest.fail("no padding gave a header of 640 bytes")


def test_half_precision_weights_are_widened(tmp_path: Path) -> None:
    path = tmp_path / "half.safetensors"
    digest = save_weights(path, GOOD, {"preset": "x"}, half=True)
    model = Model()
    assert load_weights(model, path) == digest == sha256_of(path)
    assert model.part.weight.dtype == torch.float32
    assert torch.equal(model.part.weight, torch.ones(2, 3))


def test_values_that_are_not_finite_leave_the_model_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "nan.safetensors"
    broken = {key: torch.full_like(tensor, 7.0) for key, tensor in GOOD.items()}
    last = sorted(broken)[-1]
    broken[last].view(-1)[0] = torch.nan
    save_weights(path, broken, {})
    model = Model()
    before = {k: t.clone() for k, t in model.part.state_dict().items()}
    with pytest.raises(CheckpointError, match="not finite"):
        load_weights(model, path)
    assert all(torch.equal(t, before[k]) for k, t in model.part.state_dict().items())


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, GOOD, {})
    before = path.read_bytes()
    code = (
        "import resource, sys, torch, signal\n"
        "from pathlib import Path\n"
        "from visgen.checkpoints import write\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try:\n"
        "    write(Path(sys.argv[1]), {'a': torch.zeros(100000)}, {})\n"
        "except OSError as error:\n"
        "    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=False)
    assert done.returncode == 7
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]

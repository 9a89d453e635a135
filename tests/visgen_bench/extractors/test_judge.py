from pathlib import Path

import pytest
import safetensors.torch
import torch

from visgen.data import open_data
from visgen_bench.extractors import judge
from visgen_bench.extractors.judge import DigitJudge, card, measure, train_judge
from visgen_bench.extractors.weights import WeightsMismatch


@pytest.mark.parametrize("side", [8, 16, 32])
def test_the_gate_holds_at_every_size(side: int) -> None:
    accuracy, confident = measure(DigitJudge(), side)
    assert accuracy >= 0.985
    assert confident >= 0.95
    # The card's figures are the worst of the sizes; one picture of 360 is rounding's to change.
    assert accuracy >= card().accuracy - 1.5 / 360
    assert confident >= card().confident - 1.5 / 360


def test_the_shipped_file_is_small_and_plain() -> None:
    path = Path(judge.__file__).with_name("judge.safetensors")
    assert path.stat().st_size < 300_000
    tensors = safetensors.torch.load_file(path)
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert sum(t.numel() for t in tensors.values()) == 48_618


def test_a_changed_weight_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = bytearray((Path(judge.__file__).with_name("judge.safetensors")).read_bytes())
    data[-1] ^= 1
    (tmp_path / "judge.safetensors").write_bytes(data)
    monkeypatch.setattr(judge, "_FOLDER", tmp_path)
    with pytest.raises(WeightsMismatch):
        judge.load_network()


def test_noise_is_not_judged_with_confidence() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (500, 1, 8, 8), dtype=torch.uint8, generator=generator)
    top = DigitJudge().extract(images.expand(-1, 3, -1, -1)).amax(dim=1)
    assert (top > 0.9).double().mean() < 0.6


def test_probabilities_sum_to_one_and_do_not_depend_on_the_batch() -> None:
    data = open_data("digits:16")
    images = data.images(data.split("test")[:40])
    probabilities = DigitJudge().extract(images)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(40))
    parts = torch.cat([DigitJudge().extract(part) for part in images.split(7)])
    torch.testing.assert_close(parts, probabilities, rtol=1e-4, atol=1e-6)


def test_training_repeats_bit_for_bit_and_leaves_the_callers_random_state() -> None:
    before = torch.get_rng_state()
    first, second = (train_judge(seed=3, epochs=1).state_dict() for _ in range(2))
    assert (torch.get_rng_state() == before).all()
    assert all((first[name] == second[name]).all() for name in first)


def test_one_epoch_already_learns(tmp_path: Path) -> None:
    judge.main(["--out", str(tmp_path), "--epochs", "2"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["judge.safetensors", "judge.toml"]
    network = judge.JudgeNetwork()
    network.load_state_dict(safetensors.torch.load_file(tmp_path / "judge.safetensors"))
    accuracy, _ = measure(DigitJudge(network=network), 8)
    assert accuracy > 0.5

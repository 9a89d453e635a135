"""Training: exact resume, also after SIGKILL; accumulation; faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from visgen.baselines.dcgan import DCGANConfig
from visgen.checkpoints import CheckpointError, read, sha256_of, write
from visgen.models.transgan import TransGAN, TransGANConfig
from visgen.objectives.gan import GanRecipe, updates
from visgen.seeds import Draws, sample_seeds
from visgen.training import NonFiniteLoss, Pictures, UpdateRunner, train

CONFIG = TransGANConfig(
    bottom_width=2,
    generator_width=64,
    latent=8,
    generator_depths=(1, 1, 1),
    discriminator_width=16,
    discriminator_depth=1,
)
RECIPE = GanRecipe(
    objective="nonsaturating",
    steps=6,
    batch=4,
    r1=0.1,
    r1_every=2,
    diffaugment=("translation", "color"),
    flip=True,
    critic_steps=2,
)


@dataclass(frozen=True)
class Noise:
    """Twenty pictures of noise, and half of them."""

    fingerprint: str = "0"

    @property
    def splits(self) -> Mapping[str, Tensor]:
        return {"train": torch.arange(20), "half": torch.arange(10)}

    def images(self, indices: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        assert size is not None
        generator = torch.Generator().manual_seed(0)
        every = torch.randint(0, 256, (20, 3, *size), dtype=torch.uint8, generator=generator)
        return every[indices]


def noise(split: str = "train") -> Pictures:
    return Pictures(Noise(), split, (8, 8))


def build() -> TransGAN:
    torch.manual_seed(0)
    return CONFIG.build()


def test_a_run_in_two_parts_equals_one_in_one(tmp_path: Path) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    once = partial(train, examples=noise(), seed=3, log_every=1, checkpoint_every=3)
    whole = once(build(), RECIPE, folder=tmp_path / "a", on_log=lambda s, f: logged.append((s, f)))
    once(build(), replace(RECIPE, steps=3), folder=tmp_path / "b")
    resumed: list[tuple[int, dict[str, float]]] = []
    torch.manual_seed(99)  # other initial weights, which the checkpoint must replace
    again = once(
        CONFIG.build(), RECIPE, folder=tmp_path / "b", on_log=lambda s, f: resumed.append((s, f))
    )
    assert resumed == logged[3:]
    assert again.sha256 == whole.sha256 == sha256_of(again.weights)


SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_loop import RECIPE, build, noise
from visgen.training import train
from dataclasses import replace
torch.set_num_threads(1)
train(build(), replace(RECIPE, steps=25), noise(), seed=1, folder=Path({folder!r}),
      checkpoint_every=1, on_log=lambda s, f: print(s, flush=True), log_every=1)
"""


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    def start(folder: Path) -> subprocess.Popen[str]:
        code = SCRIPT.format(tests=str(Path(__file__).parent), folder=str(folder))
        return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)

    with start(tmp_path / "straight") as straight:
        assert straight.wait(timeout=120) == 0
    with start(tmp_path / "killed") as run:
        assert run.stdout is not None
        for _ in range(9):
            run.stdout.readline()
        os.kill(run.pid, signal.SIGKILL)
        assert run.wait(timeout=30) == -signal.SIGKILL
    with start(tmp_path / "killed") as last:
        out, _ = last.communicate(timeout=120)
    steps = [int(line) for line in out.split()]
    assert steps[0] > 8  # it went on where the kill left it
    assert steps[-1] == 25
    name = "weights.safetensors"
    assert sha256_of(tmp_path / "killed" / name) == sha256_of(tmp_path / "straight" / name)
    killed, straight = (state_of(tmp_path / folder) for folder in ("killed", "straight"))
    assert killed.keys() == straight.keys()
    assert all(torch.equal(killed[key], straight[key]) for key in straight)


def state_of(folder: Path) -> dict[str, Tensor]:
    return read(folder / "state.safetensors")[0]


def test_weights_that_cannot_be_written_are_made_again(tmp_path: Path) -> None:
    once = partial(train, examples=noise(), seed=3, checkpoint_every=2)
    straight = once(build(), replace(RECIPE, steps=4), folder=tmp_path / "straight")
    folder = tmp_path / "hindered"
    once(build(), replace(RECIPE, steps=2), folder=folder)
    weights = folder / "weights.safetensors"
    weights.unlink()
    weights.mkdir()  # so that nothing can be written under this name
    with pytest.raises(OSError, match="directory"):
        once(build(), replace(RECIPE, steps=4), folder=folder)
    weights.rmdir()
    assert once(build(), replace(RECIPE, steps=4), folder=folder).sha256 == straight.sha256


def test_seconds_count_all_attempts(tmp_path: Path) -> None:
    once = partial(train, examples=noise(), seed=3, folder=tmp_path)
    first = once(build(), replace(RECIPE, steps=1))
    tensors, metadata = read(tmp_path / "state.safetensors")
    assert 0 < float(metadata["seconds"]) <= first.seconds
    write(tmp_path / "state.safetensors", tensors, {**metadata, "seconds": "1000.0"})
    assert 1000 < once(build(), replace(RECIPE, steps=2)).seconds < 1000 + 60


def test_training_reads_the_split_it_is_told(tmp_path: Path) -> None:
    hashes = {
        split: train(build(), RECIPE, noise(split), seed=3, folder=tmp_path / split).sha256
        for split in ("half", "train")
    }
    assert len(set(hashes.values())) == 2
    with pytest.raises(CheckpointError, match="another recipe"):
        train(build(), RECIPE, noise("half"), seed=3, folder=tmp_path / "train")


def test_accumulated_micro_batches_equal_one_batch() -> None:
    """A GAN loss that is a mean over samples: hinge without augmentation draws."""
    results = []
    for pieces in (1, 2):
        torch.manual_seed(0)
        model = CONFIG.build()
        recipe = GanRecipe(objective="hinge", steps=1, batch=4, accumulate_d=pieces, clip=None)
        update = updates(model, recipe)[0]
        runner = UpdateRunner(model, update, betas=recipe.betas, clip=None)
        real = Noise().images(torch.arange(4), (8, 8))
        runner.run(real, Draws(sample_seeds(0, torch.arange(4))))
        results.append({n: p.grad for n, p in model.discriminator.named_parameters()})
    for name, gradient in results[0].items():
        torch.testing.assert_close(gradient, results[1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_gradients_are_clipped_to_the_norm() -> None:
    model = build()
    update = updates(model, replace(RECIPE, clip=1e-3))[0]
    runner = UpdateRunner(model, update, betas=(0.0, 0.99), clip=1e-3)
    real = Noise().images(torch.arange(4), (8, 8))
    figures = runner.run(real, Draws(sample_seeds(0, torch.arange(4))))
    norm = torch.stack([p.grad.norm() for p in runner.parameters if p.grad is not None]).norm()
    assert figures["gradient_norm"] > 1e-3
    assert norm.item() == pytest.approx(1e-3, rel=1e-3)


def test_an_update_names_its_optimiser() -> None:
    """Muon keeps one array a matrix, Adam two."""
    model = build()
    update = updates(model, RECIPE)[0]
    real, kept = Noise().images(torch.arange(4), (8, 8)), {}
    for name in ("adam", "muon"):
        named = replace(update, optimizer=name)
        runner = UpdateRunner(model, named, betas=(0.0, 0.99), clip=5.0)
        runner.run(real, Draws(sample_seeds(0, torch.arange(4))))
        kept[name] = sum(tensor.numel() for tensor in runner.state().values() if tensor.ndim >= 2)
    matrices = sum(p.numel() for p in runner.parameters if p.ndim >= 2)
    assert kept == {"adam": 2 * matrices, "muon": matrices}
    with pytest.raises(ValueError, match="optimizer='sgd' is not offered; use adam or muon"):
        UpdateRunner(model, replace(update, optimizer="sgd"), betas=(0.0, 0.99), clip=5.0)  # type: ignore[arg-type]


def test_only_the_updated_part_changes() -> None:
    model = build()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for update in updates(model, RECIPE):
        runner = UpdateRunner(model, update, betas=(0.0, 0.99), clip=5.0)
        real = Noise().images(torch.arange(4), (8, 8))
        runner.run(real, Draws(sample_seeds(0, torch.arange(4))))
        changed = {
            k.partition(".")[0] for k, v in model.state_dict().items() if not v.equal(before[k])
        }
        assert changed == {update.part}
        before = {k: v.clone() for k, v in model.state_dict().items()}


def test_bf16_trains_and_keeps_float32_weights(tmp_path: Path) -> None:
    model = build()
    result = train(model, replace(RECIPE, steps=2), noise(), seed=0, folder=tmp_path, dtype="bf16")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(abs(v) < 1e3 for v in result.figures.values())


def test_a_diverging_run_stops_and_keeps_its_last_good_checkpoint(tmp_path: Path) -> None:
    good = train(build(), replace(RECIPE, steps=2), noise(), seed=0, folder=tmp_path / "good")
    broken = build()
    with torch.no_grad():
        broken.discriminator.head.weight.fill_(float("nan"))
    with pytest.raises(
        NonFiniteLoss, match="step 0: discriminator: loss is nan; no checkpoint yet"
    ):
        train(broken, RECIPE, noise(), seed=0, folder=tmp_path / "none")
    # A run that diverges later: a learning rate that overflows after the first checkpoint.
    wild = replace(RECIPE, lr_d=1e30, clip=None, steps=50)
    with pytest.raises(NonFiniteLoss) as failure:
        train(build(), wild, noise(), seed=0, folder=tmp_path / "wild", checkpoint_every=1)
    if failure.value.weights is not None:
        tensors, _ = read(failure.value.weights)
        assert all(t.isfinite().all() for t in tensors.values())
    assert sha256_of(good.weights) == good.sha256


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    train(build(), replace(RECIPE, steps=1), noise(), seed=0, folder=tmp_path)
    with pytest.raises(CheckpointError, match="another recipe, seed, precision or data set"):
        train(build(), replace(RECIPE, steps=1), noise(), seed=1, folder=tmp_path)


def test_running_statistics_reach_the_averaged_generator(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = DCGANConfig(bottom=2, doublings=2, width=8, latent=4).build()
    recipe = GanRecipe(objective="hinge", steps=2, batch=4, clip=None)
    result = train(model, recipe, noise(), seed=0, folder=tmp_path)
    tensors, _ = read(result.weights)
    means = [t for k, t in tensors.items() if k.endswith("running_mean")]
    assert means
    assert all(m.abs().max() > 0 for m in means)

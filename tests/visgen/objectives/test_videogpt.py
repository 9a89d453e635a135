"""VideoGPT's two stages: losses, what each changes, conditions left out, exact resume."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from visgen.data.dataset import DataError
from visgen.data.grid_agent import open_grid_agent
from visgen.data.moving_digits import open_moving_digits
from visgen.data.moving_shapes import open_moving_shapes
from visgen.data.videos import Clip, VideoData
from visgen.models.prior import PriorConfig
from visgen.models.videogpt import VideoGPT, VideoGPTConfig
from visgen.models.vqvae import VQVAEConfig
from visgen.objectives.update import cosine
from visgen.objectives.videogpt import CodeBatch, PriorRecipe, VqvaeRecipe
from visgen.pixels import to_unit
from visgen.seeds import Draws
from visgen.training import train
from visgen.training.examples import Clips
from visgen.training.latents import Latents, encoded

CLIP = Clip(frames=4, size=(16, 16))
CONFIG = VideoGPTConfig(
    vqvae=VQVAEConfig(
        frames=4,
        size=(16, 16),
        downsample=(2, 4, 4),
        width=12,
        inner_width=6,
        residual_layers=1,
        code_dim=6,
        codes=16,
    ),
    prior=PriorConfig(
        grid=(2, 4, 4),
        code_dim=6,
        codes=16,
        width=24,
        layers=1,
        classes=10,
        frame_size=16,
        frame_channels=12,
        frame_depths=(1, 1, 1, 1),
        cross_values=12,
        text_layers=1,
        text_tokens=12,
    ),
)


def build(**changes: object) -> VideoGPT:
    torch.manual_seed(0)
    return replace(CONFIG, prior=replace(CONFIG.prior, **changes)).build()  # type: ignore[arg-type]


def digits() -> VideoData:
    return open_moving_digits(CLIP, digits=1)


def few(data: VideoData, split: str = "train", count: int = 24) -> VideoData:
    """A set of the first clips of a split alone."""
    return replace(data, splits={split: data.splits[split][:count]})


def states(model: VideoGPT) -> dict[str, dict[str, Tensor]]:
    return {
        part: {k: v.clone() for k, v in network.state_dict().items()}
        for part, network in model.networks().items()
    }


@pytest.mark.parametrize(("optimizer", "lr"), [("adam", 3e-3), ("muon", 1e-2)])
def test_first_stage_changes_the_vqvae_alone_and_learns(
    tmp_path: Path, optimizer: Literal["adam", "muon"], lr: float
) -> None:
    """It starts at the mean, whose error is the variance."""
    model, curve = build(), []
    before = states(model)
    train(
        model,
        VqvaeRecipe(steps=60, batch=4, lr=lr, optimizer=optimizer, variance=0.026),
        Clips(few(digits()), "train"),
        seed=0,
        folder=tmp_path,
        log_every=1,
        on_log=lambda _, figures: curve.append(figures["vqvae/error"]),
    )
    after = states(model)
    assert sum(curve[-5:]) < 0.7 * sum(curve[:5])
    assert all(torch.equal(v, after["prior"][k]) for k, v in before["prior"].items())
    assert bool(model.vqvae.codebook.initialized)
    assert not model.vqvae.training


def test_second_stage_changes_the_prior_alone_and_starts_at_the_logarithm_of_k(
    tmp_path: Path,
) -> None:
    model, data, curve = build(), few(digits()), []
    before = states(model)
    codes = encoded(model, data, "train")
    assert codes.shape == (24, 2, 4, 4)
    train(
        model,
        PriorRecipe(steps=20, batch=8, lr=3e-3),
        Latents(model, data, "train", codes),
        seed=0,
        folder=tmp_path,
        log_every=1,
        on_log=lambda _, figures: curve.append(figures["prior/loss"]),
    )
    after = states(model)
    assert curve[0] == pytest.approx(math.log(16), abs=1e-5)
    assert curve[-1] < curve[0] - 0.3
    assert all(torch.equal(v, after["vqvae"][k]) for k, v in before["vqvae"].items())


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
@pytest.mark.parametrize("stage", ["vqvae", "prior"])
def test_a_run_in_two_parts_equals_one_in_one(
    stage: str, optimizer: Literal["adam", "muon"], tmp_path: Path
) -> None:
    def run(folder: Path, steps: int, model: VideoGPT) -> str:
        data = few(digits())
        if stage == "vqvae":
            recipe, examples = (
                VqvaeRecipe(steps=6, batch=4, optimizer=optimizer),
                Clips(data, "train"),
            )
        else:
            recipe = PriorRecipe(steps=6, batch=4, optimizer=optimizer)
            codes = torch.arange(24 * 32).view(24, 2, 4, 4) % 16
            examples = Latents(model, data, "train", codes.int())

        def stop(step: int, figures: dict[str, float]) -> None:
            if step == steps:  # on its way, where the rate's schedule is that of the whole run
                raise KeyboardInterrupt

        return train(
            model,
            recipe,
            examples,
            seed=1,
            folder=folder,
            checkpoint_every=1,
            log_every=1,
            on_log=stop if steps < 6 else None,
        ).sha256

    whole = run(tmp_path / "a", 6, build())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "b", 3, build())
    assert run(tmp_path / "b", 6, build()) == whole


def test_rates_follow_half_a_cosine() -> None:
    schedule = cosine(100)
    assert [schedule(step) for step in (0, 50, 100, 120)] == pytest.approx([1, 0.5, 0, 0])


def test_conditions_are_left_out_as_often_as_asked_for() -> None:
    codes = torch.zeros(4000, 2, 4, 4, dtype=torch.int64)
    words = torch.zeros(4000, 3, dtype=torch.int64)
    lengths = torch.full((4000,), 3)
    known = {"labels": lengths, "words": words, "lengths": lengths}
    batch, draws = CodeBatch(codes, known), Draws(torch.arange(4000), "train", 5)

    def shares(drop: float) -> list[float]:
        given = PriorRecipe(steps=1, batch=1, drop=drop).given(batch, draws)
        assert given.keys() == {"labels", "words"}
        return [float(mask.double().mean()) for mask in given.values()]

    assert shares(0.0) == [1.0, 1.0]
    assert shares(0.25) == pytest.approx([0.75, 0.75], abs=0.02)
    assert shares(1.0) == [0.0, 0.0]
    given = PriorRecipe(steps=1, batch=1, drop=0.5).given(batch, draws)
    both = float((given["labels"] & given["words"]).double().mean())
    assert both == pytest.approx(0.25, abs=0.03)  # each kind for itself


def test_latents_bring_the_conditions_that_model_and_data_share() -> None:
    labelled, data = build(), digits()
    codes = torch.zeros(len(data.splits["test"]), 2, 4, 4, dtype=torch.int32)
    places, seeds = torch.tensor([5, 0]), torch.tensor([1, 2])
    batch = Latents(labelled, data, "test", codes).take(places, seeds)
    indices = data.splits["test"][places]
    assert data.targets is not None
    assert torch.equal(batch.conditions["labels"], data.targets[indices])
    assert batch.codes.dtype == torch.int64
    looking = build(classes=0, frames=2)
    frames = Latents(looking, data, "test", codes).take(places, seeds).conditions["frames"]
    torch.testing.assert_close(frames, to_unit(data.videos(indices)[:, :2]))
    moved = open_grid_agent(CLIP)
    acting = build(classes=0, actions=15)
    codes = torch.zeros(len(moved.splits["test"]), 2, 4, 4, dtype=torch.int32)
    found = Latents(acting, moved, "test", codes).take(places, seeds).conditions
    assert found.keys() == {"actions"}
    assert found["actions"].shape == (2, 15)
    told = open_moving_shapes(CLIP)
    reading = build(classes=0, words=("a", "red", "circle"))
    codes = torch.zeros(len(told.splits["test"]), 2, 4, 4, dtype=torch.int32)
    found = Latents(reading, told, "test", codes).take(places, seeds).conditions
    sentences = told.captions(told.splits["test"][places])
    assert sentences is not None
    assert found["lengths"].tolist() == [len(sentence.split()) for sentence in sentences]
    assert found["words"][0, 0] == 0


def test_a_batch_of_codes_can_be_cut() -> None:
    batch = CodeBatch(torch.arange(6).view(6, 1, 1, 1), {"labels": torch.arange(6)})
    part = batch[slice(2, 4)].to("cpu")
    assert part.codes.flatten().tolist() == [2, 3]
    assert part.conditions["labels"].tolist() == [2, 3]


def test_codes_of_clips_that_begin_anywhere_are_not_kept() -> None:
    data = digits()
    anywhere = replace(data, clip=replace(data.clip, policy="random"))
    with pytest.raises(DataError, match='opened with policy "random"'):
        encoded(build(), anywhere, "test")


def test_recipes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="steps=0; it must be at least 1"):
        VqvaeRecipe(steps=0, batch=1)
    with pytest.raises(ValueError, match=r"variance=0\.0: .* above 0, 0\.25 at most"):
        VqvaeRecipe(steps=1, batch=1, variance=0.0)
    with pytest.raises(ValueError, match="a batch of 8 cannot be cut into 3"):
        PriorRecipe(steps=1, batch=8, accumulate=3)
    with pytest.raises(ValueError, match=r"drop=1\.5 is 0 to 1"):
        PriorRecipe(steps=1, batch=1, drop=1.5)

"""What every model of the catalogue must hold, whoever wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from visgen.catalogue import CATALOGUE, UnknownPreset, find
from visgen.checkpoints import load_weights, save_weights
from visgen.checkpoints.weights import part_states
from visgen.conditions import Actions, ClassLabel, Condition, Conditions, FirstFrames, Text
from visgen.objectives.gan import OBJECTIVES, GanRecipe, updates
from visgen.seeds import Draws, sample_seeds
from visgen.tasks import ImageGenerator, Trainable, VideoGenerator

BUILT = {name: config for name, config in CATALOGUE.items() if config.family != "reference"}
TRAINED = sorted(name for name, config in BUILT.items() if config.task == "image-generation")
CLIPS = sorted(name for name, config in BUILT.items() if config.task == "video-generation")
TINY_CLIPS = [name for name in CLIPS if name.endswith("-tiny")]
TINY = [name for name in TRAINED if name.endswith("-tiny")]


@pytest.fixture(params=TINY)
def preset(request: pytest.FixtureRequest) -> str:
    torch.manual_seed(0)
    return request.param


@pytest.mark.parametrize("name", TRAINED)
def test_every_preset_builds_without_memory_and_keeps_its_contract(name: str) -> None:
    with torch.device("meta"):
        model = find(name).build()
    assert isinstance(model, ImageGenerator)
    assert isinstance(model, Trainable)
    assert model.image_size == find(name).image_size
    for part in model.networks().values():
        assert isinstance(part, nn.Module)
        assert not any(module.training for module in part.modules())


def test_samples_are_bytes_of_the_presets_size(preset: str) -> None:
    model = find(preset).build()
    images = model.generate(sample_seeds(0, torch.arange(3)))
    assert images.dtype == torch.uint8
    assert images.shape == (3, 3, *find(preset).image_size)


def test_a_sample_depends_on_its_seed_alone(preset: str) -> None:
    model = find(preset).build()
    seeds = sample_seeds(1, torch.arange(12))
    whole = model.generate(seeds).int()
    parts = torch.cat([model.generate(seeds[i : i + 5]) for i in (0, 5, 10)]).int()
    backwards = model.generate(seeds.flip(0)).flip(0).int()
    for other in (parts, backwards):
        assert (whole - other).abs().max() <= 1
        assert (whole != other).float().mean() <= 1e-3
    assert torch.equal(model.generate(seeds).int(), whole)
    assert len({tuple(image.flatten().tolist()) for image in whole}) == 12


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_losses_and_gradients_of_every_parameter_are_finite(preset: str, objective) -> None:
    model = find(preset).build().train()
    recipe = GanRecipe(
        objective=objective, steps=1, batch=2, r1=0.1, diffaugment=("color", "translation")
    )
    real = torch.randint(0, 256, (2, 3, *model.image_size), dtype=torch.uint8)
    for update in updates(model, recipe):
        model.zero_grad()
        loss = update.loss(real, Draws(sample_seeds(0, torch.arange(2))))["loss"]
        loss.backward()
        assert loss.isfinite()
        for name, parameter in model.networks()[update.part].named_parameters():
            # Adding a constant to every logit changes no gradient penalty, so all else must flow.
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_saved_weights_come_back_as_the_same_model(preset: str, tmp_path: Path) -> None:
    model = find(preset).build()
    path = tmp_path / "weights.safetensors"
    digest = save_weights(path, part_states(model.networks()), {"preset": preset})
    torch.manual_seed(1)
    again = find(preset).build()
    seeds = sample_seeds(0, torch.arange(4))
    assert not torch.equal(again.generate(seeds), model.generate(seeds))
    assert load_weights(again, path) == digest
    assert torch.equal(again.generate(seeds), model.generate(seeds))


def test_a_condition_is_refused_by_unconditional_models(preset: str) -> None:
    with pytest.raises(ValueError, match="unconditional"):
        find(preset).build().generate(sample_seeds(0, torch.arange(1)), condition=3)


def test_an_unknown_preset_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UnknownPreset, match='nearest: "transgan-cifar10"'):
        find("transgan-cifar")


def asked(name: str, n: int) -> Condition | None:
    """A condition of every kind that the preset takes, other for each sample."""
    config, parts = find(name), []
    rows, columns = config.clip_size[1:]
    noise = torch.Generator().manual_seed(0)
    for kind in config.conditions:
        if kind == "class":
            parts.append(ClassLabel(torch.arange(n) % config.prior.classes))
        elif kind == "frames":
            size = (n, config.context, 3, rows, columns)
            parts.append(FirstFrames(torch.randint(0, 256, size, generator=noise).byte()))
        elif kind == "text":
            words = config.prior.words
            parts.append(Text(tuple(f"{words[i % 3]} {words[i]}" for i in range(n))))
        else:
            parts.append(Actions(torch.rand(n, config.prior.actions, generator=noise)))
    return None if not parts else parts[0] if len(parts) == 1 else Conditions(tuple(parts))


def picked(condition: Condition | None, places: list[int]) -> Condition | None:
    """The condition of some of its samples."""
    if condition is None:
        return None
    if isinstance(condition, Conditions):
        return Conditions(tuple(picked(one, places) for one in condition.several))  # type: ignore
    if isinstance(condition, Text):
        return Text(tuple(condition.sentences[i] for i in places))
    (value,) = vars(condition).values()
    return type(condition)(value[torch.tensor(places)])


@pytest.mark.parametrize("name", CLIPS)
def test_every_preset_of_clips_builds_without_memory_and_keeps_its_contract(name: str) -> None:
    with torch.device("meta"):
        model = find(name).build()
    assert isinstance(model, VideoGenerator)
    assert isinstance(model, Trainable)
    assert tuple(model.clip_size) == tuple(find(name).clip_size)
    assert set(find(name).conditions) <= {"class", "frames", "text", "actions"}
    for part in model.networks().values():
        assert not any(module.training for module in part.modules())


@pytest.mark.parametrize("name", TINY_CLIPS)
def test_a_clip_depends_on_its_seed_and_condition_alone(name: str) -> None:
    torch.manual_seed(0)
    model, seeds = find(name).build(), sample_seeds(1, torch.arange(5))
    condition = asked(name, 5)
    whole = model.generate(seeds, condition)
    assert whole.dtype == torch.uint8
    frames, *size = find(name).clip_size
    assert whole.shape == (5, frames, 3, *size)
    parts = [[0, 1], [2, 3, 4]]
    cut = torch.cat([model.generate(seeds[p], picked(condition, p)) for p in parts])
    backwards = [4, 3, 2, 1, 0]
    turned = model.generate(seeds[backwards], picked(condition, backwards)).flip(0)
    for other in (cut, turned):
        assert (whole.int() - other.int()).abs().max() <= 1
        assert (whole != other).float().mean() <= 1e-3
    assert torch.equal(model.generate(seeds, condition), whole)


@pytest.mark.parametrize("name", TINY_CLIPS)
def test_a_condition_that_a_model_of_clips_does_not_take_is_refused(name: str) -> None:
    kinds = {"class": ClassLabel(torch.zeros(1, dtype=torch.int64)), "text": Text(("a",))}
    kinds["actions"] = Actions(torch.zeros(1, 3))
    model = find(name).build()
    for kind, condition in kinds.items():
        if kind not in find(name).conditions:
            with pytest.raises(ValueError, match=r"was not made for|goes on from first frames"):
                model.generate(sample_seeds(0, torch.arange(1)), condition)


@pytest.mark.parametrize("name", TINY_CLIPS)
def test_saved_weights_of_clips_come_back_as_the_same_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = find(name).build()
    digest = save_weights(tmp_path / "w.safetensors", part_states(model.networks()), {})
    torch.manual_seed(1)
    again = find(name).build()
    assert load_weights(again, tmp_path / "w.safetensors") == digest
    ours, theirs = part_states(model.networks()), part_states(again.networks())
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)

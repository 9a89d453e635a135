"""TransGAN: published parameter counts, and equality with the released structure."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from visgen.catalogue import find
from visgen.layers.norms import Norm
from visgen.models.transgan import PRESETS, TransGANConfig
from visgen.seeds import Draws, sample_seeds

ROOT = Path(__file__).parents[3]
SMALL = TransGANConfig(
    bottom_width=2,
    generator_width=64,
    latent=8,
    generator_depths=(2, 1, 1),
    discriminator_width=32,
    discriminator_depth=2,
)


def eager() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "transgan_eager", ROOT / "bench/benchmarks/transgan_eager.py"
    )
    if spec is None or spec.loader is None:
        raise RuntimeError("bench/benchmarks/transgan_eager.py is missing")
    module = importlib.util.module_from_spec(spec)
    sys.modules["transgan_eager"] = module
    spec.loader.exec_module(module)
    return module


def twins(module: ModuleType, config: TransGANConfig) -> dict[str, nn.Module]:
    size = config.image_size[0]
    short = {"layer": "ln", "pixel": "pn"}
    return {
        "generator": module.EagerGenerator(
            config.bottom_width,
            config.generator_width,
            config.latent,
            config.generator_depths,
            short[config.generator_norm],
        ),
        "discriminator": module.EagerDiscriminator(
            size,
            config.discriminator_width,
            config.discriminator_depth,
            config.patch,
            short[config.discriminator_norm],
        ),
    }


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("preset", "generator", "discriminator"),
    [
        ("transgan-cifar10", 83_312_495, 10_210_400),
        ("transgan-stl10", 168_466_623, 10_341_536),
        ("transgan-digits8-tiny", 247_319, 465_014),
    ],
)
def test_parameter_counts_are_the_published_ones(
    preset: str, generator: int, discriminator: int
) -> None:
    with torch.device("meta"):
        parts = find(preset).build().networks()
    assert count(parts["generator"]) == generator
    assert count(parts["discriminator"]) == discriminator


def test_cifar_parts_have_the_published_sizes() -> None:
    with torch.device("meta"):
        generator = find("transgan-cifar10").build().generator
    assert count(generator.first) == 16_842_752
    assert [p.numel() for p in generator.positions] == [65_536] * 3
    assert [count(stage[0]) for stage in generator.stages] == [12_594_052, 792_836, 65_668]
    assert count(generator.to_rgb) == 195


@pytest.mark.parametrize(("part", "tensors"), [("generator", 150), ("discriminator", 107)])
def test_the_eager_twin_has_the_released_checkpoints_tensors(part: str, tensors: int) -> None:
    module = eager()
    with torch.device("meta"):
        twin = twins(module, PRESETS["transgan-cifar10"])[part]
        ours = find("transgan-cifar10").build().networks()[part]
    assert len(twin.state_dict()) == tensors
    names = module.released_names(part, list(ours.state_dict()))
    theirs = {k for k in twin.state_dict() if not k.endswith("relative_position_index")}
    assert set(names.values()) == theirs


def small(norm: Norm, part: str) -> tuple[TransGANConfig, nn.Module, nn.Module]:
    """Our network and its twin with the same weights, none of them 0, in float64."""
    config = replace(SMALL, generator_norm=norm, discriminator_norm=norm)
    torch.manual_seed(1)
    ours = config.build().double().networks()[part]
    for parameter in ours.parameters():  # biases and noise strengths start at 0: move them
        nn.init.normal_(parameter, std=0.2)
    module = eager()
    twin = twins(module, config)[part].double()
    names = module.released_names(part, list(ours.state_dict()))
    twin.load_state_dict({names[k]: v for k, v in ours.state_dict().items()}, strict=False)
    return config, ours, twin


@pytest.mark.parametrize("norm", ["layer", "pixel"])
def test_generator_equals_the_released_structure(norm: Norm) -> None:
    config, ours, twin = small(norm, "generator")
    z = torch.randn(3, config.latent, dtype=torch.float64)
    torch.testing.assert_close(ours(z), twin(z), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", ["layer", "pixel"])
def test_discriminator_logits_and_input_gradients_equal_the_released_structure(norm: Norm) -> None:
    _, ours, twin = small(norm, "discriminator")
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    draws = Draws(sample_seeds(0, torch.arange(2)))
    noise = [
        draws.fork(scale).fork(str(i)).normal("noise", (n, 1)).double()
        for scale, n in (("fine", 16), ("coarse", 4))
        for i in range(2)
    ]
    noise.append(draws.fork("last").normal("noise", (5, 1)).double())
    results = []
    for logits in (ours(images, draws), twin(images, noise).squeeze(-1)):
        (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), images)
        results.append((logits, gradient, second))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_recomputed_activations_give_the_same_gradients_through_a_penalty() -> None:
    torch.manual_seed(0)
    ours = SMALL.build().discriminator
    draws = Draws(sample_seeds(0, torch.arange(2)))
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    gradients = []
    for recompute in (False, True):
        ours.recompute = recompute
        (inner,) = torch.autograd.grad(ours(images, draws).sum(), images, create_graph=True)
        parameters = [p for p in ours.parameters() if p is not ours.head.bias]
        gradients.append(torch.autograd.grad(inner.square().sum(), parameters, allow_unused=True))
    for plain, again in zip(*gradients, strict=True):
        if plain is None:
            assert again is None
        else:
            torch.testing.assert_close(plain, again)


def test_errors_name_the_setting_and_what_is_possible() -> None:
    with pytest.raises(ValueError, match="generator_width=100 must be a multiple of 64"):
        TransGANConfig(generator_width=100)
    with pytest.raises(ValueError, match="discriminator_width=100 must be a multiple of 16"):
        TransGANConfig(discriminator_width=100)
    with pytest.raises(ValueError, match="cannot be cut into patches of 3 and 6"):
        TransGANConfig(patch=3)

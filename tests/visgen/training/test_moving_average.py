"""The generator's moving average."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from visgen.objectives.gan import decay_at
from visgen.training.moving_average import MovingAverage


def test_the_ramp_halves_weights_over_a_tenth_of_the_images_seen() -> None:
    # After 100,000 images the half-life is 10,000: 10,000 / 64 updates of 64 images halve a weight.
    decay = decay_at(100_000, 64, half_life=500_000, warmup=0.1)
    assert decay ** (10_000 / 64) == pytest.approx(0.5)


def test_the_ramp_ends_at_the_half_life() -> None:
    assert decay_at(10**9, 64, 500_000, 0.1) == pytest.approx(0.5 ** (64 / 500_000))


def test_parameters_are_averaged_and_buffers_are_copied() -> None:
    network = nn.BatchNorm1d(1)
    average = MovingAverage(network)
    with torch.no_grad():
        network.weight.fill_(3.0)
        assert network.running_mean is not None
        network.running_mean.fill_(5.0)
    average.update(0.75)
    assert average.state["weight"].item() == pytest.approx(0.75 * 1 + 0.25 * 3)
    assert average.state["running_mean"].item() == 5.0

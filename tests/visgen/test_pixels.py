"""Bytes to the networks' range and back."""

from __future__ import annotations

import pytest
import torch

from visgen.pixels import to_bytes, to_unit_range


def test_every_byte_survives_the_round_trip() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_bytes(to_unit_range(every)), every)


def test_ends_of_the_range_and_values_beyond_it() -> None:
    values = torch.tensor([-1.0, 1.0, -7.0, 7.0, 0.0])
    assert to_bytes(values).tolist() == [0, 255, 0, 255, 128]  # 127.5 rounds up


def test_floats_are_refused_where_bytes_are_expected() -> None:
    with pytest.raises(ValueError, match="uint8"):
        to_unit_range(torch.zeros(3))

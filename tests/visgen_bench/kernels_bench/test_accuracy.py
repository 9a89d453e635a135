"""Errors against float64: closed forms, and what is left out."""

import math
from dataclasses import replace

import pytest
import torch

from visgen_bench.kernels_bench.accuracy import codebook_excess, equal_bits, truth
from visgen_bench.kernels_bench.calls import prepare
from visgen_bench.kernels_bench.problem import Problem
from visgen_bench.kernels_bench.sides import make_side
from visgen_kernels.shapes import Shape

Layers = dict[str, Shape]


def test_a_shifted_result_has_that_error(layers: Layers) -> None:
    made = Problem(layers["causal"])
    right = truth(made, "forward")
    exact = torch.cat(right.exact["out"])
    error = right.compare({"out": exact + 0.5})["out"]
    assert error.largest == pytest.approx(0.5)
    norm = float(exact.square().sum().sqrt())
    assert error.frobenius == pytest.approx(0.5 * math.sqrt(exact.numel()) / norm)
    rough = torch.cat(right.low["out"]).double()
    assert error.ratio == pytest.approx(0.5 / float((rough - exact).abs().max()))


def test_the_definition_in_the_same_dtype_has_ratio_one(layers: Layers) -> None:
    made = Problem(layers["causal"], dtype=torch.bfloat16)
    right = truth(made, "forward")
    assert right.compare({"out": torch.cat(right.low["out"])})["out"].ratio == 1.0


def test_nan_is_an_error_and_not_lost(layers: Layers) -> None:
    made = Problem(layers["causal"])
    right = truth(made, "forward")
    broken = torch.cat(right.exact["out"]).clone()
    broken[0, 0, 0, 0] = torch.nan
    assert math.isnan(right.compare({"out": broken})["out"].largest)


def test_two_samples_are_compared_and_a_table_only_if_they_are_all(
    layers: Layers,
) -> None:
    two = Problem(layers["bias"])
    results = prepare(make_side("eager", two), "backward").results()
    assert set(truth(two, "backward").compare(results)) == {"d qkv", "d table"}
    three = Problem(replace(layers["bias"], batch=3))
    right = truth(three, "backward")
    assert right.samples == (0, 2)
    results = prepare(make_side("eager", three), "backward").results()
    assert set(right.compare(results)) == {"d qkv"}
    results["d qkv"][1] += 9.0  # the middle sample is nobody's
    assert right.compare(results)["d qkv"].largest < 1e-4
    results["d qkv"][2] += 9.0
    assert right.compare(results)["d qkv"].largest > 8


def test_bits_are_compared_and_not_values() -> None:
    zero = torch.zeros(2)
    assert equal_bits({"x": zero}, {"x": zero.clone()})
    assert not equal_bits({"x": zero}, {"x": -zero})
    nan = torch.full((2,), torch.nan, dtype=torch.bfloat16)
    assert equal_bits({"x": nan}, {"x": nan.clone()})


def test_a_wrong_code_costs_the_difference_of_distances(codes: Shape) -> None:
    made = Problem(codes)
    vectors, others = (made.leaves[name].detach().double() for name in ("q", "k"))
    distances = torch.cdist(vectors, others).square()
    assert codebook_excess(made, distances.argmin(1)) == pytest.approx(0, abs=1e-12)
    worst = (distances.amax(1) - distances.amin(1)).max()
    assert codebook_excess(made, distances.argmax(1)) == pytest.approx(worst.item())

"""Predictions: what they are made of, and that they rank as published figures do."""

from dataclasses import replace

import pytest

from visgen_kernels.attention.tiles import Tile
from visgen_kernels.roofline import Work, devices
from visgen_kernels.static.analysis import Facts, analyse, predict
from visgen_kernels.static.report import Report
from visgen_kernels.static.specimens import plain_specimen
from visgen_kernels.static.targets import TARGETS

Pair = tuple[Facts, Report]
H100 = devices()["h100-sxm"]


@pytest.fixture(scope="module")
def plain() -> Pair:
    """The plain loop at 64 channels on sm_90, 4 x 32 heads of 4096 tokens."""
    specimen = plain_specimen(Tile(128, 64, 4, 3), 64, heads=128)
    return specimen.facts, analyse(specimen, TARGETS["sm_90"]).report


def test_a_prediction_is_within_30_percent_of_what_was_published(
    plain: Pair,
) -> None:
    facts, found = plain
    predicted = predict(facts, found, H100)
    assert predicted.seconds is not None
    # Triton on an H100, 64 channels, 512 to 16k tokens: 340 to 403 TFLOP/s.
    assert facts.work is not None
    rate = facts.work.flops / predicted.seconds / 1e12
    assert 340 * 0.7 <= rate <= 403 * 1.3
    assert predicted.floor is not None
    assert predicted.seconds > predicted.floor.time
    assert predicted.launched is not None
    assert predicted.launched.waves == pytest.approx(128 * 32 / (2 * 132))


def test_issue_slots_follow_from_the_instructions_of_all_passes(
    plain: Pair,
) -> None:
    facts, found = plain
    predicted = predict(facts, found, H100)
    assert predicted.issue is not None
    assert found.interior.instructions is not None
    in_loops = found.interior.instructions * 128 * 4096**2 / H100.per_second("issue")
    assert in_loops < predicted.issue < 1.05 * in_loops


def test_a_kernel_that_only_moves_bytes_takes_what_the_memory_takes(
    plain: Pair,
) -> None:
    facts, found = plain
    work = Work(bytes=1e12)
    predicted = predict(replace(facts, work=work), found, H100)
    assert predicted.seconds == pytest.approx(1e12 / (0.9 * 3.35e12))


def test_what_the_model_cannot_know_is_none_with_a_reason(plain: Pair) -> None:
    facts, found = plain
    unknown = predict(replace(facts, whole=None), found, H100)
    assert (unknown.seconds, unknown.launched) == (None, None)
    assert "how often a program runs its loop" in unknown.reason
    assert unknown.floor is not None
    assert unknown.issue is None
    full = replace(found, occupancy=replace(found.occupancy, blocks=0))
    assert "no block fits" in predict(facts, full, H100).reason
    without = predict(replace(facts, work=None), found, H100)
    assert (without.floor, without.seconds) == (None, None)
    assert "how many bytes" in without.reason
    assert without.launched is not None

import pytest
import torch

from visgen_bench.metrics.digit_share import DigitCounts
from visgen_bench.metrics.errors import TooFewSamples


def rows(*tops: tuple[int, float]) -> torch.Tensor:
    """Probabilities whose class and top value are given."""
    out = torch.empty(len(tops), 10)
    for i, (chosen, top) in enumerate(tops):
        out[i] = (1 - top) / 9
        out[i, chosen] = top
    return out


def test_a_class_counts_from_two_percent_on() -> None:
    counts = DigitCounts.empty()
    counts.update(rows(*[(0, 0.95)] * 97, (1, 0.5), (1, 0.5), (2, 0.5)))
    assert counts.found() == 2  # 97 %, 2 %; and 1 % does not count


def test_confidence_is_above_nine_tenths_strictly() -> None:
    counts = DigitCounts.empty()
    counts.update(torch.tensor([[0.9] + [0.1 / 9] * 9]).double())
    counts.update(rows((3, 0.95), (3, 0.89)))
    assert counts.confident_share() == pytest.approx(1 / 3)


def test_two_ranks_merge_to_one() -> None:
    whole, parts = DigitCounts.empty(), [DigitCounts.empty(), DigitCounts.empty()]
    probabilities = torch.rand(50, 10, generator=torch.Generator().manual_seed(0)).softmax(1)
    whole.update(probabilities)
    for r, part in enumerate(parts):
        part.update(probabilities[r::2])
    parts[0].merge(parts[1])
    assert (parts[0].classes == whole.classes).all()
    assert parts[0].confident == whole.confident


def test_nothing_judged_is_an_error() -> None:
    with pytest.raises(TooFewSamples):
        DigitCounts.empty().found()

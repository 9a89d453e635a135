import warnings

import numpy as np
import pytest
import torch

from visgen_bench.metrics.errors import FeatureShapeError, StateError, TooFewSamples
from visgen_bench.metrics.inception_score import ScoreAccumulator, inception_score, split_of


def logits(n: int = 5003, classes: int = 50) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, classes)) * 3


@pytest.mark.parametrize("shuffle", [True, False])
def test_torch_fidelity_agrees(shuffle: bool) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peer's own imports
        import torch_fidelity.metric_isc as peer
    theirs = peer.isc_features_to_metric(torch.from_numpy(logits()), shuffle=shuffle)
    ours = inception_score(logits(), shuffle=shuffle)
    mean = theirs[peer.KEY_METRIC_ISC_MEAN]
    assert ours.value == pytest.approx(mean, abs=1e-12 * mean)
    assert ours.split_std == pytest.approx(theirs[peer.KEY_METRIC_ISC_STD], abs=1e-12 * mean)


def test_one_prediction_for_all_scores_one() -> None:
    assert inception_score(np.zeros((200, 7))).value == pytest.approx(1.0, abs=1e-12)


def test_sure_predictions_spread_evenly_score_the_number_of_classes() -> None:
    classes = 8
    sure = np.full((800, classes), -1e4)
    sure[np.arange(800), np.arange(800) % classes] = 1e4
    found = inception_score(sure, shuffle=False)
    assert found.value == pytest.approx(classes, abs=1e-12 * classes)
    assert found.split_std == pytest.approx(0.0, abs=1e-12)


def test_splits_are_the_floors_of_equal_shares() -> None:
    counts = np.bincount(split_of(5003), minlength=10)
    assert counts.sum() == 5003
    assert set(counts) == {500, 501}


def test_a_score_does_not_depend_on_batches_or_their_order() -> None:
    values = logits(500)
    split = split_of(500)
    sums = ScoreAccumulator.empty(50)
    for part in reversed(np.array_split(np.arange(500), 13)):
        sums.update(values[part], split[part])
    assert sums.score().value == pytest.approx(inception_score(values).value, rel=1e-13)


def test_two_ranks_merge_to_one() -> None:
    values, split = logits(500), split_of(500)
    ranks = [ScoreAccumulator.empty(50) for _ in range(2)]
    for r, rank in enumerate(ranks):
        rank.update(values[r::2], split[r::2])
    ranks[0].merge(ranks[1])
    assert ranks[0].score().value == pytest.approx(inception_score(values).value, rel=1e-13)


def test_fewer_than_ten_samples_a_split_are_an_error() -> None:
    with pytest.raises(TooFewSamples, match="100 samples, got 99"):
        inception_score(logits(99))
    with pytest.raises(TooFewSamples):
        ScoreAccumulator.empty(5).score()


def test_other_classes_are_refused() -> None:
    sums = ScoreAccumulator.empty(50)
    with pytest.raises(FeatureShapeError, match="49 classes"):
        sums.update(logits()[:, :49], split_of(5003))
    with pytest.raises(StateError):
        sums.merge(ScoreAccumulator.empty(49))

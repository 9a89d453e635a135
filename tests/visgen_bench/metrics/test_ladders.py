"""Damage raises the distance: the metrics measure what they claim to measure."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from visgen.data import Data, open_data
from visgen_bench.metrics.evaluation import Evaluation, RealSamples, ReferenceStatistics

METRICS = ("fd_lite0", "kid_lite0", "precision", "recall", "coverage", "digit_classes")
N = 250


@pytest.fixture(scope="module")
def data() -> Data:
    return open_data("digits:8")


@pytest.fixture(scope="module")
def reference(data: Data) -> ReferenceStatistics:
    return ReferenceStatistics.prepare(METRICS, RealSamples.from_data(data, "test"))


@pytest.fixture(scope="module")
def clean(data: Data) -> Tensor:
    return data.images(data.split("train")[:N])


def scores(reference: ReferenceStatistics, images: Tensor) -> dict[str, float]:
    evaluation = Evaluation(METRICS, reference, samples=len(images))
    evaluation.update(images, 0)
    found = {each.metric: each.value for each in evaluation.results()}
    return {metric: value for metric, value in found.items() if value is not None}


@pytest.fixture(scope="module")
def floor(reference: ReferenceStatistics, clean: Tensor) -> dict[str, float]:
    return scores(reference, clean)


def test_noise_raises_the_distance_step_by_step(
    reference: ReferenceStatistics, clean: Tensor, floor: dict[str, float]
) -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(N, 1, 8, 8, generator=generator)
    ladder = [floor]
    for sigma in (16, 48, 128):
        noisy = (clean + sigma * noise).round().clamp(0, 255).to(torch.uint8)
        ladder.append(scores(reference, noisy))
    for metric in ("fd_lite0", "kid_lite0"):
        values = [step[metric] for step in ladder]
        assert values == sorted(set(values)), metric


def test_blur_raises_the_distance_step_by_step(
    reference: ReferenceStatistics, clean: Tensor, floor: dict[str, float]
) -> None:
    ladder = [floor]
    blurred = clean.float()
    for _ in range(2):
        blurred = F.avg_pool2d(F.pad(blurred, (1, 1, 1, 1), mode="replicate"), 3, 1)
        ladder.append(scores(reference, blurred.round().to(torch.uint8)))
    for metric in ("fd_lite0", "kid_lite0"):
        values = [step[metric] for step in ladder]
        assert values == sorted(set(values)), metric


def test_dropped_classes_lower_recall_and_coverage_but_not_precision(
    reference: ReferenceStatistics, data: Data, floor: dict[str, float]
) -> None:
    train = data.split("train")
    labels = data.labels(train)
    assert labels is not None
    ladder = [floor]
    for classes in (4, 1):
        kept = train[labels < classes]
        ladder.append(scores(reference, data.images(kept[torch.arange(N) % len(kept)])))
    for metric in ("recall", "coverage", "digit_classes"):
        values = [step[metric] for step in ladder]
        assert values == sorted(set(values), reverse=True), metric
    values = [step["fd_lite0"] for step in ladder]
    assert values == sorted(set(values))
    assert min(step["precision"] for step in ladder) > floor["precision"] - 0.05

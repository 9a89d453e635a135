import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from visgen.data import Data, open_data
from visgen_bench.extractors.opening import Extractors
from visgen_bench.extractors.weights import WEIGHTS_DIR_VARIABLE, WeightsOffline
from visgen_bench.metrics.errors import ImageRangeError, ProtocolError, StateError
from visgen_bench.metrics.evaluation import (
    Evaluation,
    MetricValue,
    RealSamples,
    ReferenceStatistics,
    available,
)
from visgen_bench.metrics.frechet import frechet_distance_of_features
from visgen_bench.metrics.inception_score import inception_score
from visgen_bench.metrics.protocol import protocol, protocols

OFFLINE = tuple(
    name
    for name, entry in protocols().items()
    if entry.media == "image" and name not in ("fid", "kid", "isc")
)


@pytest.fixture(scope="module")
def data() -> Data:
    return open_data("digits:8")


@pytest.fixture(scope="module")
def reference(data: Data) -> ReferenceStatistics:
    return ReferenceStatistics.prepare(
        OFFLINE, RealSamples.from_data(data, "test"), train=RealSamples.from_data(data, "train")
    )


@pytest.fixture(scope="module")
def samples(data: Data) -> Tensor:
    """60 real training digits, scored as if generated."""
    return data.images(data.split("train")[:60])


def evaluated(
    reference: ReferenceStatistics, images: Tensor, batch: int = 60
) -> dict[str, MetricValue]:
    evaluation = Evaluation(OFFLINE, reference, samples=len(images))
    for part in torch.arange(len(images)).split(batch):
        evaluation.update(images[part], int(part[0]))
    return {found.metric: found for found in evaluation.results()}


def same(a: list[MetricValue], b: list[MetricValue], tolerance: float = 0.0) -> None:
    for x, y in zip(a, b, strict=True):
        assert (x.metric, x.n, x.reason) == (y.metric, y.n, y.reason)
        assert x.value == pytest.approx(y.value, rel=tolerance, abs=tolerance), x.metric


@pytest.mark.slow
def test_the_floor_of_the_digits_protocol_is_the_committed_one(
    reference: ReferenceStatistics, data: Data
) -> None:
    found = evaluated(reference, data.images(data.split("train")[:1000]), 250)
    assert found["fd_lite0"].value == pytest.approx(157.678, abs=0.01)
    assert found["kid_lite0"].value == pytest.approx(0.01386, abs=1e-4)
    assert found["precision"].value == pytest.approx(0.956, abs=0.002)
    assert found["recall"].value == pytest.approx(0.9528, abs=0.003)
    assert found["digit_classes"].value == 10
    assert found["digit_confident"].value is not None
    assert found["digit_confident"].value > 0.95
    assert found["copy_share"].value == 1.0  # they are training images
    assert {each.n for each in found.values()} == {1000}
    assert found["fd_lite0"].n_ref == 360


def test_every_row_says_what_it_is(reference: ReferenceStatistics, samples: Tensor) -> None:
    for found in evaluated(reference, samples).values():
        entry = protocol(found.metric)
        assert found.protocol == entry.id
        assert found.extractor_sha256 == entry.sha256
        assert not found.comparable  # proxies never are
        assert found.value is not None
        assert (found.ci_method is None) == ("interval" in found.metric_opts)
        if found.ci_low is not None and found.ci_high is not None:
            assert found.ci_low <= found.value <= found.ci_high
    names = {each.name for each in fields(MetricValue)}
    assert {"metric", "value", "stat", "n", "n_ref", "ci_low", "ci_high", "stderr"} <= names


def test_a_frechet_distance_has_no_interval_and_says_why(
    reference: ReferenceStatistics, samples: Tensor
) -> None:
    found = evaluated(reference, samples)["fd_lite0"]
    assert (found.ci_low, found.ci_high, found.ci_method) == (None, None, None)
    assert "bootstrap" in found.metric_opts["interval"]


def test_batches_and_their_order_do_not_matter(
    reference: ReferenceStatistics, samples: Tensor
) -> None:
    whole = evaluated(reference, samples)
    evaluation = Evaluation(OFFLINE, reference, samples=60)
    for part in reversed(torch.arange(60).split(13)):
        evaluation.update(samples[part], part)
    same(evaluation.results(), list(whole.values()), 1e-5)


def test_three_ranks_merge_to_one(reference: ReferenceStatistics, samples: Tensor) -> None:
    whole = evaluated(reference, samples[:59])
    ranks = [Evaluation(OFFLINE, reference, samples=59) for _ in range(3)]
    for r, rank in enumerate(ranks):
        mine = torch.arange(r, 59, 3)
        rank.update(samples[mine], mine)
    for rank in ranks[1:]:
        ranks[0].merge(rank)
    same(ranks[0].results(), list(whole.values()), 1e-5)
    assert len(ranks[0].missing()) == 0


def test_moments_of_ranks_merge_to_one_without_kept_rows(
    data: Data, reference: ReferenceStatistics
) -> None:
    # More samples than features: only moments are kept.
    images = data.images(data.split("train"))[:30]
    whole = Evaluation(["fd_lite0"], reference, samples=2000)
    ranks = [Evaluation(["fd_lite0"], reference, samples=2000) for _ in range(2)]
    whole.update(images, 0)
    for r, rank in enumerate(ranks):
        rank.update(images[r::2], torch.arange(r, 30, 2))
    ranks[0].merge(ranks[1])
    expected = whole.results()[0]
    assert expected.details["solver"] == "eigh"
    assert ranks[0].results()[0].value == pytest.approx(expected.value, rel=1e-6)
    assert ranks[0].results()[0].n == 30


def test_an_interrupted_evaluation_goes_on_bit_for_bit(
    reference: ReferenceStatistics, samples: Tensor, tmp_path: Path
) -> None:
    straight = Evaluation(OFFLINE, reference, samples=60, folder=tmp_path / "straight")
    for part in torch.arange(60).split(20):
        straight.update(samples[part], part)
    first = Evaluation(OFFLINE, reference, samples=60, folder=tmp_path / "cut")
    assert not first.restore()
    first.update(samples[:20], 0)
    first.save()
    first.update(samples[20:40], 20)  # after the save: lost
    del first
    again = Evaluation(OFFLINE, reference, samples=60, folder=tmp_path / "cut")
    assert again.restore()
    assert again.missing().tolist() == list(range(20, 60))
    again.update(samples[20:40], 20)
    again.update(samples[40:], 40)
    assert again.results() == straight.results()
    assert not [p for p in (tmp_path / "cut").iterdir() if p.name.startswith(".")]


def test_a_saved_state_of_another_evaluation_is_refused(
    reference: ReferenceStatistics, samples: Tensor, tmp_path: Path
) -> None:
    first = Evaluation(["fd_lite0"], reference, samples=60, folder=tmp_path)
    first.update(samples, 0)
    first.save()
    for metrics, count in ((["fd_lite0"], 61), (["digit_classes"], 60)):
        other = Evaluation(metrics, reference, samples=count, folder=tmp_path)
        with pytest.raises(StateError, match="another"):
            other.restore()


def test_without_a_folder_nothing_can_be_saved(reference: ReferenceStatistics) -> None:
    with pytest.raises(StateError, match="folder="):
        Evaluation(["digit_classes"], reference, samples=3).save()


def test_a_sample_counts_once(reference: ReferenceStatistics, samples: Tensor) -> None:
    evaluation = Evaluation(["digit_classes"], reference, samples=10)
    evaluation.update(samples[:5], 0)
    with pytest.raises(StateError, match="twice"):
        evaluation.update(samples[4:6], 4)
    with pytest.raises(StateError, match="twice"):
        evaluation.update(samples[:2], torch.tensor([7, 7]))
    with pytest.raises(StateError, match=r"0\.\.9"):
        evaluation.update(samples[:5], 8)
    with pytest.raises(StateError, match="indices of shape"):
        evaluation.update(samples[:5], torch.arange(4))
    other = Evaluation(["digit_classes"], reference, samples=10)
    other.update(samples[:1], 3)
    with pytest.raises(StateError, match="sample 3 is in both"):
        evaluation.merge(other)
    assert evaluation.results()[0].n == 5


def test_bad_images_are_refused_and_change_nothing(
    reference: ReferenceStatistics, samples: Tensor
) -> None:
    evaluation = Evaluation(OFFLINE, reference, samples=10)
    for bad in (samples[:2].float(), samples[:2].permute(0, 2, 3, 1), samples[0]):
        with pytest.raises(ImageRangeError):
            evaluation.update(bad, 0)
    assert len(evaluation.missing()) == 10
    assert {found.reason for found in evaluation.results()} == {"no sample was given."}


def test_one_image_gives_reasons_where_it_gives_no_number(
    reference: ReferenceStatistics, samples: Tensor
) -> None:
    found = evaluated(reference, samples[:1])
    for metric in ("fd_lite0", "kid_lite0", "precision", "recall", "density", "coverage"):
        assert found[metric].value is None
        reason = found[metric].reason
        assert reason is not None
        assert "got 1" in reason or "and 360" in reason
    assert found["digit_classes"].value == 1
    assert found["copy_share"].value == 1.0


def test_images_of_one_colour_give_numbers_that_say_so(reference: ReferenceStatistics) -> None:
    found = evaluated(reference, torch.full((20, 3, 8, 8), 128, dtype=torch.uint8))
    assert all(each.value is not None and np.isfinite(each.value) for each in found.values())
    assert found["recall"].value == 0.0
    assert found["digit_classes"].value == 1
    assert found["fd_lite0"].value is not None
    assert found["fd_lite0"].value > 1000


def test_images_of_many_sizes_are_taken_one_by_one(reference: ReferenceStatistics) -> None:
    evaluation = Evaluation(OFFLINE, reference, samples=8)
    generator = torch.Generator().manual_seed(0)
    for i, side in enumerate((8, 9, 16, 31, 64, 8, 5, 100)):
        image = torch.randint(0, 256, (1, 3, side, side + i), generator=generator)
        evaluation.update(image.to(torch.uint8), i)
    assert all(found.value is not None for found in evaluation.results())


def test_few_samples_have_no_block_error_and_say_why(
    reference: ReferenceStatistics, samples: Tensor
) -> None:
    found = evaluated(reference, samples[:15])["kid_lite0"]
    assert found.value is not None
    assert found.stderr is None
    assert "20 samples" in found.metric_opts["interval"]


def test_a_metric_the_reference_was_not_prepared_for_is_an_error(data: Data) -> None:
    bare = ReferenceStatistics.prepare(["digit_classes"], RealSamples.from_data(data, "test"))
    for metric in ("fd_lite0", "copy_share"):
        with pytest.raises(StateError, match=metric):
            Evaluation([metric], bare, samples=3)


class StandIn:
    """A small linear network that claims to be the published one, to exercise its metrics."""

    name = "inception-2015"
    sha256 = protocol("fid").sha256
    widths = {"pool3": 64, "logits_unbiased": 40}  # noqa: RUF012

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.matrix = torch.randn(48, 64, generator=generator)

    def layers(self, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        pool3 = (images.flatten(1).float() / 255) @ self.matrix
        return {"pool3": pool3, "logits_unbiased": pool3[:, :40]}


@pytest.fixture(scope="module")
def published() -> tuple[ReferenceStatistics, Tensor]:
    extractors = Extractors()
    extractors._opened["inception-2015"] = StandIn()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (300, 3, 4, 4), dtype=torch.uint8, generator=generator)
    real = RealSamples.of(images, "e" * 64, "train")
    return ReferenceStatistics.prepare(["fid", "isc"], real, extractors=extractors), images


def test_fid_and_is_stream_to_what_the_formulas_give(
    published: tuple[ReferenceStatistics, Tensor],
) -> None:
    reference, images = published
    fakes = (images.float() * 0.8).to(torch.uint8)[:260]
    evaluation = Evaluation(["fid", "isc"], reference, samples=260)
    for part in torch.arange(260).split(70):
        evaluation.update(fakes[part], part)
    fid, isc = evaluation.results()
    x, y = (StandIn().layers(i, ())["pool3"] for i in (images, fakes))
    trace = float(x.var(dim=0).sum() + y.var(dim=0).sum())
    assert fid.value == pytest.approx(frechet_distance_of_features(x, y).value, abs=1e-6 * trace)
    assert isc.value == pytest.approx(inception_score(y[:, :40]).value, rel=1e-6)
    assert isc.n_ref == 0
    assert not fid.comparable  # the published convention is 50,000 samples
    assert "split_std" in isc.details


def test_fid_of_fewer_samples_than_features_gives_the_reason(
    published: tuple[ReferenceStatistics, Tensor],
) -> None:
    reference, images = published
    evaluation = Evaluation(["fid", "isc"], reference, samples=200)
    evaluation.update(images[:50], 0)
    fid, isc = evaluation.results()
    assert fid.value is None
    assert fid.reason is not None
    assert "needs more than 64" in fid.reason
    assert isc.reason is not None
    assert "only 50" in isc.reason


def test_kid_draws_the_published_subsets() -> None:
    extractors = Extractors()
    extractors._opened["inception-2015"] = StandIn()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1010, 3, 4, 4), dtype=torch.uint8, generator=generator)
    real = RealSamples.of(images, "e" * 64, "train")
    reference = ReferenceStatistics.prepare(["kid"], real, extractors=extractors)
    evaluation = Evaluation(["kid"], reference, samples=999)
    evaluation.update(images[:999], 0)
    found = evaluation.results()[0]
    assert found.value is None
    assert found.reason is not None
    assert "subsets of 1000" in found.reason


def evaluation_of(metric: str, real: RealSamples) -> Evaluation:
    return Evaluation([metric], ReferenceStatistics.prepare([metric], real), samples=10)


def test_what_cannot_be_computed_here_says_why_within_a_second(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: Data
) -> None:
    monkeypatch.delenv(WEIGHTS_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    available("fid")  # imports
    start = time.perf_counter()
    for metric in ("fid", "kid", "isc"):
        reason = available(metric)
        assert reason is not None
        assert protocol(metric).sha256 in reason
        real = RealSamples.from_data(data, "test")
        with pytest.raises(WeightsOffline):
            evaluation_of(metric, real)
    assert time.perf_counter() - start < 1.0
    assert list(tmp_path.rglob("*")) == []
    assert all(available(metric) is None for metric in OFFLINE)
    with pytest.raises(ProtocolError):
        available("fidd")

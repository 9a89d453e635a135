import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from visgen_bench.extractors.opening import Extractors
from visgen_bench.metrics.errors import (
    ClipShapeError,
    FactsMissing,
    ImageRangeError,
    ProtocolError,
    StateError,
)
from visgen_bench.metrics.evaluation import Evaluation, available
from visgen_bench.metrics.frechet import frechet_distance_of_features
from visgen_bench.metrics.per_sample import PER_SAMPLE, PerSample, SampleFacts
from visgen_bench.metrics.protocol import protocol
from visgen_bench.metrics.real_samples import RealSamples
from visgen_bench.metrics.scoring import MetricValue
from visgen_bench.metrics.video_evaluation import VideoEvaluation, VideoReference

FRAMES = 9
CLIP_METRICS = ("fvd", "fvd_videogpt", "fvd_cdfvd", "fvd_lite0_frames", "isc_video")
PAIRED = ("r_fvd", "fvd_star", "r_fvd_lite0_frames", "fvd_star_lite0_frames")
METRICS = (*CLIP_METRICS[:4], "fd_lite0_frames", *PAIRED, *PER_SAMPLE)
LITE0 = "efficientnet-lite0-64-clips"


class StandIn:
    """A small linear network that claims to be the published one, to exercise its metrics."""

    def __init__(self, name: str, layer: str, width: int, axes: int = 1) -> None:
        self.name = name
        self.sha256 = "ab" * 32
        self.widths = {layer: width}
        self.axes = axes
        self.layer = layer

    def rows(self, samples: Tensor) -> Tensor:
        """Seeded features of the pixels in float32: (n, width)."""
        values = samples.flatten(1).float() / 255
        generator = torch.Generator().manual_seed(self.axes)
        matrix = torch.randn(values.shape[1], self.widths[self.layer], generator=generator)
        return values @ matrix

    def layers(self, samples: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
        assert samples.dtype == torch.uint8
        return {name: self.rows(samples) for name in names}


def opened() -> Extractors:
    extractors = Extractors()
    for i, name in enumerate(("i3d-google", "i3d-videogpt", "i3d-cdfvd")):
        extractors._opened[name] = StandIn(name, "logits", 12, axes=i)
    extractors._opened["c3d-ucf101"] = StandIn("c3d-ucf101", "logits", 7)
    lite0 = StandIn(LITE0, "mean+change", 16)
    extractors._opened[LITE0] = lite0
    extractors._opened["efficientnet-lite0-64"] = StandIn("efficientnet-lite0-64", "pooled", 10)
    return extractors


def noise(n: int, frames: int = FRAMES, seed: int = 0, side: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, frames, 3, side, side)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


REAL, SAMPLES, N = noise(40), noise(30, seed=1), 30


@pytest.fixture(scope="module")
def extractors() -> Extractors:
    return opened()


@pytest.fixture(scope="module")
def reference(extractors: Extractors) -> VideoReference:
    real = RealSamples.of(REAL, "a" * 64, "test", batch=7)
    return VideoReference.prepare(METRICS, real, extractors=extractors)


def facts(part: slice | Tensor, context: int = 1) -> SampleFacts:
    real = REAL[:N][part]
    dim = (real.float() * 0.9).to(torch.uint8)
    again = noise(N, seed=5)[part]
    return SampleFacts(real=real, reconstruction=dim, again=again, context=context)


def evaluation(reference: VideoReference, folder: Path | None = None) -> VideoEvaluation:
    return VideoEvaluation(METRICS, reference, samples=N, frames=FRAMES, folder=folder)


def by_name(found: list[MetricValue]) -> dict[str, MetricValue]:
    return {each.metric: each for each in found}


def whole(reference: VideoReference) -> VideoEvaluation:
    made = evaluation(reference)
    made.update(SAMPLES, 0, facts=facts(slice(None)))
    return made


def distance(extractors: Extractors, name: str, a: Tensor, b: Tensor, ddof: int = 1) -> float:
    network = extractors.open(name)
    layer = next(iter(network.widths))
    x, y = (network.layers(each, (layer,))[layer] for each in (a, b))
    return frechet_distance_of_features(x, y, ddof).value


def test_every_metric_gets_its_number_in_the_order_asked(
    reference: VideoReference, extractors: Extractors
) -> None:
    results = whole(reference).results()
    assert [each.metric for each in results] == list(METRICS)
    assert {each.metric: each.reason for each in results if each.reason} == {}
    found = by_name(results)
    dim = facts(slice(None)).reconstruction
    assert dim is not None
    expected = {
        "fvd": distance(extractors, "i3d-google", SAMPLES, REAL),
        "fvd_videogpt": distance(extractors, "i3d-videogpt", SAMPLES, REAL),
        "fvd_cdfvd": distance(extractors, "i3d-cdfvd", SAMPLES, REAL, ddof=0),
        "fvd_lite0_frames": distance(extractors, LITE0, SAMPLES, REAL),
        "r_fvd": distance(extractors, "i3d-videogpt", dim, REAL),
        "fvd_star": distance(extractors, "i3d-videogpt", SAMPLES, dim),
        "r_fvd_lite0_frames": distance(extractors, LITE0, dim, REAL),
        "fvd_star_lite0_frames": distance(extractors, LITE0, SAMPLES, dim),
        "fd_lite0_frames": distance(
            extractors, "efficientnet-lite0-64", SAMPLES.flatten(0, 1), REAL.flatten(0, 1)
        ),
    }
    for metric, value in expected.items():
        assert found[metric].value == pytest.approx(value, rel=1e-6), metric
    assert (found["fvd"].n, found["fvd"].n_ref) == (N, 40)
    assert (found["fd_lite0_frames"].n, found["fd_lite0_frames"].n_ref) == (N * FRAMES, 40 * FRAMES)
    assert (found["fvd_star"].n, found["fvd_star"].n_ref) == (N, N)


def test_rows_say_what_they_are(reference: VideoReference) -> None:
    found = by_name(whole(reference).results())
    for metric, value in found.items():
        assert value.protocol == protocol(metric).id
        assert value.metric_opts["frames"] == FRAMES
        assert value.metric_opts["split"] == "test"
        assert not value.comparable  # 30 samples are fewer than any convention
    assert found["fvd"].extractor_sha256 == "ab" * 32
    assert found["fvd_cdfvd"].metric_opts["ddof"] == 0
    assert found["fvd_star"].metric_opts["sides"] == "samples/reconstructions"
    assert found["psnr"].metric_opts["cap"] == 100.0
    assert found["flicker"].ci_method == "mean over samples, t"


def test_a_set_against_itself_has_no_distance(extractors: Extractors) -> None:
    names = ("fvd", "fvd_videogpt", "fvd_cdfvd", "fvd_lite0_frames", "fd_lite0_frames")
    pairs = ("r_fvd", "fvd_star")
    metrics = (*names, *pairs, "psnr_reconstruction", "ssim_reconstruction")
    real = RealSamples.of(REAL, "a" * 64, "test")
    prepared = VideoReference.prepare(metrics, real, extractors=extractors)
    made = VideoEvaluation(metrics, prepared, samples=40, frames=FRAMES)
    before = REAL.clone()
    made.update(REAL, 0, facts=SampleFacts(real=REAL, reconstruction=REAL))
    assert torch.equal(REAL, before)
    found = by_name(made.results())
    for metric in (*names, *pairs):
        assert found[metric].value == pytest.approx(0.0, abs=1e-6), metric
    assert found["ssim_reconstruction"].value == 1.0
    assert found["psnr_reconstruction"].value == 100.0
    assert found["psnr_reconstruction"].details["identical_frames"] == 40 * FRAMES


def test_a_distance_is_symmetric(extractors: Extractors) -> None:
    found = []
    for real, samples in ((REAL[:N], SAMPLES), (SAMPLES, REAL[:N])):
        prepared = VideoReference.prepare(
            ["fvd"], RealSamples.of(real, "a" * 64, "test"), extractors=extractors
        )
        made = VideoEvaluation(["fvd"], prepared, samples=N, frames=FRAMES)
        made.update(samples, 0)
        found.append(made.results()[0].value)
    assert found[0] == pytest.approx(found[1], rel=1e-9)


def test_dividing_by_n_scales_the_covariance_part() -> None:
    # Equal networks for both profiles: what differs is ddof alone.
    same = opened()
    same._opened["i3d-cdfvd"] = StandIn("i3d-cdfvd", "logits", 12, axes=0)
    real, samples = REAL[:N], SAMPLES  # as many on both sides
    metrics = ("fvd", "fvd_cdfvd")
    prepared = VideoReference.prepare(
        metrics, RealSamples.of(real, "a" * 64, "test"), extractors=same
    )
    made = VideoEvaluation(metrics, prepared, samples=N, frames=FRAMES)
    made.update(samples, 0)
    one, zero = made.results()
    mean = float(one.details["mean_term"])
    assert one.value is not None
    assert zero.value == pytest.approx(mean + (one.value - mean) * (N - 1) / N, rel=1e-9)


def test_frame_f_of_sample_i_is_number_i_times_frames_plus_f(
    reference: VideoReference, extractors: Extractors
) -> None:
    made = evaluation(reference)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(3))
    for part in order.split(11):
        made.update(SAMPLES[part], part, facts=facts(part))
    frames = made._parts["frames"]
    stream = next(iter(frames._streams.values()))
    if (rows := stream.rows(np.arange(N * FRAMES))) is not None:
        network = extractors.open("efficientnet-lite0-64")
        expected = network.layers(SAMPLES.flatten(0, 1), ("pooled",))["pooled"]
        np.testing.assert_allclose(rows, expected.numpy(), rtol=1e-4, atol=1e-4)
    assert bool(frames.seen.all())
    for a, b in zip(made.results(), whole(reference).results(), strict=True):
        assert a.value == pytest.approx(b.value, rel=1e-5), a.metric


def test_frames_of_some_samples_are_theirs(reference: VideoReference) -> None:
    made = evaluation(reference)
    made.update(SAMPLES[:2], torch.tensor([4, 1]), facts=facts(torch.tensor([4, 1])))
    seen = np.flatnonzero(made._parts["frames"].seen)
    assert seen.tolist() == [*range(9, 18), *range(36, 45)]
    assert made.missing().tolist() == [0, 2, 3, *range(5, N)]


def test_a_killed_run_goes_on_bit_for_bit(reference: VideoReference, tmp_path: Path) -> None:
    parts = torch.arange(N).split(8)
    straight = evaluation(reference, tmp_path / "straight")
    for part in parts:
        straight.update(SAMPLES[part], part, facts=facts(part))
    first = evaluation(reference, tmp_path / "cut")
    assert not first.restore()
    first.update(SAMPLES[parts[0]], parts[0], facts=facts(parts[0]))
    first.save()
    first.update(SAMPLES[parts[1]], parts[1], facts=facts(parts[1]))  # after the save: lost
    del first
    again = evaluation(reference, tmp_path / "cut")
    assert again.restore()
    assert again.missing().tolist() == list(range(8, N))
    for part in parts[1:]:
        again.update(SAMPLES[part], part, facts=facts(part))
    assert again.results() == straight.results()
    assert str(again.curves()) == str(straight.curves())  # NaN equals nothing, its text does
    states = [p.name for p in (tmp_path / "cut").rglob("*.npz")]
    assert states == ["video_evaluation.npz"]  # one file for all parts


def test_two_ranks_merge_to_one(reference: VideoReference, tmp_path: Path) -> None:
    ranks = [evaluation(reference, tmp_path / f"rank-{r}") for r in range(2)]
    for r, rank in enumerate(ranks):
        for part in torch.arange(r, N, 2).split(6):
            rank.update(SAMPLES[part], part, facts=facts(part))
        rank.save()
    other = evaluation(reference, tmp_path / "rank-1")
    assert other.restore()
    ranks[0].merge(other)
    one = whole(reference)
    for a, b in zip(ranks[0].results(), one.results(), strict=True):
        assert (a.metric, a.n, a.reason) == (b.metric, b.n, b.reason)
        assert a.value == pytest.approx(b.value, rel=1e-6), a.metric
    assert bool(ranks[0].seen.all())
    assert ranks[0].different_pictures() == N
    assert ranks[0].curves()["psnr"] == pytest.approx(one.curves()["psnr"], nan_ok=True)
    with pytest.raises(StateError, match="in both"):
        ranks[0].merge(other)


def test_evaluations_of_other_things_do_not_merge_or_go_on(
    reference: VideoReference, tmp_path: Path
) -> None:
    first = evaluation(reference, tmp_path)
    first.update(SAMPLES, 0, facts=facts(slice(None)))
    first.save()
    for metrics, samples in ((METRICS[:-1], N), (METRICS, N + 1)):
        other = VideoEvaluation(metrics, reference, samples=samples, frames=FRAMES, folder=tmp_path)
        with pytest.raises(StateError, match="another evaluation"):
            other.restore()
        with pytest.raises(StateError, match="do not merge"):
            first.merge(other)
    with pytest.raises(StateError, match="folder="):
        evaluation(reference).save()


def test_missing_facts_are_rows_with_their_reason(reference: VideoReference) -> None:
    made = evaluation(reference)
    made.update(SAMPLES, 0)
    found = by_name(made.results())
    for metric in ("r_fvd", "fvd_star", "r_fvd_lite0_frames", "fvd_star_lite0_frames"):
        assert found[metric].value is None
        assert "reconstructions of real clips" in (found[metric].reason or "")
    for metric, fact in (("psnr", "real"), ("ssim", "real"), ("diversity", "again")):
        assert found[metric].value is None
        assert f"no facts.{fact} came" in (found[metric].reason or "")
    for metric in ("fvd", "fvd_lite0_frames", "fd_lite0_frames", "flicker"):
        assert found[metric].value is not None
    assert set(made.curves()) == {"flicker"}


def test_small_frames_leave_ssim_alone_without_a_number(extractors: Extractors) -> None:
    small = noise(12, side=8)
    metrics = ("psnr", "ssim", "flicker")
    prepared = VideoReference.prepare(
        metrics, RealSamples.of(small, "a" * 64, "test"), extractors=extractors
    )
    made = VideoEvaluation(metrics, prepared, samples=12, frames=FRAMES)
    made.update(small.flip(1), 0, facts=SampleFacts(real=small))
    found = by_name(made.results())
    assert "11 x 11" in (found["ssim"].reason or "")
    assert found["psnr"].value is not None
    assert found["flicker"].value is not None


def test_no_samples_are_a_reason_everywhere(reference: VideoReference) -> None:
    made = evaluation(reference)
    made.update(SAMPLES[:0], 0)
    for value in made.results():
        assert value.value is None
        assert value.reason
    assert made.curves() == {}


def test_curves_are_means_at_each_frame(reference: VideoReference) -> None:
    made = evaluation(reference)
    made.update(SAMPLES, 0, facts=facts(slice(None), context=3))
    curves = made.curves()
    assert set(curves) == set(PER_SAMPLE)
    assert [math.isnan(v) for v in curves["psnr"]] == [True] * 3 + [False] * 6
    assert len(curves["flicker"]) == FRAMES - 1
    step = (SAMPLES[:, 5].double() - SAMPLES[:, 4].double()).abs().mean()
    assert curves["flicker"][4] == pytest.approx(float(step), rel=1e-6)
    value = by_name(made.results())["psnr"].value
    assert value == pytest.approx(sum(curves["psnr"][3:]) / 6, rel=1e-6)


def test_a_batch_that_does_not_fit_changes_nothing(reference: VideoReference) -> None:
    made = evaluation(reference)
    with pytest.raises(ClipShapeError, match="8 frames, 9 were expected"):
        made.update(SAMPLES[:, :8], 0)
    with pytest.raises(ImageRangeError):
        made.update(SAMPLES.float(), 0)
    with pytest.raises(ClipShapeError, match=r"facts.real"):
        made.update(SAMPLES[:3], 0, facts=SampleFacts(real=REAL[:2]))
    with pytest.raises(StateError, match="twice"):
        made.update(SAMPLES[:2], torch.tensor([3, 3]))
    with pytest.raises(StateError, match=r"0\.\.29"):
        made.update(SAMPLES[:2], 29)
    with pytest.raises(StateError, match="indices of shape"):
        made.update(SAMPLES[:2], torch.arange(3))
    assert len(made.missing()) == N
    made.update(SAMPLES[:2], 0)
    with pytest.raises(StateError, match="twice"):
        made.update(SAMPLES[:1], 1)


def test_metrics_and_lengths_that_do_not_fit_are_refused(
    reference: VideoReference, extractors: Extractors
) -> None:
    real = reference.clips.real
    with pytest.raises(ProtocolError, match="fd_lite0 looks at pictures"):
        VideoReference.prepare(["fd_lite0"], real, extractors=extractors)
    with pytest.raises(StateError, match="8 frames came with a reference of clips of 9"):
        VideoEvaluation(["fvd"], reference, samples=N, frames=8)
    short = RealSamples.of(REAL[:, :8], "a" * 64, "test")
    with pytest.raises(ProtocolError, match="fvd needs clips of at least 9 frames"):
        VideoReference.prepare(["fvd"], short, extractors=extractors)
    with pytest.raises(ProtocolError, match="isc_video needs clips of 16 frames exactly"):
        VideoReference.prepare(["isc_video"], real, extractors=extractors)
    bare = VideoReference.prepare(["flicker"], real, extractors=extractors)
    for metric in ("fvd", "fd_lite0_frames"):
        with pytest.raises(StateError, match=metric):
            VideoEvaluation([metric], bare, samples=N, frames=FRAMES)
    with pytest.raises(ProtocolError, match="fvd looks at clips, and these are images"):
        Evaluation(["fvd"], replace(reference.clips, real=replace(real, media="image")), samples=1)
    with pytest.raises(StateError, match="only clips have frames"):
        real.as_frames().as_frames()


def test_the_reason_of_short_clips_comes_before_any_is_drawn(extractors: Extractors) -> None:
    assert "at least 9 frames" in (available("r_fvd", extractors, frames=8) or "")
    assert available("fvd", extractors, frames=9) is None
    assert "16 frames exactly" in (available("isc_video", extractors, frames=9) or "")
    assert "at least 2 frames" in (available("fvd_lite0_frames", extractors, frames=1) or "")
    assert all(available(metric, extractors, frames=1) is None for metric in PER_SAMPLE)


def test_a_function_of_the_callers_own_joins(
    extractors: Extractors, monkeypatch: pytest.MonkeyPatch
) -> None:
    from visgen_bench.metrics.protocol import protocols

    entry = replace(
        protocol("flicker"), metric="obeyed", id="obeyed-v1", formula="per-sample-share"
    )
    monkeypatch.setitem(protocols(), "obeyed", entry)

    def obeyed(clips: Tensor, facts: SampleFacts) -> Tensor:
        return (clips[:, 0, 0, 0, 0] > 127).float()[:, None]

    table: dict[str, PerSample] = {**PER_SAMPLE, "obeyed": obeyed}
    metrics = ("obeyed", "flicker")
    real = RealSamples.of(REAL, "a" * 64, "test")
    prepared = VideoReference.prepare(metrics, real, extractors=extractors)
    made = VideoEvaluation(metrics, prepared, samples=N, frames=FRAMES, per_sample=table)
    made.update(SAMPLES, 0)
    found = by_name(made.results())["obeyed"]
    assert found.value == pytest.approx(float((SAMPLES[:, 0, 0, 0, 0] > 127).float().mean()))
    assert found.ci_method == "wilson"
    assert set(made.curves()) == {"flicker"}  # one column is no curve
    with pytest.raises(FactsMissing, match="no function makes rows of obeyed"):
        VideoEvaluation(metrics, prepared, samples=N, frames=FRAMES)


def test_scores_of_sixteen_frames_take_all_samples_in_one_split(extractors: Extractors) -> None:
    from visgen_bench.metrics.inception_score import inception_score

    clips = noise(25, frames=16, side=4)
    prepared = VideoReference.prepare(
        ["isc_video"], RealSamples.of(clips, "a" * 64, "test"), extractors=extractors
    )
    made = VideoEvaluation(["isc_video"], prepared, samples=25, frames=16)
    made.update(clips, 0)
    logits = extractors.open("c3d-ucf101").layers(clips, ("logits",))["logits"]
    assert made.results()[0].value == pytest.approx(inception_score(logits, 1).value, rel=1e-6)


@pytest.mark.slow
def test_lite0_over_frames_and_clips_gives_numbers_without_any_download() -> None:
    metrics = ("fvd_lite0_frames", "r_fvd_lite0_frames", "fvd_star_lite0_frames", "fd_lite0_frames")
    assert [available(metric, frames=4) for metric in metrics] == [None] * 4
    real = RealSamples.of(REAL[:12, :4], "a" * 64, "test")
    prepared = VideoReference.prepare(metrics, real)
    made = VideoEvaluation(metrics, prepared, samples=12, frames=4)
    clips = REAL[:12, :4]
    made.update(clips.flip(1), 0, facts=SampleFacts(real=clips, reconstruction=clips))
    found = by_name(made.results())
    assert found["r_fvd_lite0_frames"].value == pytest.approx(0.0, abs=1e-3)
    # The order of time enters through no number of these.
    for metric in ("fvd_lite0_frames", "fvd_star_lite0_frames", "fd_lite0_frames"):
        assert found[metric].value == pytest.approx(0.0, abs=1e-3)

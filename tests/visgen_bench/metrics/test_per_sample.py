import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from visgen_bench.cells.samples import Source
from visgen_bench.cells.video_quality import per_sample_of
from visgen_bench.metrics.errors import (
    ClipShapeError,
    FactsMissing,
    ImageRangeError,
    NotFiniteError,
    TooFewSamples,
)
from visgen_bench.metrics.intervals import student_t, wilson
from visgen_bench.metrics.per_sample import (
    CAP_DB,
    PER_SAMPLE,
    PerSample,
    RowStore,
    SampleFacts,
    psnr,
    ssim,
    stores,
)
from visgen_bench.metrics.protocol import protocol, protocols


def noise(n: int = 2, frames: int = 3, h: int = 16, w: int = 20, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, frames, 3, h, w), dtype=torch.uint8, generator=generator)


def test_every_per_sample_protocol_has_its_function() -> None:
    asked = set(per_sample_of(Source()))  # with those that ask a model or a judge
    assert set(PER_SAMPLE) < asked
    assert asked == {e.metric for e in protocols().values() if e.per_sample}
    assert protocol("psnr").options["cap"] == CAP_DB


def test_psnr_of_a_constant_shift_is_the_closed_form() -> None:
    a = torch.full((1, 2, 3, 8, 8), 100, dtype=torch.uint8)
    b = a.clone()
    b[:, 0] = 110  # an error of 10 everywhere
    found = psnr(a, b)
    assert found.shape == (1, 2)
    assert float(found[0, 0]) == pytest.approx(20 * math.log10(255 / 10), abs=1e-12)
    assert float(found[0, 1]) == math.inf
    assert torch.equal(psnr(a, b), psnr(b, a))


def test_psnr_averages_decibels_of_frames_not_errors() -> None:
    a = torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8)
    b = a.clone()
    b[:, 0], b[:, 1] = 1, 100
    store = stores([protocol("psnr")], 1, PER_SAMPLE)["psnr"]
    store.put(np.array([0]), store.made(b, SampleFacts(real=a)))
    each = [20 * math.log10(255 / 1), 20 * math.log10(255 / 100)]
    assert store.score().value == pytest.approx(sum(each) / 2, abs=1e-5)
    assert store.curve() == pytest.approx(each, abs=1e-5)


def test_ssim_is_scikit_images_over_the_interior() -> None:
    from skimage.metrics import structural_similarity

    a = noise(2, 2, 31, 24)
    b = ((a.float() * 0.7) + noise(2, 2, 31, 24, seed=1).float() * 0.3).to(torch.uint8)
    found = ssim(a, b)
    for i in range(2):
        for t in range(2):
            x, y = (v[i, t].permute(1, 2, 0).double().numpy() for v in (a, b))
            # It leaves out a border of half a window in its mean: only whole windows count.
            expected: Any = structural_similarity(
                x,
                y,
                data_range=255,
                channel_axis=2,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
            )
            assert float(found[i, t]) == pytest.approx(float(expected), abs=1e-4)


def test_ssim_is_symmetric_and_one_for_itself() -> None:
    a, b = noise(3, 20, 11, 11), noise(3, 20, 11, 11, seed=1)
    assert torch.equal(ssim(a, a), torch.ones(3, 20, dtype=torch.float64))
    torch.testing.assert_close(ssim(a, b), ssim(b, a))
    with pytest.raises(ClipShapeError, match="11 x 11 pixels, frames have 10 x 64"):
        ssim(noise(1, 1, 10, 64), noise(1, 1, 10, 64))


def test_context_frames_have_no_value() -> None:
    facts = SampleFacts(real=noise(seed=1), again=noise(seed=2), context=2)
    for metric in ("psnr", "ssim", "diversity"):
        rows = PER_SAMPLE[metric](noise(), facts)
        assert rows.dtype == torch.float32
        assert rows.isnan().tolist() == [[True, True, False]] * 2
    facts = SampleFacts(real=noise(seed=1), reconstruction=noise(seed=2), context=2)
    for metric in ("psnr_reconstruction", "ssim_reconstruction"):
        assert bool(PER_SAMPLE[metric](noise(), facts).isfinite().all())


def test_diversity_and_flicker_by_hand() -> None:
    clips = torch.zeros(1, 3, 3, 4, 4, dtype=torch.uint8)
    clips[:, 1] = 10
    clips[:, 2] = 250
    again = clips.clone()
    again[:, 1] = 4
    assert PER_SAMPLE["flicker"](clips, SampleFacts()).tolist() == [[10.0, 240.0]]
    assert PER_SAMPLE["diversity"](clips, SampleFacts(again=again)).tolist() == [[0.0, 6.0, 0.0]]
    with pytest.raises(ClipShapeError, match="successive frames"):
        PER_SAMPLE["flicker"](clips[:, :1], SampleFacts())


def test_inputs_are_not_modified() -> None:
    clips, real, again = noise(), noise(seed=1), noise(seed=2)
    facts = SampleFacts(real=real, reconstruction=real, again=again, context=1)
    before = [each.clone() for each in (clips, real, again)]
    for function in PER_SAMPLE.values():
        function(clips, facts)
    assert all(torch.equal(a, b) for a, b in zip(before, (clips, real, again), strict=True))


@pytest.mark.parametrize("metric", sorted(PER_SAMPLE.keys() - {"flicker"}))
def test_a_missing_fact_is_named(metric: str) -> None:
    with pytest.raises(FactsMissing, match=r"no facts\.(real|reconstruction|again) came"):
        PER_SAMPLE[metric](noise(), SampleFacts())


def test_facts_of_another_shape_are_refused() -> None:
    clips = noise()
    SampleFacts(real=noise(seed=1), context=2).check(clips)
    with pytest.raises(ClipShapeError, match=r"facts.real has shape \(1, 3"):
        SampleFacts(real=noise(1)).check(clips)
    with pytest.raises(ClipShapeError, match=r"facts.again has shape \(2, 2"):
        SampleFacts(again=noise(2, 2)).check(clips)
    with pytest.raises(ImageRangeError, match="uint8"):
        SampleFacts(reconstruction=noise().float()).check(clips)
    with pytest.raises(ClipShapeError, match=r"context=3 leaves no predicted frame of 3"):
        SampleFacts(context=3).check(clips)


def filled(metric: str, rows: list[list[float]], function: PerSample | None = None) -> RowStore:
    store = RowStore(protocol(metric), function or PER_SAMPLE[metric], len(rows))
    store.put(np.arange(len(rows)), np.array(rows, np.float32))
    return store


def test_the_mean_has_a_t_interval_over_samples() -> None:
    values = np.random.default_rng(0).normal(5.0, 2.0, 40).astype(np.float32)
    found = filled("flicker", [[v, v + 1] for v in values.tolist()]).score()
    error = float(np.std(values.astype(np.float64), ddof=1)) / 40**0.5
    assert found.value == pytest.approx(float(values.mean()) + 0.5, rel=1e-6)
    assert found.stderr == pytest.approx(error, rel=1e-5)
    assert found.interval is not None
    assert found.interval[1] - found.value == pytest.approx(student_t(39) * error, rel=1e-5)
    assert found.method == "mean over samples, t"


def test_nine_samples_have_no_interval_and_say_why() -> None:
    found = filled("flicker", [[1.0]] * 9).score()
    assert found.interval is None
    assert found.no_interval == "none: 9 samples, an interval needs 10"


def test_shares_have_wilsons_interval() -> None:
    from dataclasses import replace

    entry = replace(protocol("flicker"), metric="obeyed", formula="per-sample-share")
    store = RowStore(entry, PER_SAMPLE["flicker"], 20)
    store.put(np.arange(20), np.array([[1.0]] * 18 + [[0.0], [float("nan")]], np.float32))
    found = store.score()
    assert (found.n, found.method) == (19, "wilson")
    assert found.value == pytest.approx(18 / 19)
    assert found.interval == wilson(18 / 19, 19)


def test_identical_frames_are_counted_and_capped() -> None:
    found = filled("psnr", [[math.inf, 30.0], [40.0, math.nan]]).score()
    assert found.value == pytest.approx((65.0 + 40.0) / 2)
    assert found.details["identical_frames"] == 1
    assert filled("psnr", [[math.inf, 30.0], [40.0, math.nan]]).curve() == [70.0, 30.0]
    with pytest.raises(NotFiniteError, match="no cap"):
        filled("flicker", [[math.inf]]).score()


def test_samples_without_a_value_do_not_count() -> None:
    assert filled("flicker", [[math.nan], [3.0]]).score().n == 1
    with pytest.raises(TooFewSamples, match="no value for any sample"):
        filled("flicker", [[math.nan], [math.nan]]).score()


def test_a_function_must_give_a_row_a_clip_of_one_width() -> None:
    store = RowStore(protocol("flicker"), lambda clips, facts: torch.zeros(1, 4), 8)
    with pytest.raises(ClipShapeError, match=r"\(1, 4\) for 2 clips"):
        store.made(noise(2), SampleFacts())
    store = RowStore(protocol("flicker"), PER_SAMPLE["flicker"], 8)
    store.put(np.arange(2), store.made(noise(2, 3), SampleFacts()))
    with pytest.raises(ClipShapeError, match=r"must be \(2, 2\)"):
        store.made(noise(2, 4), SampleFacts())


def test_a_metric_without_a_function_is_named() -> None:
    with pytest.raises(FactsMissing, match=r"per_sample=\{\*\*PER_SAMPLE, \"psnr\""):
        stores([protocol("psnr")], 3, {"flicker": PER_SAMPLE["flicker"]})


def test_facts_follow_the_samples_to_their_device() -> None:
    facts = SampleFacts(real=noise(), context=2).on(torch.device("meta"))
    assert facts.real is not None
    assert facts.real.device.type == "meta"
    assert (facts.again, facts.context) == (None, 2)

import pytest

from visgen_results import metrics


def test_every_name_of_the_design_has_an_entry() -> None:
    for name in (
        "fid", "kid", "isc", "fvd", "fd_lite0", "kid_lite0", "fvd_lite0_frames", "precision",
        "recall", "density", "coverage", "digit_classes", "digit_confident", "copy_share",
        "bits_per_dim", "bpd_bound", "nats_per_code", "psnr", "ssim", "top1", "cider_d",
        "tuple_f1", "throughput", "latency", "mem_alloc_peak", "mem_reserved_peak",
        "mem_host_peak", "flops", "flops_dense", "mfu", "params", "energy_j_per_sample",
        "process_start", "fvd_videogpt", "fvd_styleganv", "fvd_cdfvd", "r_fvd", "fvd_star",
        "r_fvd_lite0_frames", "fvd_star_lite0_frames", "fid_frames", "fd_lite0_frames",
        "isc_video", "psnr_reconstruction", "ssim_reconstruction", "diversity", "flicker",
        "action_accuracy", "class_obeyed", "caption_obeyed", "code_usage",
        "class_obeyed_reconstruction", "caption_obeyed_reconstruction", "code_share",
        "action_accuracy_reconstruction", "code_entropy", "variance_left",
    ):  # fmt: skip
        assert metrics.info(name).name == name


def test_directions_that_everybody_knows() -> None:
    assert metrics.info("fid").higher_is_better is False
    assert metrics.info("isc").higher_is_better is True
    assert metrics.info("isc").label == "IS"
    assert metrics.info("latency").higher_is_better is False
    assert metrics.info("params").higher_is_better is None


def test_metrics_of_clips_are_of_quality_and_have_their_direction() -> None:
    assert {"fvd", "psnr", "code_usage"} <= set(metrics.QUALITY)
    assert metrics.info("fvd_star").higher_is_better is False
    assert metrics.info("psnr_reconstruction").unit == "dB"
    assert metrics.info("action_accuracy").higher_is_better is True
    assert metrics.info("diversity").higher_is_better is None
    labels = [entry.label for entry in metrics.METRICS.values()]
    assert len({label for label in labels if "FVD" in label}) == 6


def test_seconds_and_bytes_are_the_only_units_of_time_and_memory() -> None:
    units = {entry.unit for entry in metrics.METRICS.values()}
    assert not units & {"ms", "us", "MB", "MiB", "GB", "kB", "min"}


def test_kernels_have_figures_of_their_code_and_of_the_model() -> None:
    for name in ("registers", "stack", "occupancy", "instructions_per_score", "repeated_work"):
        assert metrics.info(name).exact
    for name in ("floor_time", "predicted_time"):
        assert metrics.info(name).unit == "s"
        assert not metrics.info(name).exact
    assert "registers" in metrics.NOT_QUALITY


def test_proxies_are_marked_and_published_names_are_not() -> None:
    proxies = {name for name, entry in metrics.METRICS.items() if entry.proxy}
    assert proxies == {
        "fd_lite0", "kid_lite0", "fvd_lite0_frames", "r_fvd_lite0_frames",
        "fvd_star_lite0_frames", "fd_lite0_frames",
    }  # fmt: skip


def test_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(metrics.UnknownMetric, match="'kid_liet0'; nearest: 'kid_lite0'"):
        metrics.info("kid_liet0")


def test_gates_are_metrics_with_a_name_of_their_own() -> None:
    assert metrics.info("gate_better_than_pca").label == "gate: better than pca"
    with pytest.raises(metrics.UnknownMetric):
        metrics.info("gate_")


def test_a_reader_shows_names_it_does_not_know() -> None:
    assert metrics.describe("from_the_future").label == "from_the_future"


def test_a_plug_in_cannot_take_a_name_that_means_something_else() -> None:
    fid = metrics.info("fid")
    metrics.add(fid)
    with pytest.raises(ValueError, match="'fid' is already 'FID'"):
        metrics.add(metrics.MetricInfo("fid", "my FID", "1", False, "mine"))


def test_a_plug_in_adds_its_metric(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "METRICS", dict(metrics.METRICS))
    own = metrics.MetricInfo("sharpness", "sharpness", "1", True, "mine")
    metrics.add(own)
    assert metrics.info("sharpness") == own

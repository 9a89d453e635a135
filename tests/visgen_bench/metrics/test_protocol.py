import pytest

from visgen_bench.extractors import judge, lite0, lite0_clips
from visgen_bench.extractors.weights import known_weights
from visgen_bench.metrics.errors import ProtocolError
from visgen_bench.metrics.protocol import (
    PINNED,
    RESERVED,
    protocol,
    protocols,
    require_published_weights,
    require_video_protocol,
)


def test_no_two_protocols_share_an_id() -> None:
    ids = [entry.id for entry in protocols().values()]
    assert len(set(ids)) == len(ids)


def test_protocols_name_the_weights_that_the_extractors_check() -> None:
    hashes = {
        "inception-2015": known_weights()["inception-2015"].sha256,
        lite0.NAME: lite0.SHA256,
        judge.NAME: judge.card().sha256,
        "pixels": "",
        "i3d-styleganv": known_weights()["i3d-torchscript"].sha256,
        "efficientnet-lite0-64-clips": lite0_clips.Lite0Clips.sha256,
    }
    hashes |= dict.fromkeys(("i3d-google", "i3d-videogpt", "i3d-cdfvd", "c3d-ucf101"), PINNED)
    for entry in protocols().values():
        assert entry.sha256 == hashes[entry.extractor], entry.metric


def test_only_reserved_names_are_published_measurements() -> None:
    # fid_frames has no published convention, but its name needs the published weights; fid_clean
    # is a name that nothing here may take.
    assert {e.metric for e in protocols().values() if e.published} == set(RESERVED) - {
        "fid_frames",
        "fid_clean",
    }


@pytest.mark.parametrize("metric", ["fid", "kid", "isc"])
def test_a_reserved_name_refuses_other_weights(metric: str) -> None:
    with pytest.raises(ProtocolError, match="fd_<extractor>"):
        require_published_weights(metric, lite0.SHA256)
    require_published_weights(metric, protocol(metric).sha256)


def test_a_proxy_name_takes_any_weights() -> None:
    require_published_weights("fd_lite0", "00" * 32)


def test_fvd_refuses_pooled_features_and_short_clips() -> None:
    with pytest.raises(ProtocolError, match="logits"):
        require_video_protocol("fvd", 16, "pool")
    with pytest.raises(ProtocolError, match=r"9 frames .*, got 8"):
        require_video_protocol("fvd", 8, "logits")
    require_video_protocol("fvd", 9, "logits")
    require_video_protocol("fvd_lite0_frames", 2, "pooled")
    for metric in ("fvd_videogpt", "fvd_styleganv", "fvd_cdfvd", "r_fvd", "fvd_star"):
        with pytest.raises(ProtocolError, match=f"{metric} needs clips of at least 9"):
            require_video_protocol(metric, 8, "logits")
    with pytest.raises(ProtocolError, match="at least 2 frames"):
        require_video_protocol("fvd_lite0_frames", 1, "mean+change")
    with pytest.raises(ProtocolError, match="16 frames exactly"):
        require_video_protocol("isc_video", 17, "logits")
    require_video_protocol("fid", 1, "pool3")


@pytest.mark.parametrize("metric", ["fvd", "fvd_videogpt", "fvd_cdfvd", "r_fvd", "isc_video"])
def test_a_name_whose_weights_are_pinned_takes_no_other_networks_hash(metric: str) -> None:
    for wrong in (lite0.SHA256, known_weights()["i3d-torchscript"].sha256, "", "not stored"):
        with pytest.raises(ProtocolError, match="reserved"):
            require_published_weights(metric, wrong)
    require_published_weights(metric, "ab" * 32)


def test_profiles_of_fvd_differ_in_extractor_or_ddof_and_are_never_one_id() -> None:
    profiles = [protocol(m) for m in ("fvd", "fvd_videogpt", "fvd_styleganv", "fvd_cdfvd")]
    assert len({(e.extractor, e.resize) for e in profiles}) == 4
    assert [e.options["ddof"] for e in profiles] == [1, 1, 0, 0]
    assert [e.samples for e in profiles] == [2048, 256, 2048, 2048]


def test_only_video_entries_have_other_sides() -> None:
    for entry in protocols().values():
        assert entry.media in ("image", "video", "frame")
        assert entry.sides == "samples/real" or entry.media == "video"


def test_an_unknown_metric_names_its_nearest() -> None:
    with pytest.raises(ProtocolError, match='nearest: "fd_lite0"'):
        protocol("fd_lite")

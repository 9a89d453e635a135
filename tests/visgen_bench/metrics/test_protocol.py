import pytest

from visgen_bench.extractors import judge, lite0
from visgen_bench.extractors.weights import known_weights
from visgen_bench.metrics.errors import ProtocolError
from visgen_bench.metrics.protocol import (
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
    }
    for entry in protocols().values():
        assert entry.sha256 == hashes[entry.extractor], entry.metric


def test_only_reserved_names_are_published_measurements() -> None:
    assert {e.metric for e in protocols().values() if e.published} == set(RESERVED) - {"fvd"}


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


def test_an_unknown_metric_names_its_nearest() -> None:
    with pytest.raises(ProtocolError, match='nearest: "fd_lite0"'):
        protocol("fd_lite")

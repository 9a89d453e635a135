import hashlib
import socket
import time
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visgen_bench.extractors import i3d
from visgen_bench.extractors.i3d import (
    PREPARE,
    I3DLogits,
    I3DScript,
    InceptionI3D,
    build,
    same_padding,
)
from visgen_bench.extractors.opening import I3D, Extractors
from visgen_bench.extractors.weights import (
    WEIGHTS_DIR_VARIABLE,
    WeightsMismatch,
    WeightsMissing,
    WeightsOffline,
    WeightsUnreadable,
    known_weights,
)
from visgen_bench.metrics.errors import ClipShapeError, ImageRangeError

# Inputs and widths of the nine Inception blocks: table 1 of arXiv:1409.4842.
BLOCKS = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def units() -> dict[str, tuple[int, int, int]]:
    """Inputs, outputs and kernel of every convolution, as VideoGPT's and TATS's code names them."""
    found = {
        "Conv3d_1a_7x7": (3, 64, 7),
        "Conv3d_2b_1x1": (64, 64, 1),
        "Conv3d_2c_3x3": (64, 192, 3),
    }
    for block, (inputs, (w0, w1, w2, w3, w4, w5)) in BLOCKS.items():
        found |= {
            f"{block}.b0": (inputs, w0, 1),
            f"{block}.b1a": (inputs, w1, 1),
            f"{block}.b1b": (w1, w2, 3),
            f"{block}.b2a": (inputs, w3, 1),
            f"{block}.b2b": (w3, w4, 3),
            f"{block}.b3b": (inputs, w5, 1),
        }
    return found


def published_shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (inputs, outputs, kernel) in units().items():
        shapes[f"{name}.conv3d.weight"] = (outputs, inputs, kernel, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.bn.{part}"] = (outputs,)
    shapes["logits.conv3d.weight"] = (400, 1024, 1, 1, 1)
    shapes["logits.conv3d.bias"] = (400,)
    return shapes


def fabricated() -> dict[str, Tensor]:
    """Seeded weights of the published names and shapes: the published ones are not here."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in published_shapes().items():
        values = torch.randn(shape, generator=generator)
        fan_in = max(values[0].numel(), 1)
        state[name] = values * (2 / fan_in) ** 0.5 if len(shape) == 5 else values * 0.1
        if name.endswith(("running_var", "bn.weight")):
            state[name] = 1 + values.abs() * 0.1
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("i3d") / "i3d_pretrained_400.pt"
    torch.save(fabricated(), path)
    return path


@pytest.fixture(scope="module")
def extractor(weights: Path) -> I3DLogits:
    return I3DLogits.open("i3d-google", weights)


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network and no weights; returns the folder that downloads would go to."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("network blocked by the test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.delenv(WEIGHTS_DIR_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path


def noise(n: int, frames: int = 9, h: int = 16, w: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, frames, 3, h, w), dtype=torch.uint8, generator=generator)


def test_parameters_are_the_published_number() -> None:
    assert sum(p.numel() for p in InceptionI3D().parameters()) == 12_697_264


def test_names_and_shapes_are_those_of_the_published_file() -> None:
    own = {
        name: tuple(value.shape)
        for name, value in InceptionI3D().state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert own == published_shapes()
    assert len(own) == 287


def tf_same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float) -> Tensor:
    """TensorFlow's "SAME" padding, axis by axis, as its documentation has it."""
    for axis, (k, s) in enumerate(zip(kernel, stride, strict=True), start=2):
        size = x.shape[axis]
        total = max(k - s, 0) if size % s == 0 else max(k - size % s, 0)
        before = torch.full((*x.shape[:axis], total // 2, *x.shape[axis + 1 :]), value).to(x)
        after = (*x.shape[:axis], total - total // 2, *x.shape[axis + 1 :])
        x = torch.cat((before, x, torch.full(after, value).to(x)), dim=axis)
    return x


def unit(state: dict[str, Tensor], name: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{name}.conv3d.weight"].double()
    kernel = tuple(weight.shape[2:])
    x = F.conv3d(tf_same(x, kernel, (stride,) * 3, 0.0), weight, stride=stride)
    mean, var, gain, bias = (
        state[f"{name}.bn.{part}"].double()[:, None, None, None]
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return ((x - mean) / (var + 1e-5).sqrt() * gain + bias).clamp(min=0)


def pool(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
    return F.max_pool3d(tf_same(x, kernel, stride, float("-inf")), kernel, stride)


def block(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return torch.cat(
        (
            unit(state, f"{name}.b0", x),
            unit(state, f"{name}.b1b", unit(state, f"{name}.b1a", x)),
            unit(state, f"{name}.b2b", unit(state, f"{name}.b2a", x)),
            unit(state, f"{name}.b3b", pool(x, (3, 3, 3), (1, 1, 1))),
        ),
        dim=1,
    )


def twin_trunk(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """Figure 3 of the paper in float64, from functions alone."""
    x = unit(state, "Conv3d_1a_7x7", x.double(), stride=2)
    x = pool(x, (1, 3, 3), (1, 2, 2))
    x = unit(state, "Conv3d_2c_3x3", unit(state, "Conv3d_2b_1x1", x))
    x = pool(x, (1, 3, 3), (1, 2, 2))
    x = block(state, "Mixed_3c", block(state, "Mixed_3b", x))
    x = pool(x, (3, 3, 3), (2, 2, 2))
    for name in ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f"):
        x = block(state, name, x)
    x = pool(x, (2, 2, 2), (2, 2, 2))
    return block(state, "Mixed_5c", block(state, "Mixed_5b", x))


@pytest.mark.parametrize("shape", [(9, 32, 32), (11, 33, 40), (16, 50, 31)])
def test_the_trunk_is_the_figure_with_tensorflows_padding(shape: tuple[int, int, int]) -> None:
    state = fabricated()
    network = build(state, "here").eval()
    x = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        found, expected = network.trunk(x), twin_trunk(state, x)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frames", range(9, 18))
def test_time_is_halved_three_times_rounded_up(frames: int) -> None:
    network = build(fabricated(), "here").eval()
    with torch.inference_mode():
        found = network.trunk(torch.zeros(1, 3, frames, 32, 32))
    assert found.shape == (1, 1024, -(-frames // 8), 1, 1)


def test_padding_gives_the_rounded_up_quotient_and_puts_the_odd_zero_behind() -> None:
    for size in range(1, 20):
        for kernel, stride in ((7, 2), (3, 2), (3, 1), (2, 2), (1, 1)):
            shape, kernels, strides = ((value, value, value) for value in (size, kernel, stride))
            before, behind = same_padding(shape, kernels, strides)[:2]
            assert 0 <= behind - before <= 1
            assert (size + before + behind - kernel) // stride + 1 == -(-size // stride)
    assert same_padding((9, 8, 7), (3, 3, 3), (2, 1, 2)) == [1, 1, 1, 1, 1, 1]


@pytest.mark.slow
def test_logits_are_averaged_over_time_and_clips_do_not_see_each_other(
    extractor: I3DLogits,
) -> None:
    clips = noise(3, frames=17)
    found = extractor.layers(clips)["logits"]
    assert found.shape == (3, 400)
    assert found.dtype == torch.float32
    torch.testing.assert_close(extractor.layers(clips[1:2])["logits"], found[1:2])
    state = extractor.network.state_dict()
    with torch.inference_mode():
        features = extractor.network.trunk(PREPARE["i3d-google"](clips[:1]).transpose(1, 2))
    pooled = features.double().mean(dim=(3, 4))  # (1, 1024, 3)
    pairs = (pooled[..., :-1] + pooled[..., 1:]) / 2
    each = torch.einsum("kc,nct->nkt", state["logits.conv3d.weight"].double()[..., 0, 0, 0], pairs)
    expected = each.mean(dim=2) + state["logits.conv3d.bias"].double()
    torch.testing.assert_close(found[:1].double(), expected, rtol=1e-4, atol=1e-5)


def test_clips_are_not_modified_and_none_gives_no_rows(extractor: I3DLogits) -> None:
    clips = noise(1)
    before = clips.clone()
    extractor.layers(clips)
    assert torch.equal(clips, before)
    assert extractor.layers(noise(0))["logits"].shape == (0, 400)


@pytest.mark.parametrize("name", PREPARE)
def test_every_profile_gives_what_the_network_wants(name: str) -> None:
    for h, w in ((16, 16), (30, 17), (17, 30), (300, 224)):
        found = PREPARE[name](noise(1, frames=2, h=h, w=w))
        assert found.shape == (1, 2, 3, 224, 224)
        assert float(found.abs().max()) <= 1.0 + 1e-6
        black = PREPARE[name](torch.zeros(1, 1, 3, h, w, dtype=torch.uint8))
        white = PREPARE[name](torch.full((1, 1, 3, h, w), 255, dtype=torch.uint8))
        torch.testing.assert_close(black, -torch.ones_like(black), rtol=0, atol=1e-6)
        torch.testing.assert_close(white, torch.ones_like(white), rtol=0, atol=1e-6)


def test_only_videogpt_keeps_the_aspect() -> None:
    # Left half black, right half white, twice as wide as high: a cut to the middle keeps the edge.
    clip = torch.zeros(1, 1, 3, 224, 448, dtype=torch.uint8)
    clip[..., 224:] = 255
    kept = PREPARE["i3d-videogpt"](clip)
    assert torch.equal(kept[0, 0, 0, 0], torch.where(torch.arange(224) < 112, -1.0, 1.0))
    corner = torch.zeros(1, 1, 3, 224, 448, dtype=torch.uint8)
    corner[..., :100] = 255  # outside of the middle
    assert float(PREPARE["i3d-videogpt"](corner).max()) == -1.0
    assert float(PREPARE["i3d-cdfvd"](corner).max()) == 1.0
    assert float(PREPARE["i3d-google"](corner).max()) == 1.0


def test_clips_of_eight_frames_are_refused(extractor: I3DLogits) -> None:
    with pytest.raises(ClipShapeError, match="have 8 frames; I3D needs 9"):
        extractor.layers(noise(1, frames=8))
    with pytest.raises(ImageRangeError, match=r"in \[0, 1\]"):
        extractor.layers(noise(1).float() / 255)


def test_the_first_file_is_pinned_and_another_is_refused(
    weights: Path, tmp_path: Path, blocked: Path
) -> None:
    path = tmp_path / "i3d_pretrained_400.pt"
    path.write_bytes(weights.read_bytes())
    opened = I3DLogits.open("i3d-cdfvd", path)
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    assert opened.sha256 == own
    pinned = tmp_path / "i3d_pretrained_400.pt.sha256"
    assert pinned.read_text() == f"{own}  i3d_pretrained_400.pt\n"
    state = fabricated()
    state["logits.conv3d.bias"] += 1
    torch.save(state, path)
    with pytest.raises(WeightsMismatch, match="from its first use"):
        I3DLogits.open("i3d-cdfvd", path)
    reason = i3d.unavailable("i3d-cdfvd", {"i3d-kinetics-400": path})
    assert reason is not None
    assert str(pinned) in reason
    pinned.unlink()
    assert I3DLogits.open("i3d-cdfvd", path).sha256 != own


def test_a_truncated_file_is_unreadable_and_not_pinned(weights: Path, tmp_path: Path) -> None:
    path = tmp_path / "i3d_pretrained_400.pt"
    path.write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(WeightsUnreadable, match="plain tensors"):
        I3DLogits.open("i3d-google", path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_weights_of_another_network_are_unreadable_and_not_pinned(tmp_path: Path) -> None:
    state = fabricated()
    state["logits.conv3d.weight"] = torch.zeros(600, 1024, 1, 1, 1)
    path = tmp_path / "i3d_pretrained_600.pt"
    torch.save(state, path)
    with pytest.raises(WeightsUnreadable, match=r"(?s)Inception-I3D with 400 classes.*600"):
        I3DLogits.open("i3d-google", path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.mark,)


def test_pickled_code_does_not_run(tmp_path: Path) -> None:
    path, mark = tmp_path / "i3d_pretrained_400.pt", tmp_path / "ran"
    torch.save({"logits.conv3d.bias": Trap(mark)}, path)
    with pytest.raises(WeightsUnreadable):
        I3DLogits.open("i3d-google", path)
    assert not mark.exists()


class Scripted(nn.Module):
    """Has the published file's way of being called: fields of the result say what it was told."""

    def forward(
        self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False
    ) -> Tensor:
        if rescale and resize and return_features and x.dtype == torch.uint8:
            return x.float().mean(dim=(2, 3, 4))[:, :1].repeat(1, 400)
        return torch.zeros(1, 400)


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("script") / "i3d_torchscript.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Scripted()), str(path))
    return path


def test_torchscript_is_given_uint8_clips_with_channels_first(scripted: Path) -> None:
    own = hashlib.sha256(scripted.read_bytes()).hexdigest()
    extractor = I3DScript.open(scripted, sha256=own)
    clips = noise(3, frames=9)
    found = extractor.layers(clips)["logits"]
    expected = clips[:, :, 0].float().mean(dim=(1, 2, 3))  # red: channels are axis 1 inside
    torch.testing.assert_close(found, expected[:, None].expand(3, 400))
    assert extractor.sha256 == own


def test_torchscript_of_another_hash_is_not_opened(
    scripted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[object] = []
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: opened.append(args))
    with pytest.raises(WeightsMismatch, match=r"expected bec6519f.*truncated"):
        I3DScript.open(scripted)
    assert opened == []
    with pytest.raises(WeightsUnreadable, match="explicit path"):
        I3DScript.open(sha256="0" * 64)


def test_what_is_no_torchscript_is_unreadable(tmp_path: Path) -> None:
    path = tmp_path / "i3d_torchscript.pt"
    path.write_bytes(b"not a zip file at all" * 10)
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(WeightsUnreadable, match="TorchScript"):
        I3DScript.open(path, sha256=own)


@pytest.mark.parametrize("name", I3D)
@pytest.mark.parametrize("allow_download", [False, True])
def test_without_network_and_file_the_reason_comes_within_a_second(
    blocked: Path, name: str, allow_download: bool
) -> None:
    extractors = Extractors(allow_download=allow_download)
    start = time.perf_counter()
    with pytest.raises(WeightsOffline) as caught:
        extractors.open(name)
    assert time.perf_counter() - start < 1.0
    file = known_weights()["i3d-torchscript" if name == "i3d-styleganv" else "i3d-kinetics-400"]
    for fact in (file.files[0], file.source, file.sha256 or "pinned", WEIGHTS_DIR_VARIABLE):
        assert fact in str(caught.value)
    assert [p for p in blocked.rglob("*") if p.is_file()] == []
    offline = Extractors().unavailable(name)
    assert offline is not None
    assert file.files[0] in offline


def test_the_weight_folder_and_explicit_paths_are_looked_at(
    weights: Path, blocked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsMissing, match="no weight file at"):
        Extractors(paths={"i3d-kinetics-400": blocked / "none.pt"}).open("i3d-google")
    assert Extractors(paths={"i3d-kinetics-400": weights}).unavailable("i3d-google") is None
    monkeypatch.setenv(WEIGHTS_DIR_VARIABLE, str(weights.parent))
    assert Extractors().unavailable("i3d-videogpt") is None
    assert Extractors().open("i3d-videogpt").widths == {"logits": 400}


@pytest.mark.weights
@pytest.mark.skipif(
    any(i3d.unavailable(name, {}) is not None for name in ("i3d-cdfvd", "i3d-styleganv")),
    reason=f"needs both published I3D files in ${WEIGHTS_DIR_VARIABLE}",
)
def test_both_published_files_give_the_same_logits() -> None:
    clips = noise(2, frames=16, h=64, w=64)
    a, b = (Extractors().open(n).layers(clips, ("logits",)) for n in ("i3d-cdfvd", "i3d-styleganv"))
    torch.testing.assert_close(a["logits"], b["logits"], rtol=0, atol=1e-2)

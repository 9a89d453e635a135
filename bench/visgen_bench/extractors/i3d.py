"""Inception-I3D (arXiv:1705.07750, figure 3): Inception-v1 inflated to time, RGB, Kinetics-400.

FVD is defined on its 400 logits, averaged over time before any softmax. All of its layers pad as
TensorFlow's "SAME" does: ceil(size / stride) outputs, the odd zero behind. Time is halved three
times and then averaged over 2 frames, so a clip needs 9 frames.

Two files hold its weights. `i3d_pretrained_400.pt` is a state dict that VideoGPT's authors
converted from TF-Hub's i3d-kinetics-400/1; nobody publishes its hash, so it is pinned (`pins`).
`i3d_torchscript.pt` is StyleGAN-V's; a TorchScript file runs code, so it is opened only after its
published hash was found right. Neither was at hand here: the layout of the first is typed in from
VideoGPT's and TATS's code, and no published figure was reproduced.

Batch norms use eps 1e-5 as VideoGPT, TATS and cd-fvd do with this file; DeepMind's own release of
2017, which has other weights, used 1e-3. That TF-Hub's module has 1e-5 too was not verified.
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visgen_bench.extractors.images import check_clips
from visgen_bench.extractors.pins import pin, read_pinned
from visgen_bench.extractors.precision import full_precision
from visgen_bench.extractors.resizing import tf1_bilinear
from visgen_bench.extractors.weights import (
    WeightsError,
    WeightsUnreadable,
    fetch,
    known_weights,
    load_tensors,
    locate,
    read_verified,
)
from visgen_bench.metrics.errors import ClipShapeError

STATE_DICT, TORCHSCRIPT = "i3d-kinetics-400", "i3d-torchscript"  # names in weights.toml
CLASSES = 400
LEAST_FRAMES = 9
_INPUT = 224
# Clips in the network at once: 16 frames of 224 x 224 take 0.2 GB of activations.
_CHUNK = {"cpu": 2}
_CHUNK_ELSEWHERE = 16

Size = tuple[int, int, int]  # frames, rows, columns


def same_padding(shape: Size, kernel: Size, stride: Size) -> list[int]:
    """Zeros before and behind each axis, the last axis first, for TensorFlow's "SAME"."""
    pads: list[int] = []
    for size, k, s in reversed(list(zip(shape, kernel, stride, strict=True))):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        pads += [total // 2, total - total // 2]
    return pads


class Unit(nn.Module):
    """Convolution, batch norm, ReLU; the names of its parts are the weight file's."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, outputs, kernel, stride, bias=False)
        self.bn = nn.BatchNorm3d(outputs, eps=1e-5)
        self.kernel: Size = (kernel, kernel, kernel)
        self.stride: Size = (stride, stride, stride)

    def forward(self, x: Tensor) -> Tensor:
        t, h, w = x.shape[2:]
        x = F.pad(x, same_padding((t, h, w), self.kernel, self.stride))
        return F.relu(self.bn(self.conv3d(x)))


class MaxPool(nn.Module):
    """Max pool with "SAME" padding; its input comes out of a ReLU, so zeros pad like -inf."""

    def __init__(self, kernel: Size, stride: Size) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        t, h, w = x.shape[2:]
        x = F.pad(x, same_padding((t, h, w), self.kernel, self.stride))
        return F.max_pool3d(x, self.kernel, self.stride)


class Inception(nn.Module):
    """Four branches side by side: 1; 1 then 3; 1 then 3; pool then 1."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        self.b0 = Unit(inputs, widths[0], 1)
        self.b1a, self.b1b = Unit(inputs, widths[1], 1), Unit(widths[1], widths[2], 3)
        self.b2a, self.b2b = Unit(inputs, widths[3], 1), Unit(widths[3], widths[4], 3)
        self.b3a, self.b3b = MaxPool((3, 3, 3), (1, 1, 1)), Unit(inputs, widths[5], 1)

    def forward(self, x: Tensor) -> Tensor:
        branches = (
            self.b0(x),
            self.b1b(self.b1a(x)),
            self.b2b(self.b2a(x)),
            self.b3b(self.b3a(x)),
        )
        return torch.cat(branches, dim=1)


class Logits(nn.Module):
    """A linear layer at every place in time: the weight file has it as a convolution."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv3d = nn.Conv3d(inputs, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3d(x)


class InceptionI3D(nn.Module):
    """12,697,264 parameters. The names of its layers are the paper's and the weight file's."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, stride=2)
        self.MaxPool3d_2a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit(64, 64, 1)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        self.MaxPool3d_3a_3x3 = MaxPool((1, 3, 3), (1, 2, 2))
        self.Mixed_3b = Inception(192, (64, 96, 128, 16, 32, 32))
        self.Mixed_3c = Inception(256, (128, 128, 192, 32, 96, 64))
        self.MaxPool3d_4a_3x3 = MaxPool((3, 3, 3), (2, 2, 2))
        self.Mixed_4b = Inception(480, (192, 96, 208, 16, 48, 64))
        self.Mixed_4c = Inception(512, (160, 112, 224, 24, 64, 64))
        self.Mixed_4d = Inception(512, (128, 128, 256, 24, 64, 64))
        self.Mixed_4e = Inception(512, (112, 144, 288, 32, 64, 64))
        self.Mixed_4f = Inception(528, (256, 160, 320, 32, 128, 128))
        self.MaxPool3d_5a_2x2 = MaxPool((2, 2, 2), (2, 2, 2))
        self.Mixed_5b = Inception(832, (256, 160, 320, 32, 128, 128))
        self.Mixed_5c = Inception(832, (384, 192, 384, 48, 128, 128))
        self.logits = Logits(1024, CLASSES)

    def trunk(self, x: Tensor) -> Tensor:
        """Clips float (n, 3, t, h, w) in -1..1 -> (n, 1024, t/8, h/32, w/32), rounded up."""
        x = self.Conv3d_1a_7x7(x)  # (n, 64, t/2, h/2, w/2)
        x = self.MaxPool3d_2a_3x3(x)  # (n, 64, t/2, h/4, w/4)
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))  # (n, 192, t/2, h/4, w/4)
        x = self.MaxPool3d_3a_3x3(x)  # (n, 192, t/2, h/8, w/8)
        x = self.Mixed_3c(self.Mixed_3b(x))  # (n, 480, t/2, h/8, w/8)
        x = self.MaxPool3d_4a_3x3(x)  # (n, 480, t/4, h/16, w/16)
        x = self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))  # (n, 512, t/4, h/16, w/16)
        x = self.Mixed_4f(self.Mixed_4e(x))  # (n, 832, t/4, h/16, w/16)
        x = self.MaxPool3d_5a_2x2(x)  # (n, 832, t/8, h/32, w/32)
        return self.Mixed_5c(self.Mixed_5b(x))  # (n, 1024, t/8, h/32, w/32)

    def forward(self, x: Tensor) -> Tensor:
        """Clips float (n, 3, t, 224, 224) in -1..1, t >= 9 -> logits (n, 400), mean over time."""
        x = F.avg_pool3d(self.trunk(x), (2, 7, 7), stride=1)  # (n, 1024, t/8 - 1, 1, 1)
        return self.logits(x).mean(dim=(2, 3, 4))


def google(clips: Tensor) -> Tensor:
    """FVD's own: TF1 bilinear to 224 x 224, aspect not kept, -1..1 (arXiv:1812.01717's code).

    clips: uint8 (n, t, 3, h, w) -> float32 (n, t, 3, 224, 224).
    """
    frames = tf1_bilinear(clips.flatten(0, 1).float(), (_INPUT, _INPUT))
    return 2.0 * frames.unflatten(0, clips.shape[:2]) / 255.0 - 1.0


def cdfvd(clips: Tensor) -> Tensor:
    """cd-fvd's: torch's half-pixel bilinear to 224 x 224, no antialias, aspect not kept.

    clips: uint8 (n, t, 3, h, w) -> float32 (n, t, 3, 224, 224) in -1..1.
    """
    frames = F.interpolate(
        clips.flatten(0, 1).float(), (_INPUT, _INPUT), mode="bilinear", align_corners=False
    )
    return 2.0 * frames.unflatten(0, clips.shape[:2]) / 255.0 - 1.0


def videogpt(clips: Tensor) -> Tensor:
    """VideoGPT's: shorter side to 224 by half-pixel bilinear, centre cut to 224 x 224.

    clips: uint8 (n, t, 3, h, w) -> float32 (n, t, 3, 224, 224) in -1..1.
    """
    h, w = clips.shape[-2:]
    scale = _INPUT / min(h, w)
    size = (_INPUT, math.ceil(w * scale)) if h < w else (math.ceil(h * scale), _INPUT)
    frames = clips.flatten(0, 1).float() / 255.0
    frames = F.interpolate(frames, size, mode="bilinear", align_corners=False)
    top, left = (size[0] - _INPUT) // 2, (size[1] - _INPUT) // 2
    frames = frames[..., top : top + _INPUT, left : left + _INPUT]
    return 2.0 * (frames.unflatten(0, clips.shape[:2]) - 0.5)


PREPARE: dict[str, Callable[[Tensor], Tensor]] = {
    "i3d-google": google,
    "i3d-videogpt": videogpt,
    "i3d-cdfvd": cdfvd,
}


def unavailable(name: str, paths: Mapping[str, Path], allow_download: bool = False) -> str | None:
    """Why a profile cannot be used here, or None; a file that is there is hashed.

    Args:
        name: "i3d-google", "i3d-videogpt", "i3d-cdfvd" or "i3d-styleganv".
        paths: Paths of weight files that do not lie where `weights.locate` looks.
        allow_download: Whether weights may be downloaded.
    """
    file = known_weights()[TORCHSCRIPT if name == "i3d-styleganv" else STATE_DICT]
    path = paths.get(file.name)
    try:
        if allow_download and file.sha256 and path is None and locate(file) is None:
            return None
        if file.sha256:
            fetch(file, path=path)
        else:
            read_pinned(fetch(file, path=path), file)
    except WeightsError as error:
        return str(error)
    return None


def open_profile(
    name: str, paths: Mapping[str, Path], device: str, allow_download: bool
) -> I3DLogits | I3DScript:
    """The extractor of that name; raises WeightsError as `open` of its class."""
    if name == "i3d-styleganv":
        return I3DScript.open(paths.get(TORCHSCRIPT), device=device, allow_download=allow_download)
    return I3DLogits.open(name, paths.get(STATE_DICT), device=device)


class I3DLogits:
    """The extractor of `fvd`, `fvd_videogpt` and `fvd_cdfvd`, which differ in how clips go in."""

    widths = {"logits": CLASSES}  # noqa: RUF012 - read only

    def __init__(self, name: str, network: InceptionI3D, sha256: str, device: str = "cpu") -> None:
        self.name = name
        self.prepare = PREPARE[name]
        self.sha256 = sha256
        self.device = torch.device(device)
        self.network = network.to(self.device).eval().requires_grad_(False)

    @classmethod
    def open(cls, name: str, path: Path | None = None, *, device: str = "cpu") -> Self:
        """The network with the weights of `path`, or of wherever `weights.fetch` finds them.

        Args:
            name: A key of `PREPARE`.
            path: A local file.
            device: Where it runs.

        Raises:
            WeightsMissing: if `path` does not exist.
            WeightsMismatch: if the file is not the one that was used here first.
            WeightsOffline: if there is no file.
            WeightsUnreadable: if the file does not hold this network.
        """
        file = known_weights()[STATE_DICT]
        found = fetch(file, path=path)
        data, sha256 = read_pinned(found, file)
        network = build(load_tensors(data, str(found)), str(found))
        pin(found, sha256)
        return cls(name, network, sha256, device)

    def layers(self, clips: Tensor, names: tuple[str, ...] = ("logits",)) -> dict[str, Tensor]:
        """uint8 (n, t, 3, h, w), 0..255 -> {"logits": float32 (n, 400)} on the CPU.

        Raises:
            ClipShapeError: below 9 frames.
        """
        _check(clips)
        with full_precision(self.device):
            parts = [
                self.network(self.prepare(part.to(self.device)).transpose(1, 2)).cpu()
                for part in clips.split(_CHUNK.get(self.device.type, _CHUNK_ELSEWHERE))
                if len(part)
            ]
        found = torch.cat(parts) if parts else torch.empty(0, CLASSES)
        return {name: found for name in names}


class I3DScript:
    """The extractor of `fvd_styleganv`: a TorchScript file that rescales and resizes by itself."""

    name = "i3d-styleganv"
    widths = {"logits": CLASSES}  # noqa: RUF012 - read only

    def __init__(self, network: nn.Module, sha256: str, device: str = "cpu") -> None:
        self.sha256 = sha256
        self.device = torch.device(device)
        self.network = network.to(self.device).eval()

    @classmethod
    def open(
        cls,
        path: Path | None = None,
        *,
        device: str = "cpu",
        allow_download: bool = False,
        sha256: str | None = None,
    ) -> Self:
        """The network of `path`, or of wherever `weights.fetch` finds it, after its hash fits.

        Args:
            path: A local file.
            device: Where it runs.
            allow_download: Whether the network may be used to get the file.
            sha256: The hash the file must have; the published one if None. It runs code: give the
                hash of no file that you do not trust.

        Raises:
            WeightsMissing: if `path` does not exist.
            WeightsMismatch: if the file has another hash; nothing of it was run.
            WeightsOffline: if there is no file and none may or can be downloaded.
            WeightsUnreadable: if the file is no TorchScript.
        """
        file = known_weights()[TORCHSCRIPT]
        wanted = sha256 or file.sha256
        if wanted == file.sha256:
            path = fetch(file, path=path, allow_download=allow_download)
        elif path is None:
            raise WeightsUnreadable("weights with a hash of your own need an explicit path.")
        return cls(_script(read_verified(path, wanted, file), str(path)), wanted, device)

    def layers(self, clips: Tensor, names: tuple[str, ...] = ("logits",)) -> dict[str, Tensor]:
        """uint8 (n, t, 3, h, w), 0..255 -> {"logits": float32 (n, 400)} on the CPU.

        Raises:
            ClipShapeError: below 9 frames.
        """
        _check(clips)
        with full_precision(self.device):
            parts = [
                self.network(
                    part.to(self.device).transpose(1, 2).contiguous(),
                    rescale=True,
                    resize=True,
                    return_features=True,
                ).cpu()
                for part in clips.split(_CHUNK.get(self.device.type, _CHUNK_ELSEWHERE))
                if len(part)
            ]
        found = torch.cat(parts) if parts else torch.empty(0, CLASSES)
        return {name: found for name in names}


def build(state: Mapping[str, Tensor], origin: str) -> InceptionI3D:
    """The network with these weights; batch counters are not needed and may be missing.

    Raises:
        WeightsUnreadable: if names or shapes are not this network's.
    """
    network = InceptionI3D()
    own = dict(network.state_dict())
    counters = {name: value for name, value in own.items() if name.endswith("batches_tracked")}
    given = {name: value for name, value in state.items() if name not in counters}
    try:
        network.load_state_dict(given | counters, strict=True)
    except RuntimeError as error:  # load_state_dict lists what does not fit
        raise WeightsUnreadable(
            f"{origin} does not hold Inception-I3D with {CLASSES} classes: {str(error)[:300]}"
        ) from error
    return network


def _script(data: bytes, origin: str) -> nn.Module:
    with warnings.catch_warnings():
        # torch 2.14 calls TorchScript deprecated; the published file exists in this form alone.
        warnings.simplefilter("ignore", category=FutureWarning)
        warnings.simplefilter("ignore", category=DeprecationWarning)
        try:
            return torch.jit.load(io.BytesIO(data), map_location="cpu")
        except (RuntimeError, ValueError) as error:
            raise WeightsUnreadable(
                f"{origin} cannot be read as TorchScript: {str(error)[:200]}"
            ) from error


def _check(clips: Tensor) -> None:
    check_clips(clips)
    if clips.shape[1] < LEAST_FRAMES:
        raise ClipShapeError(
            f"clips have {clips.shape[1]} frames; I3D needs {LEAST_FRAMES} (it halves time three "
            "times and averages over 2). fvd_lite0_frames takes shorter ones."
        )

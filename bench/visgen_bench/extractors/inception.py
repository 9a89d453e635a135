"""The 2015 Inception network that FID, KID and the Inception Score are defined on.

The graph is torch-fidelity's port (`inception-v3-compat`): average pools that leave out the
padding, a max pool in the last block, TF1 bilinear resize to 299 x 299 without half-pixel centres,
(x - 128) / 128. Layers: `pool3` (2048) for `fid` and `kid`, `logits_unbiased` (1008, pool3 times W
without the bias) for `isc`.

Its weights are 96 MB and come from elsewhere (weights.toml). torch-fidelity's constructor
downloads when it is given no path and unpickles without a check when it is; here it only ever gets
bytes whose hash was checked and which were re-written from plain tensors.
"""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from pathlib import Path
from typing import Self

import torch
from torch import Tensor, nn

from visgen_bench.extractors.images import check_images
from visgen_bench.extractors.precision import full_precision
from visgen_bench.extractors.weights import (
    WeightsError,
    WeightsUnreadable,
    fetch,
    known_weights,
    load_tensors,
    locate,
    read_verified,
)

NAME = "inception-2015"
_LAYERS = {"pool3": "2048", "logits_unbiased": "logits_unbiased"}  # ours: torch-fidelity's
_CHUNK = 32  # images at once: 0.5 GB of activations at 299 x 299


def unavailable(path: Path | None = None, allow_download: bool = False) -> str | None:
    """Why the network cannot be used here, or None; a file that is there is hashed."""
    try:
        if allow_download and path is None and locate(known_weights()[NAME]) is None:
            return None
        fetch(known_weights()[NAME], path=path)
    except WeightsError as error:
        return str(error)
    return None


class Inception:
    """The extractor of `fid`, `kid` and `isc`."""

    name = NAME
    widths = {"pool3": 2048, "logits_unbiased": 1008}  # noqa: RUF012 - read only

    def __init__(self, network: nn.Module, sha256: str, device: str = "cpu") -> None:
        self.sha256 = sha256
        self.device = torch.device(device)
        self.network = network.to(self.device)

    @classmethod
    def open(
        cls,
        path: Path | None = None,
        *,
        device: str = "cpu",
        allow_download: bool = False,
        sha256: str | None = None,
    ) -> Self:
        """The network with the weights of `path`, or of wherever `weights.fetch` finds them.

        Args:
            path: A local file.
            device: Where it runs.
            allow_download: Whether the network may be used to get the file.
            sha256: The hash the file must have; the published one if None. Features of any other
                file cannot become a `fid` (`protocol.require_published_weights`).

        Raises:
            WeightsMissing: if `path` does not exist.
            WeightsMismatch: if the file has another hash.
            WeightsOffline: if there is no file and none may or can be downloaded.
            WeightsUnreadable: if the file does not hold this network.
        """
        known = known_weights()[NAME]
        if sha256 is None or sha256 == known.sha256:
            path = fetch(known, path=path, allow_download=allow_download)
            data = read_verified(path, known.sha256, known)
        else:
            found = locate(known, path=path)
            if path is None or found is None:
                raise WeightsUnreadable("weights with a hash of your own need an explicit path.")
            data = read_verified(path, sha256)
        return cls(_build(data, str(path)), hashlib.sha256(data).hexdigest(), device)

    def layers(self, images: Tensor, names: tuple[str, ...] = ("pool3",)) -> dict[str, Tensor]:
        """Features by layer: uint8 (n, 3, h, w) -> float32 (n, 2048 or 1008) on the CPU."""
        check_images(images)
        wanted = [_LAYERS[name] for name in names]
        self.network.features_list = wanted  # pyright: ignore[reportArgumentType]
        parts: list[tuple[Tensor, ...]] = []
        with full_precision(self.device):
            for chunk in images.split(_CHUNK):
                parts.append(tuple(f.cpu() for f in self.network(chunk.to(self.device))))
        if not parts:
            return {name: torch.empty(0, self.widths[name]) for name in names}
        return {
            name: torch.cat(column)
            for name, column in zip(names, zip(*parts, strict=True), strict=True)
        }

    def extract(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, h, w), 0..255 -> pool3 features float32 (n, 2048) on the CPU."""
        return self.layers(images)["pool3"]


def _build(data: bytes, origin: str) -> nn.Module:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    state = load_tensors(data, origin)
    plain = io.BytesIO()
    torch.save(OrderedDict(state), plain)
    plain.seek(0)
    try:
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", list(_LAYERS.values()), feature_extractor_weights_path=plain
        )
    except RuntimeError as error:  # load_state_dict lists what does not fit
        raise WeightsUnreadable(
            f"{origin} does not hold the 2015 Inception: {str(error)[:300]}"
        ) from error

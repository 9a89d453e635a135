"""Extractors by name: what each must offer, whether it is here, and one instance of each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

I3D = ("i3d-google", "i3d-videogpt", "i3d-cdfvd", "i3d-styleganv")
EXTRACTORS = (
    "inception-2015",
    "efficientnet-lite0-64",
    "digit-judge",
    "efficientnet-lite0-64-clips",
    *I3D,
    "c3d-ucf101",
)
PLUGIN_PREFIX = "plug-in:"  # and a metric's name: the network that this metric's plug-in opens


class Extractor(Protocol):
    """A fixed network from images, or from clips, to features.

    Attributes:
        name: As in protocols.toml.
        sha256: Of its weights, hex.
        widths: Features of each layer it offers.
    """

    name: str
    sha256: str
    widths: dict[str, int]

    def layers(self, samples: Tensor, names: tuple[str, ...], /) -> dict[str, Tensor]:
        """uint8 (n, 3, h, w), or (n, t, 3, h, w) -> float32 (n, width) by layer, on the CPU."""
        ...


class OpenExtractor(Protocol):
    """Opens a network on a device; without `allow_download` it makes no network call."""

    def __call__(self, device: str, *, allow_download: bool) -> Extractor: ...


class Extractors:
    """Opens each extractor once, when it is first needed.

    Args:
        device: Where the networks run.
        inception: Path of the Inception weights, if they do not lie where `weights.locate` looks.
        allow_download: Whether weights may be downloaded.
        paths: Paths of other weight files, by their names in weights.toml.
    """

    def __init__(
        self,
        device: str = "cpu",
        inception: Path | None = None,
        allow_download: bool = False,
        paths: Mapping[str, Path] | None = None,
    ) -> None:
        self.device = device
        self.inception = inception
        self.paths = dict(paths or {})
        self.allow_download = allow_download
        self._opened: dict[str, Extractor] = {}

    def open(self, name: str) -> Extractor:
        """The extractor of that name.

        Raises:
            WeightsError: if its weights are missing, wrong or unreadable.
            ValueError: if there is none of that name.
        """
        if name not in self._opened:
            self._opened[name] = self._new(name)
        return self._opened[name]

    def unavailable(self, name: str) -> str | None:
        """Why an extractor cannot be used here, with the line that fixes it, or None."""
        if name in self._opened or name == "pixels" or name.startswith(PLUGIN_PREFIX):
            return None  # what a plug-in lacks shows when it is opened
        if name == "inception-2015":
            from visgen_bench.extractors import inception

            return inception.unavailable(self.inception, self.allow_download)
        if name in ("efficientnet-lite0-64", "efficientnet-lite0-64-clips"):
            from visgen_bench.extractors import lite0

            return lite0.unavailable()
        if name == "digit-judge":
            from visgen_bench.extractors import judge

            return judge.unavailable()
        if name in I3D:
            from visgen_bench.extractors import i3d

            return i3d.unavailable(name, self.paths, self.allow_download)
        if name == "c3d-ucf101":
            from visgen_bench.extractors import c3d

            return c3d.unavailable(self.paths)
        raise ValueError(f'no extractor "{name}"; there are {", ".join(EXTRACTORS)}.')

    def _new(self, name: str) -> Extractor:
        if name.startswith(PLUGIN_PREFIX):
            return self._of_plugin(name.removeprefix(PLUGIN_PREFIX))
        if name == "inception-2015":
            from visgen_bench.extractors.inception import Inception

            return Inception.open(
                self.inception, device=self.device, allow_download=self.allow_download
            )
        if name == "efficientnet-lite0-64":
            from visgen_bench.extractors.lite0 import Lite0

            return Lite0(self.device)
        if name == "digit-judge":
            from visgen_bench.extractors.judge import DigitJudge

            return DigitJudge(self.device)
        if name == "efficientnet-lite0-64-clips":
            from visgen_bench.extractors.lite0_clips import Lite0Clips

            return Lite0Clips(self.device)
        if name in I3D:
            from visgen_bench.extractors import i3d

            return i3d.open_profile(name, self.paths, self.device, self.allow_download)
        if name == "c3d-ucf101":
            from visgen_bench.extractors.c3d import C3DLogits

            return C3DLogits.open(self.paths, device=self.device)
        raise ValueError(f'no extractor "{name}"; there are {", ".join(EXTRACTORS)}.')

    def _of_plugin(self, metric: str) -> Extractor:
        from visgen_bench.extractors.weights import WeightsError
        from visgen_bench.metrics import plugins  # which describe networks by this file's protocol

        plugin = plugins.find(metric)
        if plugin is None or isinstance(plugin.extractor, str):
            raise ValueError(f"no plug-in {metric} with a network of its own is installed.")
        try:
            return plugin.extractor(self.device, allow_download=self.allow_download)
        except Exception as error:  # somebody else's code may raise anything
            raise WeightsError(
                f"plug-in {metric} cannot open its network: {type(error).__name__}: {error}"
            ) from error

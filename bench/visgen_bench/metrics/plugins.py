"""Metrics of other packages: entry points of the group `visgen.metrics`, by the metric's name.

    [project.entry-points."visgen.metrics"]
    spread_ratio = "my_package.spread:METRIC"     # a MetricPlugin whose info.name is spread_ratio

A plug-in is loaded when somebody asks for its metric, and by `list`, `describe` and `doctor`. A
broken one is an error, by its name, for whoever asked, and concerns nobody else.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from visgen_bench.extractors.opening import EXTRACTORS, PLUGIN_PREFIX, OpenExtractor
from visgen_bench.metrics.errors import ProtocolError
from visgen_bench.metrics.protocol import PLUGIN_FORMULA, RESERVED, Media, Protocol, protocols
from visgen_bench.metrics.scoring import Score

if TYPE_CHECKING:
    from visgen_results.metrics import MetricInfo

GROUP = "visgen.metrics"
# Our formulas that need nothing but features, and the options that they read.
_NAMED = {"frechet": ("ddof",), "kernel-full": ("max_samples",)}

Rows = NDArray[np.float32]
Formula = Callable[[Rows, Rows, Mapping[str, float | int | str]], "float | Score"]


@dataclass(frozen=True, kw_only=True)
class MetricPlugin:
    """A metric: what it is called, what it looks at, and its formula.

    Attributes:
        info: Name, label, unit and direction, as in `visgen_results.metrics`.
        id: Protocol id; another definition is another id.
        extractor: Name of one of our networks, or a function (device, allow_download=) that opens
            one of the plug-in's own.
        layer: Layer of that network.
        formula: (samples (n, d), real (m, d), options) -> a number or a `Score`, from float32 rows;
            a `MetricError` says why there is no number. Or the name of a formula of ours:
            "frechet" (options ddof; a network of the plug-in's own) or "kernel-full" (max_samples).
        samples: How many samples the definition means.
        resize: How a picture becomes the input of a network of its own.
        options: Numbers of the definition.
    """

    info: MetricInfo
    id: str
    extractor: str | OpenExtractor
    layer: str
    formula: Formula | str
    samples: int = 1000
    resize: str = ""
    options: Mapping[str, float | int | str] = field(default_factory=dict)

    @property
    def protocol(self) -> Protocol:
        """Its entry, as one of protocols.toml; never `published`."""
        network, sha256, resize = f"{PLUGIN_PREFIX}{self.info.name}", "", self.resize
        media: Media = "image"
        if isinstance(self.extractor, str):
            twin = next(e for e in protocols().values() if e.extractor == self.extractor)
            network, sha256, resize = twin.extractor, twin.sha256, twin.resize
            media = twin.media
        return Protocol(
            metric=self.info.name,
            id=self.id,
            media=media,
            formula=self.formula if isinstance(self.formula, str) else PLUGIN_FORMULA,
            extractor=network,
            layer=self.layer,
            sha256=sha256,
            resize=resize,
            samples=self.samples,
            published=False,
            options=self.options,
        )


def plugin_names() -> list[str]:
    """Names that plug-ins offer beside ours; none of them is loaded."""
    points = importlib.metadata.entry_points(group=GROUP)
    return sorted({point.name for point in points} - protocols().keys())


def find(name: str) -> MetricPlugin | None:
    """The plug-in of that name, its metric entered in the table; None if there is none.

    Raises:
        ProtocolError: if it is broken; says which, and how.
    """
    point = next(iter(importlib.metadata.entry_points(group=GROUP, name=name)), None)
    if point is None or name in protocols():
        return None
    # Not above: it loads pyarrow, whose thread the server that forks workers must not have.
    from visgen_results.metrics import add

    try:
        loaded = point.load()
        _check(name, loaded)
        add(loaded.info)
    except Exception as error:  # somebody else's code may raise anything
        raise ProtocolError(
            f"plug-in {name} ({point.value}) is broken: {type(error).__name__}: {error}"
        ) from error
    return loaded


def broken() -> dict[str, str]:
    """What is wrong with each plug-in that cannot be used; loads them all."""
    faults = {}
    for name in plugin_names():
        try:
            find(name)
        except ProtocolError as error:
            faults[name] = str(error)
    return faults


def source_of(name: str) -> Path | None:
    """The file that a plug-in was loaded from; None for a metric of ours."""
    if find(name) is None:
        return None
    point = next(iter(importlib.metadata.entry_points(group=GROUP, name=name)))
    file = getattr(sys.modules.get(point.module), "__file__", None)
    return Path(file) if file else None


def _check(name: str, plugin: object) -> None:
    if not isinstance(plugin, MetricPlugin):
        raise TypeError(f"it gives {type(plugin).__name__}, not a MetricPlugin")
    if plugin.info.name != name or name in RESERVED:
        raise ValueError(
            f'its metric is "{plugin.info.name}" and its entry point "{name}"; both must be one '
            f"name, and none of {', '.join(RESERVED)}"
        )
    if isinstance(plugin.extractor, str) and plugin.extractor not in EXTRACTORS:
        raise ValueError(f'no extractor "{plugin.extractor}"; there are {", ".join(EXTRACTORS)}')
    if isinstance(plugin.formula, str) and plugin.formula not in _NAMED:
        raise ValueError(f'no formula "{plugin.formula}" by name; there are {", ".join(_NAMED)}')
    if plugin.formula == "frechet" and isinstance(plugin.extractor, str):
        raise ValueError("our networks have their Frechet distances; give a network of its own")
    lacking = set(_NAMED.get(str(plugin.formula), ())) - plugin.options.keys()
    if lacking:
        raise ValueError(f"its formula needs the options {', '.join(sorted(lacking))}")

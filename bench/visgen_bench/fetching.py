"""Downloading what a suite needs, so that it then runs without a network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from visgen_bench.cell import QualityCell
from visgen_bench.checks import check_data, check_metrics
from visgen_bench.suite import Suite


def fetch_all(
    suite: Suite, data_root: Path | None, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Fetch every data set and every extractor's weights; one row each, `ready` or `missing`.

    Raises:
        SuiteError: for a data set or a metric that there is not, before anything is fetched.
    """
    specs: dict[str, None] = {}
    extractors: dict[str, None] = {}
    for placed in suite.cells:
        cell = placed.cell
        if cell.data:
            check_data(cell.data, placed.where)
            specs.setdefault(cell.data)
        if isinstance(cell, QualityCell):
            check_metrics(cell, placed.where)
            for name in _extractors(cell):
                extractors.setdefault(name)
    rows = []
    for spec in specs:
        say(f"data {spec} ...")
        rows.append(_row(f"data {spec}", _data, spec, data_root))
    for name in extractors:
        say(f"weights of {name} ...")
        rows.append(_row(f"weights {name}", _weights, name))
    return rows


def _row(what: str, get: Callable[..., str], *arguments: Any) -> dict[str, Any]:
    from visgen_bench.extractors.weights import WeightsError

    try:
        return {"what": what, "status": "ready", "text": get(*arguments)}
    except (ValueError, OSError, WeightsError) as error:
        return {"what": what, "status": "missing", "text": str(error)}


def _extractors(cell: QualityCell) -> list[str]:
    from visgen_bench.metrics.protocol import protocol

    return [name for name in (protocol(m).extractor for m in cell.metrics) if name != "pixels"]


def _data(spec: str, data_root: Path | None) -> str:
    from visgen.data import open_data

    data = open_data(spec, root=data_root, offline=False)
    return f"{len(data)} pictures, fingerprint {data.fingerprint[:12]}"


def _weights(name: str) -> str:
    from visgen_bench.extractors.opening import Extractors

    extractors = Extractors(allow_download=True)
    return f"sha256 {extractors.open(name).sha256[:12]}"

"""Writes `visgen/zoo` from results: weights from a suite that trains, figures from one that scores.

    python -m visgen_bench.make_zoo weights results/runs/learn
    python -m visgen_bench.make_zoo figures results/runs/quick
    python -m visgen_bench.make_zoo weights results/runs/learn_videos
    python -m visgen_bench.make_zoo figures results/runs/moving

Weights are stored as float16; the figures are those of the stored file.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from visgen.checkpoints import read, save_weights
from visgen.zoo.table import FOLDER, TABLE, ZooEntry, entries
from visgen_results.reading import read_results

Row = Mapping[str, Any]
WEIGHTS = "weights.safetensors"


def newest_trained(runs: Sequence[Row]) -> dict[str, Row]:
    """The newest ok train run of every preset."""
    trained = [run for run in runs if run["kind"] == "train" and run["status"] == "ok"]
    return {run["model"]: run for run in sorted(trained, key=lambda run: run["ended_at"])}


def write_weights(root: Path) -> None:
    """Store the weights of `root`'s train cells and enter them in the table, without figures."""
    results = read_results(root)
    table = dict(entries())
    for preset, run in sorted(newest_trained(results.runs).items()):
        tensors, metadata = read(root / run["artifacts_path"] / WEIGHTS)
        file = f"{preset}.safetensors"
        about = {"preset": preset, "seed": metadata["seed"], "steps": metadata["step"]}
        sha256 = save_weights(FOLDER / file, tensors, about, half=True)
        table[preset] = ZooEntry(
            name=preset,
            preset=preset,
            file=file,
            sha256=sha256,
            recipe=f"suite {run['suite']}, cell_key {run['cell_key']}",
            seed=int(run["seed"]),
            data=str(run["dataset"]),
            steps=int(metadata["step"]),
            seconds=_number(results.numbers, run["run_id"], "train_seconds"),
            figures={},
        )
    write_table(table)


def write_figures(root: Path) -> None:
    """Enter the mean of every metric over the generation seeds of `root`'s zoo rows.

    What was asked for (`class`) and a split other than `test` stand behind the metric's name.
    Entries of which `root` has no row keep their figures.
    """
    results = read_results(root)
    runs = {run["run_id"]: run for run in results.runs}
    table = dict(entries())
    for name, entry in table.items():
        values: dict[str, list[float]] = {}
        for row in results.numbers:
            run = runs.get(row["run_id"])
            if run is None or run["weights_sha256"] != entry.sha256:
                continue
            if row["protocol"] and row["value"] is not None:
                split = None if run["split"] == "test" else run["split"]
                parts = [row["metric"], run["variant"], split]
                values.setdefault(" ".join(filter(None, parts)), []).append(row["value"])
        if not values:
            continue
        figures = {metric: statistics.fmean(v) for metric, v in sorted(values.items())}
        table[name] = ZooEntry(**{**vars(entry), "figures": figures})
    write_table(table)


def write_table(table: Mapping[str, ZooEntry]) -> None:
    """Write `zoo.toml`."""
    lines = ["# Written by `make zoo` and `make zoo-videos`; the recipes are in the suites named."]
    for name, entry in sorted(table.items()):
        fields = {key: value for key, value in vars(entry).items() if key != "name"}
        figures = fields.pop("figures")
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in fields.items())]
        lines += [f"[{name}.figures]", *(f"{_key(key)} = {figures[key]:.6g}" for key in figures)]
    (FOLDER / TABLE).write_text("\n".join(lines) + "\n", "utf-8")
    entries.cache_clear()


def _key(name: str) -> str:
    """Quoted where TOML wants it."""
    return name if name.replace("_", "").isalnum() else json.dumps(name)


def _toml(value: object) -> str:
    return json.dumps(value) if isinstance(value, str) else f"{value:.6g}"


def _number(rows: Sequence[Row], run_id: str, metric: str) -> float:
    return next(r["value"] for r in rows if r["run_id"] == run_id and r["metric"] == metric)


def main() -> None:
    """Run one of the two steps."""
    parser = argparse.ArgumentParser(description="Write visgen/zoo from results.")
    parser.add_argument("step", choices=("weights", "figures"))
    parser.add_argument("results", type=Path)
    options = parser.parse_args()
    {"weights": write_weights, "figures": write_figures}[options.step](options.results)


if __name__ == "__main__":
    main()

"""A recorded row back into the suite that gives its cell again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visgen_bench import recipes
from visgen_bench.cell import KINDS, PATHS
from visgen_bench.errors import UsageError
from visgen_bench.kernels_bench.names import SHARE
from visgen_bench.suite import Suite, from_entries
from visgen_results.rows import to_rows
from visgen_results.store import Store


def find_row(run_id: str, folders: Sequence[Path]) -> tuple[dict[str, Any], Path]:
    """The `runs` row whose id begins with `run_id`, and its result folder.

    Raises:
        UsageError: if there is none, or more than one.
    """
    found = [
        (row, folder)
        for folder in folders
        if (folder / "runs").is_dir()
        for row in to_rows(Store(folder).read("runs"))
        if row["run_id"].startswith(run_id)
    ]
    if len(found) != 1:
        where = ", ".join(str(folder) for folder in folders) or "no result folder"
        what = "no run" if not found else f"{len(found)} runs"
        raise UsageError(f'{what} with an id like "{run_id}" in {where}; --folder names another')
    return found[0]


def suite_of_row(row: dict[str, Any]) -> Suite:
    """The suite of one cell that a row recorded.

    Raises:
        UsageError: if the cell took a file or a folder: rows hold contents, never paths.
    """
    spec = json.loads(row["config_json"] or "{}")
    if row["kind"] == "kernel":
        command = "static" if row["device_type"] == "static" else "bench"
        again = f"visgen-bench kernels {command} --shape {row['dataset'] or '...'}"
        raise UsageError(f"run {row['run_id']} is of one kernel; {again} measures it again")
    if spec.get("what") == SHARE:
        again = f"visgen-bench kernels share --model {row['model']} --phase {spec['phase']}"
        raise UsageError(f"run {row['run_id']} is no cell; {again} measures it again")
    if row["variant"] == "gate" or row["kind"] not in KINDS:
        raise UsageError(f"run {row['run_id']} is no cell; run its suite again")
    for key in ("data", "images", "include", "weights"):
        value = spec.get(key)
        taken = value is not None and (key in ("images", "include") or value in PATHS)
        if taken or (key == "weights" and str(value).startswith("file:")):
            raise UsageError(
                f"run {row['run_id']} took its {key} from a file, and rows hold no paths; "
                "run its suite again with --rerun all"
            )
    kind = spec["kind"]
    entry = {
        key: value
        for key, value in spec.items()
        if value is not None and key in {"kind", *KINDS[kind].model_fields}
    }
    if "recipe" in entry:
        known = recipes.fields(entry["recipe"].get("objective"))
        entry["recipe"] = {k: v for k, v in entry["recipe"].items() if v is not None and k in known}
    return from_entries(row["suite"] or "rerun", [entry], f"run {row['run_id']}")

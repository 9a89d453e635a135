"""Running requests of `kernels share`, and their records as rows: one run per implementation."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from visgen_bench.cell import canonical_json, content_key
from visgen_bench.kernels_bench.names import SHARE
from visgen_bench.kernels_bench.processes import Ended, run_child
from visgen_bench.kernels_bench.running import (
    Row,
    Say,
    Written,
    absent,
    ending,
    machine_columns,
    machine_facts,
    outcome,
    said,
    write_run,
)
from visgen_bench.kernels_bench.share_request import ShareRequest
from visgen_bench.measure import environment
from visgen_bench.presets import Presets
from visgen_bench.recording import log_name, record_machine
from visgen_bench.running import only_writer, prepare_output
from visgen_results.store import Store, new_run_id


def run_shares(
    asked: Sequence[ShareRequest],
    presets: Presets,
    out: Path,
    say: Say,
    *,
    timeout_s: float | None = None,
) -> Written:
    """Measure models and write their rows below `out`.

    Raises:
        OutputError: if the folder cannot be written to, before anything is started.
    """
    prepare_output(out)
    store, written = Store(out), Written()
    with only_writer(out):
        for number, request in enumerate(asked, start=1):
            started = datetime.datetime.now(datetime.UTC)
            log = log_name(new_run_id())
            (out / log).parent.mkdir(parents=True, exist_ok=True)
            ended = run_child(
                "share",
                request.to_json(),
                log=out / log,
                timeout_s=timeout_s,
                threads=request.threads,
            )
            config = presets.find(request.model)
            commit_share(store, request, config, ended, started, log, written)
            label = f"[{number}/{len(asked)}] {request.name}"
            for line in said(written.runs[-len(request.implementations) :], written.metrics):
                say(f"{label}: {line}")
    return written


def commit_share(
    store: Store,
    request: ShareRequest,
    config: Any,
    ended: Ended,
    started: datetime.datetime,
    log: str,
    into: Written,
) -> None:
    """Write a run for every implementation, with all its numbers or the reason it has none."""
    record_machine(store, environment.machine_row(), "performance")
    for name in request.implementations:
        own = [record for record in ended.records if record.get("backend") == name]
        status, reason = outcome(own, ended)
        run = {
            **machine_columns(),
            **columns_of(request, name, config),
            **ending(status, reason, started, log),
        }
        metrics = [record["row"] for record in own if "row" in record]
        if not any(row["metric"] == "latency" for row in metrics):
            metrics.append({**absent("latency", reason or status), "phase": request.phase})
        write_run(store, run, metrics, own, into)


def columns_of(request: ShareRequest, implementation: str, config: Any) -> Row:
    """Columns of the `runs` row that follow from what was asked for."""
    content = {
        "what": SHARE,
        "model": request.model,
        "config": repr(config),
        "phase": request.phase,
        "batch": request.batch,
        "dtype": request.dtype,
        "device": request.device_type,
        "attention": implementation,
        "seed": request.seed,
    }
    size = getattr(config, "image_size", None)
    facts = machine_facts(request.device_type, request.threads, None)
    return {
        "kind": "performance",
        "model": request.model,
        "family": getattr(config, "family", None),
        "task": getattr(config, "task", None),
        "resolution": f"3x{size[0]}x{size[1]}" if size else None,
        "channels": 3,
        "height": size[0] if size else None,
        "width": size[1] if size else None,
        "device_type": request.device_type,
        "device_name": facts["device_name"],
        "dtype": request.dtype,
        "compile_mode": "none",
        "memory_format": "contiguous",
        "attention": implementation,
        "batch_size": request.batch,
        "n_devices": 1,
        "n_nodes": 1,
        "world_size": 1,
        "seed": request.seed,
        "threads": request.threads,
        "spec_key": content_key(content),
        "cell_key": content_key({**content, "machine": facts}),
        "config_json": canonical_json(content),
    }

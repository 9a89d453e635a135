"""`visgen-bench kernels bench` and `kernels share`. Everything heavy is imported inside."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

OUT = Path("results/runs/kernels")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Out = Annotated[Path, typer.Option(help="Result folder; rows are added to it.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; a GPU if there is one.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; all usable cores.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds of one process.")]
Seconds = Annotated[
    float | None, typer.Option(min=0.01, help="Of timed rounds; 5, with --quick less.")
]


def bench(
    shape: Annotated[str | None, typer.Option(help="G1,D4,...; default all 38.")] = None,
    direction: Annotated[
        str | None, typer.Option(help="forward,backward,double_backward; what training takes.")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="ours,eager,sdpa,flex,...; default all that can.")
    ] = None,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="bf16, fp16, fp32.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, help="Instead of the shape's own.")] = None,
    threads: Threads = None,
    seconds: Seconds = None,
    timeout: Timeout = None,
    quick: Annotated[bool, typer.Option("--quick", help="Six small shapes, batch 2.")] = False,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Time attention kernels against their peers, side by side, with errors against float64.

    On a GPU: caches flushed, CUDA graphs, Proton. Without one the CPU implementations are timed,
    and every row says so.
    """
    from visgen_bench.kernels_bench.request import groups
    from visgen_bench.kernels_bench.running import run_groups

    asked = groups(
        shapes=shape,
        directions=direction,
        backends=backend,
        device=device,
        dtype=dtype,
        batch=batch,
        threads=_threads(threads),
        seconds=seconds,
        quick=quick,
    )
    written = run_groups(asked, out, _say, timeout_s=timeout)
    _show(out, written.metrics, as_json, {run["run_id"] for run in written.runs})
    raise typer.Exit(1 if written.failed else 0)


def share(
    model: Annotated[str | None, typer.Option(help="Presets; default all with attention.")] = None,
    phase: Annotated[str | None, typer.Option(help="sample, d_step, g_step.")] = None,
    attention: Annotated[
        str | None, typer.Option(help="chunked,sdpa,sdpa-math,reference,triton.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 2,
    device: Device = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16.")] = None,
    threads: Threads = None,
    seconds: Annotated[float | None, typer.Option(min=0.01, help="Of timed steps; 10.")] = None,
    timeout: Timeout = None,
    include: Annotated[
        list[Path] | None, typer.Option(help="A Python file with PRESETS of your own.")
    ] = None,
    out: Out = OUT,
    as_json: Json = False,
) -> None:
    """Attention's share of a model's time and memory, and what each implementation is worth to it.

    Amdahl's prediction, from the share and the kernel's own speed-up, beside what was gained.
    """
    from visgen_bench.kernels_bench.share_request import share_requests
    from visgen_bench.kernels_bench.share_running import run_shares
    from visgen_bench.presets import load_presets

    files = tuple(path.resolve() for path in include or ())
    presets = load_presets(files)
    asked = share_requests(
        presets=presets,
        include=files,
        models=model,
        phases=phase,
        implementations=attention,
        device=device,
        dtype=dtype,
        batch=batch_size,
        threads=_threads(threads),
        seconds=seconds,
    )
    written = run_shares(asked, presets, out, _say, timeout_s=timeout)
    _show(out, written.metrics, as_json, {run["run_id"] for run in written.runs})
    raise typer.Exit(1 if written.failed else 0)


def _threads(given: int | None) -> int:
    from visgen_bench.measure.environment import usable_cores

    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return given or (int(allowed) if allowed.isdigit() else 0) or usable_cores()


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def _show(out: Path, rows: list[dict[str, Any]], as_json: bool, runs: set[str]) -> None:
    """The tables of these runs on stdout, or all their rows as JSON."""
    if as_json:
        sys.stdout.write(json.dumps({"rows": rows, "folder": str(out)}, indent=1, default=str))
        sys.stdout.write("\n")
        return
    from visgen_results.kernel_tables import kernel_tables, to_text
    from visgen_results.reading import read_results

    sys.stdout.write(to_text(kernel_tables(read_results(out), only=runs)))
    sys.stdout.write(f"\nrows: {out} (visgen-bench report {out} makes a page of them)\n")

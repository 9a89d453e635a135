"""`visgen-bench kernels static`. Everything heavy is imported inside the command."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visgen_bench.errors import UsageError, usage_errors

if TYPE_CHECKING:
    from visgen_bench.kernels_static.request import OwnTask, Task
    from visgen_bench.kernels_static.sweep import Sweep

RUNS = Path("results/runs")
FOLDER = "kernels-static"
_OWN = "module:function or file.py:function, a kernel of your own; left out: the package's kernels."


def static(
    kernel_of_yours: Annotated[str | None, typer.Argument(metavar="KERNEL", help=_OWN)] = None,
    target: Annotated[list[str] | None, typer.Option(help="sm_80, sm_90, sm_100, gfx942.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="Layers: G1, W3, ... (all).")] = None,
    direction: Annotated[list[str] | None, typer.Option(help="forward, backward, ...")] = None,
    kernel: Annotated[list[str] | None, typer.Option(help="forward, backward_keys, ...")] = None,
    dtype: Annotated[str, typer.Option(help="bf16, fp16, fp32.")] = "bf16",
    signature: Annotated[
        str | None, typer.Option(help='Types of your kernel: "*bf16:16,*fp32:16,i32:16,i32".')
    ] = None,
    constant: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of a constexpr.")] = None,
    option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the compiler.")] = None,
    warps: Annotated[int, typer.Option(min=1, help="Of your kernel.")] = 4,
    stages: Annotated[int, typer.Option(min=1, help="Of your kernel.")] = 3,
    programs: Annotated[int | None, typer.Option(min=1, help="Your grid's size.")] = None,
    scores: Annotated[float | None, typer.Option(help="Results of a pass of your loop.")] = None,
    flops: Annotated[float | None, typer.Option(help="Matrix FLOPs such a pass needs.")] = None,
    passes: Annotated[float | None, typer.Option(help="Of a program through your loop.")] = None,
    moved: Annotated[
        float | None, typer.Option("--bytes", help="Bytes your grid has to move at least.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=0, help="Processes; default: the cores.")] = None,
    time_limit: Annotated[float | None, typer.Option(help="Begin nothing after (s).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for results.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """What kernels cost, read from their machine code; no GPU is needed, and nothing is run.

    Registers, spills, occupancy, matrix instructions, widths of memory accesses, instructions of
    the main loop by pipe; floors of the roofline and a predicted time for every device of a target.
    """
    from visgen_bench.kernels_static.request import split_names

    targets = split_names(target)
    tasks: list[Task] | list[OwnTask]
    if kernel_of_yours is not None:
        _refuse("is of the package's kernels", shape=shape, direction=direction, kernel=kernel)
        known = {"programs": programs, "scores": scores, "flops": flops, "passes": passes}
        tasks = _own_tasks(
            kernel_of_yours, targets, {**known, "moved": moved},
            signature=signature, constants=tuple(constant or ()), options=tuple(option or ()),
            warps=warps, stages=stages,
        )  # fmt: skip
    else:
        _refuse(
            "is of a kernel of your own; name it as module:function",
            signature=signature, constant=constant, option=option, programs=programs,
            scores=scores, flops=flops, passes=passes, bytes=moved,
        )  # fmt: skip
        from visgen_bench.kernels_static.request import make_tasks

        tasks = make_tasks(
            shapes=split_names(shape),
            directions=split_names(direction),
            kernels=split_names(kernel),
            targets=targets,
            dtype=dtype,
        )
    raise typer.Exit(_run(tasks, jobs, time_limit, (out or RUNS) / FOLDER, as_json))


def _refuse(why: str, **given: object) -> None:
    for name, value in given.items():
        if value not in (None, []):
            raise UsageError(f"--{name} {why}")


def _own_tasks(
    name: str, targets: list[str], known: dict[str, Any], **described: Any
) -> "list[OwnTask]":
    """One task a target; the kernel is loaded here once, so that mistakes are told at once.

    described: as `static.signature.load_launches` takes it; known: the other fields of a task.
    """
    from visgen_bench.kernels_static.request import OwnTask, chosen_targets
    from visgen_kernels.static.signature import KernelError, load_launches

    with usage_errors(KernelError):
        load_launches(name, **described)
    signature = described["signature"]
    if signature and "*" in signature and ":16" not in signature:
        _say(
            "note: no pointer is marked :16, so accesses are compiled for unaligned tensors; "
            "torch's tensors are aligned, write *bf16:16"
        )
    return [OwnTask(name, one, **described, **known) for one in chosen_targets(targets)]


def _run(
    tasks: "list[Task] | list[OwnTask]",
    jobs: int | None,
    seconds: float | None,
    root: Path,
    as_json: bool,
) -> int:
    from visgen_bench.kernels_static import text
    from visgen_bench.kernels_static.record import recording
    from visgen_bench.kernels_static.request import Task
    from visgen_bench.kernels_static.sweep import sweep
    from visgen_bench.measure.environment import usable_cores

    count = usable_cores() if jobs is None else jobs
    with recording(root) as recorder:
        done = sweep(tasks, jobs=count, seconds=seconds, say=_say, keep=recorder.add)
        page = recorder.finish() if done.findings else None
    if as_json:
        _print_json({"rows": recorder.rows, "report": None if page is None else str(page)})
    else:
        own = [one for one in done.findings if not isinstance(one.task, Task)]
        lines = text.own_lines(own) if own else text.layer_lines(done.findings)
        typer.echo("\n".join(lines))
        typer.echo(f"\nreport: {page}" if page else "\nno report was written")
    return _verdict(done)


def _verdict(done: "Sweep") -> int:
    """1 if a kernel could not be compiled or was not begun, else 0."""
    for one in done.findings:
        if one.analysis is None:
            _say(f"failed: {one.error.splitlines()[0][:300]}")
    if done.left:
        names = ", ".join(task.name for task in done.left[:6])
        more = f" and {len(done.left) - 6} more" if len(done.left) > 6 else ""
        _say(f"not begun within the time limit: {names}{more}")
    return 1 if done.left or any(one.analysis is None for one in done.findings) else 0


def _print_json(document: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(document, indent=1, default=str))


def _say(text: str) -> None:
    typer.echo(text, err=True)

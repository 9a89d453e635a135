"""The command `visgen-bench`; the only module that prints. stdout is the product, stderr progress.

Exit codes: 0 all good, 1 a cell failed, 2 usage, 3 a gate failed, 130 and 143 signals. Everything
heavy is imported inside the commands: `--help` must answer at once.
"""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from visgen_bench.errors import UsageError, usage_errors
from visgen_bench.kernels_command import kernels_app

if TYPE_CHECKING:
    from visgen_bench.plan import Options, Plan
    from visgen_bench.running import Summary
    from visgen_bench.suite import Suite

RUNS = Path("results/runs")
app = typer.Typer(
    name="visgen-bench",
    help="Compare models that generate pictures: quality and speed, in one table.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
results_app = typer.Typer(
    help="Query and tend result tables.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(results_app, name="results")
app.add_typer(kernels_app, name="kernels")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Out = Annotated[
    Path | None, typer.Option(help="Folder for results; each suite gets its own in it.")
]
DataRoot = Annotated[Path | None, typer.Option(help="Where CIFAR-10 and STL-10 lie.")]
Offline = Annotated[bool, typer.Option("--offline", help="No network call at all.")]
Include = Annotated[list[Path] | None, typer.Option(help="A Python file with PRESETS of your own.")]
Results = Annotated[Path, typer.Argument(help="A result folder.")]


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run the command line; a mistake of the user's is one line and exit code 2."""
    try:
        app()
    except UsageError as error:
        say(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # a reader such as `head` that has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def refuse_foreign_launcher() -> None:
    """Several copies of this command would each run the whole plan."""
    ranks = max(int(os.environ.get(n, "1") or 1) for n in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"))
    if ranks > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError("visgen-bench starts torchrun itself; use --per-model N")


def emit(document: Any) -> None:
    """JSON on stdout."""
    print(json.dumps(document, indent=1, default=str))


@app.command("list")
def list_all(include: Include = None, as_json: Json = False) -> None:
    """Models, suites, metrics and data that can be named."""
    from visgen_bench import describe
    from visgen_bench.metrics import plugins
    from visgen_bench.presets import load_presets

    presets = load_presets(include or [])
    found = describe.everything(presets)
    for plugin, reason in presets.broken.items():
        say(f"plug-in {plugin} is broken and left out: {reason}")
    for reason in plugins.broken().values():
        say(f"{reason}; it is left out")
    if as_json:
        emit({"rows": [{"what": what, **row} for what, rows in found.items() for row in rows]})
        return
    for what, rows in found.items():
        print(f"{what}:")
        print("\n".join(describe.columns(rows)))


@app.command("describe")
def describe_one(name: str, include: Include = None, as_json: Json = False) -> None:
    """What a model, suite, metric or weights of the zoo are."""
    from visgen_bench import describe
    from visgen_bench.presets import load_presets

    facts = describe.one(name, load_presets(include or []))
    if as_json:
        emit({"rows": [facts]})
    else:
        print("\n".join(describe.lines(facts)))


RUN_HELP = "Run a suite file, a shipped suite, or models named here; resumes what was begun."
PLAN_HELP = "Say what `run` would do: cells, time, memory, disk, and what is done already."


@app.command("plan", help=PLAN_HELP)
@app.command("run", help=RUN_HELP)
def run_suite(
    context: typer.Context,
    suite: Annotated[str | None, typer.Argument(help="FILE.toml or a shipped suite.")] = None,
    model: Annotated[str | None, typer.Option(help="Presets; commas make an axis.")] = None,
    kind: Annotated[str | None, typer.Option(help="train, quality, performance.")] = None,
    data: Annotated[str | None, typer.Option(help="digits:8, folder:PATH, cifar10, ...")] = None,
    weights: Annotated[str | None, typer.Option(help="zoo, untrained, file:PATH, ...")] = None,
    metrics: Annotated[str | None, typer.Option(help="Quality metrics.")] = None,
    samples: Annotated[str | None, typer.Option(help="Samples of a quality cell.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to compare with.")] = None,
    phase: Annotated[str | None, typer.Option(help="sample, d_step, g_step.")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Samples per call.")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16, fp16.")] = None,
    attention: Annotated[str | None, typer.Option(help="chunked, sdpa, reference.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1.")] = None,
    memory_format: Annotated[str | None, typer.Option(help="contiguous, channels_last.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="Use torch.compile.")] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Trace and top operators.")] = False,
    seed: Annotated[str | None, typer.Option(help="Seeds.")] = None,
    threads: Annotated[str | None, typer.Option(help="CPU threads of one process.")] = None,
    per_model: Annotated[str | None, typer.Option(help="Devices one cell spans.")] = None,
    devices: Annotated[str | None, typer.Option(help="GPUs that may be used: 0-3,5.")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value.")] = None,
    show_suite: Annotated[bool, typer.Option(help="Print the TOML this stands for.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="Globs on cell names.")] = None,
    skip: Annotated[list[str] | None, typer.Option(help="Globs on cell names.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Cap samples; not comparable.")] = None,
    max_cells: Annotated[int | None, typer.Option(min=1, help="Run at most so many.")] = None,
    rerun: Annotated[str | None, typer.Option(help="failed, stale, all.")] = None,
    retries: Annotated[int, typer.Option(min=0, help="After a crash or time-out.")] = 1,
    timeout_per_cell: Annotated[float | None, typer.Option(help="Seconds.")] = None,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop at a failure.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="A new interpreter per cell.")] = False,
    in_process: Annotated[bool, typer.Option("--in-process", hidden=True)] = False,
    executor: Annotated[str, typer.Option(help="Where cells run: local.")] = "local",
    include: Include = None,
    data_root: DataRoot = None,
    offline: Offline = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Plan a suite, and run it unless only the plan was asked for."""
    refuse_foreign_launcher()
    if executor != "local":
        raise UsageError(f'executor "{executor}" is not built yet; --executor local is')
    if devices:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, _ranges(devices)))
    fields = {
        "model": model, "kind": kind, "data": data, "weights": weights, "metrics": metrics,
        "samples": samples, "split": split, "phase": phase, "batch": batch_size, "dtype": dtype,
        "attention": attention, "device": device, "memory_format": memory_format,
        "compile": compile_, "profile": profile, "seed": seed, "threads": threads,
        "devices": per_model,
    }  # fmt: skip
    chosen = _suite(suite, fields, settings or [])
    if show_suite:
        from visgen_bench.suite import to_toml

        print(to_toml(chosen), end="")
        return
    from visgen.names import hint
    from visgen_bench.plan import RERUN, Options

    if rerun is not None and rerun not in RERUN:
        raise UsageError(
            f"--rerun {rerun} is unknown{hint(rerun, RERUN)} (allowed: {', '.join(RERUN)})"
        )
    options = Options(
        out=(out or RUNS) / chosen.name,
        include=tuple(include or ()),
        data_root=data_root,
        offline=offline,
        rerun=rerun,  # type: ignore[arg-type]
        only=tuple(only or ()),
        skip=tuple(skip or ()),
        limit=limit,
        max_cells=max_cells,
        timeout_s=timeout_per_cell,
        retries=retries,
        fail_fast=fail_fast,
        fresh=fresh,
        in_process=in_process,
    )
    if context.info_name == "plan":
        _print_plan(chosen, options, as_json)
    else:
        raise typer.Exit(_run_and_print(chosen, options, as_json))


def _suite(name: str | None, fields: dict[str, str | bool | None], settings: list[str]) -> "Suite":
    """The suite that the command line names or stands for."""
    from visgen_bench import suite as suites
    from visgen_bench.matrix import from_options

    given = {key: value for key, value in fields.items() if value not in (None, False)}
    if name is None:
        if "model" not in given:
            raise UsageError(
                f"name a suite file, a shipped suite ({', '.join(suites.shipped())}), or --model"
            )
        return from_options(fields, settings)
    own = [f"performance.{key}=true" for key in ("profile", "compile") if given.pop(key, False)]
    own += [f"{key}={_as_toml(key, str(value))}" for key, value in given.items()]
    return suites.load(name, [*own, *settings])


def _as_toml(key: str, text: str) -> str:
    """`1,8` as `[1, 8]`: an option on top of a suite overrules it with the same axis."""
    from visgen_bench.matrix import LISTS

    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and key not in LISTS:
        return text
    return json.dumps([_number(part) for part in parts])


def _number(text: str) -> Any:
    from visgen_bench.suite import toml_value

    return toml_value(text)


def _ranges(text: str) -> list[int]:
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            raise UsageError(f"--devices {text}: write numbers and ranges, as in 0-3,5")
        found += range(int(first), int(last or first) + 1)
    return found


def _print_plan(suite: "Suite", options: "Options", as_json: bool) -> None:
    from visgen_bench import tables
    from visgen_bench.plan import plan

    # A dry run downloads nothing.
    made = plan(suite, dataclasses.replace(options, offline=True), estimate=True)
    _announce_plugins(made)
    for note in made.notes:
        say(note)
    if as_json:
        emit(tables.plan_json(made))
    else:
        print("\n".join(tables.plan_lines(made)))


def _run_and_print(suite: "Suite", options: "Options", as_json: bool) -> int:
    """Run, judge the gates, print leaderboard and report; returns the exit code."""
    from visgen_bench.executors.local import LocalExecutor
    from visgen_bench.plan import plan
    from visgen_bench.running import run

    with LocalExecutor() as executor:
        if not options.in_process:
            executor.warm_up(preload=not options.fresh)  # it imports torch while we plan
        made = plan(suite, options)
        _announce(made)
        summary = run(made, say, executor=executor)
    return _finish(summary, as_json)


def _announce_plugins(made: "Plan") -> None:
    for plugin, reason in made.presets.broken.items():
        say(f"plug-in {plugin} is broken and left out: {reason}")


def _announce(made: "Plan") -> None:
    _announce_plugins(made)
    say(f"{made.count('run')} cells to run, {made.count('done')} done already")


def _finish(summary: "Summary", as_json: bool, *, only_plan: bool = False) -> int:
    from visgen_bench import tables
    from visgen_bench.closing import close

    for line in tables.summary_lines(summary):
        say(line)
    closed = close(summary, only_plan=only_plan)
    for fault in closed.faults:
        say(fault)
    if as_json:
        emit(tables.summary_json(summary, closed.board.to_dict(), closed.verdicts, closed.report))
    else:
        print(closed.board.to_text(_width()), end="")
        print(f"\nreport: {closed.report}" if closed.report else "\nno report was written")
    for verdict in closed.verdicts:
        if verdict.passed is None:
            say(f"gate {verdict.gate.name} could not be judged: {verdict.reason}")
        elif not verdict.passed:
            say(f"gate {verdict.gate.name} FAILED: {verdict.text}")
    failed = any(verdict.passed is False for verdict in closed.verdicts)
    return summary.exit_code or (1 if closed.faults else 3 if failed else 0)


def _width() -> int:
    return shutil.get_terminal_size((100, 24)).columns


@app.command("eval")
def eval_folder(
    samples: Annotated[str, typer.Argument(help="A folder of pictures, or of videos.")],
    against: Annotated[str, typer.Option(help="digits:8, moving-digits, ... or a folder.")],
    clip: Annotated[str | None, typer.Option(help="Of each video: 16x32x32.")] = None,
    metrics: Annotated[str | None, typer.Option(help="Names, with commas between.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Cap the samples.")] = None,
    data_root: DataRoot = None,
    offline: Offline = False,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Score a folder of pictures or videos, with the floor of its reference beside it."""
    refuse_foreign_launcher()
    from visgen_bench.evaluate import evaluate
    from visgen_bench.plan import Options

    options = Options(out=(out or RUNS) / "eval", data_root=data_root, offline=offline, limit=limit)
    names = None if metrics is None else [part.strip() for part in metrics.split(",")]
    found = evaluate(samples, against, names, clip=clip, options=options, say=say)
    raise typer.Exit(_finish(found.summary, as_json, only_plan=True))


@app.command()
def fetch(
    suite: Annotated[str, typer.Argument(help="FILE.toml or a shipped suite.")],
    data_root: DataRoot = None,
    as_json: Json = False,
) -> None:
    """Download the data and weights that a suite needs, so that it then runs with --offline."""
    from visgen_bench import suite as suites
    from visgen_bench.fetching import fetch_all

    rows = fetch_all(suites.load(suite), data_root, say)
    if as_json:
        emit({"rows": rows})
    else:
        for row in rows:
            print(f"{row['status']:8} {row['what']} {row['text']}")
    raise typer.Exit(0 if all(row["status"] == "ready" for row in rows) else 1)


@app.command()
def convert(
    family: Annotated[str, typer.Argument(help="Whose checkpoint it is: videogpt.")],
    file: Annotated[Path, typer.Argument(help="A checkpoint of the released code.")],
    out: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
    vqvae: Annotated[
        Path | None, typer.Option(help="The VQ-VAE's file, if a prior's has none.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="name=value: a hyper-parameter that the file lacks.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Published checkpoints to our weight files; no code that is in them is run."""
    if family != "videogpt":
        raise UsageError(f'convert knows no "{family}"; it converts videogpt')
    options: dict[str, Any] = {}
    for text in option or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--option {text}: write name=value, as in --option heads=4")
        parts = [_number(part.strip()) for part in value.split(",")]
        options[name.strip()] = parts if len(parts) > 1 else parts[0]
    from visgen.checkpoints import CheckpointError
    from visgen_bench.convert import convert_videogpt

    with usage_errors(CheckpointError, OSError):
        found = convert_videogpt(file, out, vqvae=vqvae, options=options)
    for note in found.notes:
        say(note)
    if as_json:
        emit({"path": found.path, "sha256": found.sha256, "presets": found.presets,
              "config": dataclasses.asdict(found.config)})  # fmt: skip
    else:
        print(found.line())


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="DIR or DIR:column=value,...")],
    b: Annotated[str, typer.Argument(help="DIR or DIR:column=value,...")],
    min_effect: Annotated[float, typer.Option(help="Smallest difference that counts.")] = 0.02,
    as_json: Json = False,
) -> None:
    """Compare two result folders, or two selections of rows, metric by metric."""
    from visgen_results.compare import Selection
    from visgen_results.compare import compare as compared

    with usage_errors(ValueError):
        found = compared(Selection.parse(a), Selection.parse(b), min_effect=min_effect)
    if as_json:
        emit(found.to_dict())
    else:
        print(found.to_text(_width()), end="")


@app.command()
def report(
    folder: Results,
    to: Annotated[Path | None, typer.Option(help="The file; default FOLDER/report.html.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown instead.")] = False,
    as_json: Json = False,
) -> None:
    """Write the report of a result folder and print its leaderboard."""
    from visgen_results.kernel_tables import kernel_tables, to_markdown, to_text
    from visgen_results.leaderboard import leaderboard
    from visgen_results.reading import read_results
    from visgen_results.report import report as written

    with usage_errors(ValueError):
        results = read_results(folder)
    board, timed = leaderboard(results), kernel_tables(results)
    if markdown:
        print("\n".join([board.to_markdown(), *([to_markdown(timed)] if timed else [])]), end="")
        return
    with usage_errors(ValueError, OSError):
        path = written(folder, to or folder / "report.html", title=f"visgen: {folder.name}")
    if as_json:
        emit({**board.to_dict(), "report": str(path)})
    else:
        print("\n".join([board.to_text(_width()), *([to_text(timed)] if timed else [])]), end="")
        print(f"\nreport: {path}")


@app.command()
def rerun(
    row: Annotated[str, typer.Argument(help="A run id, or its start.")],
    folder: Annotated[Path | None, typer.Option(help="Result folder that has it.")] = None,
    data_root: DataRoot = None,
    offline: Offline = False,
    as_json: Json = False,
) -> None:
    """Run the cell of one recorded row again."""
    refuse_foreign_launcher()
    from visgen_bench.plan import Options
    from visgen_bench.rerunning import find_row, suite_of_row

    found, root = find_row(row, [folder] if folder else sorted(RUNS.glob("*")))
    suite = suite_of_row(found)
    limit = json.loads(found["config_json"]).get("limit")
    options = Options(out=root, rerun="all", data_root=data_root, offline=offline, limit=limit)
    raise typer.Exit(_run_and_print(suite, options, as_json))


@app.command()
def doctor(out: Out = None, offline: Offline = False, as_json: Json = False) -> None:
    """Check this machine: clock, disk, devices, weights."""
    from visgen_bench.doctor import examine

    checks = list(examine(out or RUNS, offline=offline))
    if as_json:
        emit({"rows": [vars(check) for check in checks]})
    else:
        for check in checks:
            print(f"{check.level:4}  {check.name}: {check.text}")
    raise typer.Exit(1 if any(check.level == "bad" for check in checks) else 0)


@results_app.command()
def query(folder: Results, sql: str, as_json: Json = False) -> None:
    """Ask a SELECT of runs, metrics, measurements, machines, latest."""
    from visgen_results.query import query as ask

    with usage_errors(ValueError):
        frame = ask(folder, sql)
    if as_json:
        emit({"rows": json.loads(frame.to_json(orient="records", date_format="iso") or "[]")})
    else:
        print(frame.to_string(index=False))


@results_app.command()
def merge(sources: list[Path], into: Annotated[Path, typer.Option(help="Target folder.")]) -> None:
    """Merge result folders of several machines into one."""
    from visgen_results import merge as merged

    with usage_errors(ValueError, OSError):
        found = merged(sources, into)
    print(f"{found.runs_added} runs added, {found.runs_known} known, {found.files_written} files")


@results_app.command()
def compact(folder: Results) -> None:
    """Put the small files of closed days together."""
    from visgen_results import compact as compacted

    with usage_errors(ValueError):
        found = compacted(folder)
    print(f"{found.files_before} files became {found.files_after}")
    _problems(found.problems)


@results_app.command()
def validate(folder: Results) -> None:
    """Look for files and rows that are not as they should be."""
    from visgen_results import validate as validated

    with usage_errors(ValueError):
        found = validated(folder)
    _problems(found)
    print("all is well")


def _problems(found: Sequence[Any]) -> None:
    for problem in found:
        print(problem)
    if found:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()

"""Scoring anyone's folder of images, with the floor beside the score.

    rows = evaluate("my_samples/", "digits:8").rows

The floor is what real images score as if they were generated, with equally many samples on both
sides: for a shipped set five seeded draws of training images, for a folder one half of it against
the other. Where the user has more samples than a floor can be taken for, a second row scores as
many of them as the floor has, because numbers of different sample counts are never compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgen_bench.cell import DEFAULT_METRICS
from visgen_bench.plan import Options, Plan, plan
from visgen_bench.running import Summary, run
from visgen_bench.suite import Entry, Suite, SuiteError, from_entries
from visgen_results.rows import to_rows
from visgen_results.store import Store

DIGIT_METRICS = ("digit_classes", "digit_confident", "copy_share")
FLOOR_DRAWS = 5


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The rows of the table `metrics` for one folder, and the run they came from."""

    rows: list[dict[str, Any]]
    summary: Summary

    @property
    def plan(self) -> Plan:
        return self.summary.plan


def evaluate(
    samples: str | Path,
    reference: str,
    metrics: Sequence[str] | None = None,
    *,
    options: Options | None = None,
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Score a folder of images against a data set or another folder.

    Args:
        samples: Folder of pictures of any size.
        reference: A data spec (`digits:8`, `cifar10`, ...) or a folder.
        metrics: Names; by default what suits the reference.
        options: Where results go (default `results/runs/eval`), limits, data root.
        say: Takes one line of progress at a time.

    Raises:
        SuiteError: if a folder, set or metric does not exist, or a folder has no usable picture.
    """
    options = options or Options(out=Path("results/runs/eval"))
    suite = suite_of(str(samples), reference, metrics, options)
    summary = run(plan(suite, options), say)
    keys = {cell.cell_key for cell in summary.plan.cells}
    store = Store(options.out)
    newest = {run["run_id"] for run in to_rows(store.latest()) if run["cell_key"] in keys}
    rows = [row for row in to_rows(store.read("metrics")) if row["run_id"] in newest]
    return Evaluation(rows=rows, summary=summary)


def suite_of(
    samples: str, reference: str, metrics: Sequence[str] | None, options: Options
) -> Suite:
    """The cells of an evaluation: the score, the floor, and the score at the floor's size."""
    data = reference if _is_spec(reference) else f"folder:{reference}"
    own = len(_opened(f"folder:{samples}", options))
    chosen = list(metrics or _default_metrics(data))
    score: Entry = {
        "kind": "quality",
        "images": f"folder:{samples}",
        "data": data,
        "metrics": chosen,
    }
    if options.limit is not None:
        own = min(own, options.limit)
    if data.startswith("folder:"):
        entries = _against_folder(score, own, len(_opened(data, options)) // 2)
    else:
        train = len(_opened(data, options).split("train"))
        entries = _against_set(score, own, train)
    return from_entries("eval", entries, "eval")


def _against_set(score: Entry, own: int, train: int) -> list[Entry]:
    n = min(own, train)
    floor: Entry = {key: value for key, value in score.items() if key != "images"}
    floor |= {"model": "real-images", "samples": n, "seed": list(range(FLOOR_DRAWS))}
    at_equal_n = [{**score, "samples": n}] if n < own else []
    return [score, *at_equal_n, floor]


def _against_folder(score: Entry, own: int, half: int) -> list[Entry]:
    whole = {**score, "split": "all"}
    n = min(own, half)
    if n < 2:
        return [whole]
    at_equal_n = {**score, "split": "half-b", "samples": n}
    floor = {**at_equal_n, "images": score["data"], "images_split": "half-a"}
    return [whole, at_equal_n, floor]


def _is_spec(reference: str) -> bool:
    """Whether a reference is a data spec; anything that is a folder on disk is that folder."""
    if Path(reference).expanduser().is_dir():
        return False
    return "/" not in reference.partition(":")[0]


def _default_metrics(data: str) -> tuple[str, ...]:
    return DEFAULT_METRICS + (DIGIT_METRICS if data.startswith("digits:") else ())


def _opened(spec: str, options: Options) -> Any:
    from visgen.data import DataError, DataMissing, UnknownData, open_data

    try:
        return open_data(spec, root=options.data_root, offline=options.offline)
    except (DataError, DataMissing, UnknownData) as error:
        raise SuiteError(f"eval: {error}") from error

"""The digits gate: what passes it, what fails it, and when it cannot be judged."""

import datetime
from collections.abc import Mapping
from pathlib import Path

import pytest

from visgen_bench.gates import Gate, judge, record
from visgen_results import schema
from visgen_results.leaderboard import leaderboard
from visgen_results.rows import to_rows
from visgen_results.store import Store, new_run_id

GATE = Gate(name="digits8", model="transgan", data="digits:8")
# learning.md, 8 px: the TransGAN that drew readable digits, PCA-20, real images.
GOOD = {
    "fd_lite0": 376.0, "precision": 0.78, "recall": 0.86,
    "digit_classes": 10.0, "digit_confident": 0.64, "copy_share": 0.01,
}  # fmt: skip
PCA = {"fd_lite0": 706.0, "precision": 0.62, "recall": 0.56}
REAL = {"fd_lite0": 158.0, "precision": 0.96, "recall": 0.95}


def write(
    store: Store,
    model: str,
    values: Mapping[str, float | None],
    *,
    seed: int = 0,
    n: int = 1000,
    cell: str = "",
    **columns: object,
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    weights = "zoo:transgan" if model == "transgan" else "fit"
    run = {
        "run_id": new_run_id(),
        "cell_key": f"{model}{seed}{cell}",
        "kind": "quality",
        "status": "ok",
        "model": model,
        "weights": weights,
        "dataset": "digits:8",
        "seed": seed,
        "started_at": now,
        "ended_at": now,
        **columns,
    }
    rows = [
        {
            **schema.copies(run),
            "metric": metric,
            "stat": "value",
            "value": value,
            "n": n,
            "reason": None if value is not None else "no package",
        }
        for metric, value in values.items()
    ]
    store.append("metrics", rows, kind="quality", run_id=run["run_id"])
    store.append("runs", [run], kind="quality", run_id=run["run_id"])


def results(folder: Path, **changed: float | None) -> Store:
    store = Store(folder)
    for seed in range(3):
        write(store, "transgan", {**GOOD, **changed}, seed=seed)
    write(store, "pca20-gaussian", PCA)
    write(store, "real-images", REAL)
    return store


def test_readable_digits_pass(tmp_path: Path) -> None:
    (verdict,) = judge(results(tmp_path), [GATE])
    assert verdict.passed is True
    assert len(verdict.conditions) == 7


@pytest.mark.parametrize(
    ("metric", "value", "says"),
    [
        ("fd_lite0", 430.0, "pca20-gaussian's"),  # 0.609 of PCA's
        ("fd_lite0", 475.0, "real-images's"),  # 3.006 floors
        ("precision", 0.62, "precision"),
        ("recall", 0.5, "recall"),
        ("digit_classes", 9.0, "digit_classes"),
        ("digit_confident", 0.59, "digit_confident"),
        ("copy_share", 0.051, "copy_share"),
        ("fd_lite0", float("nan"), "pca20-gaussian's"),
    ],
)
def test_each_condition_alone_can_fail_it(
    tmp_path: Path, metric: str, value: float, says: str
) -> None:
    (verdict,) = judge(results(tmp_path, **{metric: value}), [GATE])
    assert verdict.passed is False
    assert any(says in c.name and not c.holds for c in verdict.conditions)
    assert "NOT" in verdict.text


def test_the_mean_over_seeds_counts_and_the_spread_is_told(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for seed, distance in enumerate((300.0, 400.0, 500.0)):
        write(store, "transgan", {**GOOD, "fd_lite0": distance}, seed=seed)
    write(store, "pca20-gaussian", PCA)
    write(store, "real-images", REAL)
    (verdict,) = judge(store, [GATE])
    ratio = verdict.conditions[0]
    assert ratio.value == pytest.approx(400 / 706)
    assert ratio.spread == (pytest.approx(300 / 706), pytest.approx(500 / 706))


def test_a_gate_without_its_numbers_is_not_judged(tmp_path: Path) -> None:
    (nothing,) = judge(Store(tmp_path / "none"), [GATE])
    assert (nothing.passed, "no fd_lite0 of transgan" in nothing.text) == (None, True)
    (null,) = judge(results(tmp_path / "a", copy_share=None), [GATE])
    assert (null.passed, "no package" in null.text) == (None, True)


def test_numbers_of_different_sample_counts_are_not_compared(tmp_path: Path) -> None:
    store = Store(tmp_path)
    write(store, "transgan", GOOD, n=200)
    write(store, "pca20-gaussian", PCA)
    write(store, "real-images", REAL)
    (verdict,) = judge(store, [GATE])
    assert (verdict.passed, "n (1000, not 200)" in verdict.text) == (None, True)


def test_a_limited_run_in_the_same_folder_changes_no_verdict(tmp_path: Path) -> None:
    store = results(tmp_path)
    (before,) = judge(store, [GATE])
    for model in ("transgan", "pca20-gaussian", "real-images"):
        limited = {"cell": "-limited", "config_json": '{"limit":100}', "n": 100}
        write(store, model, dict.fromkeys(GOOD, 9.0), **limited)
    assert judge(store, [GATE]) == [before]


def test_of_one_seed_the_newest_number_counts_once(tmp_path: Path) -> None:
    store = results(tmp_path)
    write(store, "transgan", {**GOOD, "fd_lite0": 382.0}, cell="-other-batch")
    (verdict,) = judge(store, [GATE])
    ratio = verdict.conditions[0]
    assert ratio.value == pytest.approx((382 + 376 + 376) / 3 / 706)
    assert len(verdict.run_ids) == 5


@pytest.mark.parametrize(
    "other",
    [{"split": "train"}, {"dtype": "bf16"}, {"extractor_sha256": "ff"}, {"n": 200}],
)
def test_the_models_newest_number_says_which_numbers_are_meant(
    tmp_path: Path, other: dict[str, object]
) -> None:
    store = Store(tmp_path)
    for model, values in (("transgan", GOOD), ("pca20-gaussian", PCA), ("real-images", REAL)):
        worse = {metric: 3 * value for metric, value in values.items()}
        write(store, model, worse, seed=1, cell="-other", **other)  # type: ignore[arg-type]
    old = judge(results(tmp_path), [GATE])
    assert old == judge(store, [GATE])
    assert old[0].passed is True
    assert [c.spread[0] == c.spread[1] for c in old[0].conditions] == [True] * 7


def test_untrained_rows_of_the_model_do_not_count(tmp_path: Path) -> None:
    store = results(tmp_path)
    (before,) = judge(store, [GATE])
    (none,) = judge(store, [GATE.model_copy(update={"weights": "untrained"})])
    assert (before.passed, none.passed) == (True, None)


def test_a_folder_is_judged_without_weights(tmp_path: Path) -> None:
    store = results(tmp_path)
    write(store, "folder:mine", GOOD, weights=None)
    (verdict,) = judge(store, [GATE.model_copy(update={"model": "folder:mine"})])
    assert (verdict.passed, verdict.reason) == (True, "")


def test_a_verdict_is_a_row_and_the_newest_one_counts(tmp_path: Path) -> None:
    store = results(tmp_path)
    record(store, judge(store, [GATE]))
    record(store, judge(store, [GATE]))  # nothing changed: nothing is written
    stricter = GATE.model_copy(update={"most_of_floor": 2.0})
    record(store, judge(store, [stricter]))
    values = [r["value"] for r in to_rows(store.read("metrics")) if r["metric"] == "gate_digits8"]
    assert sorted(values) == [0.0, 1.0]
    (shown,) = leaderboard(tmp_path).gates
    assert (shown.name, shown.passed) == ("digits8", False)
    assert "real-images" in shown.text
    assert store.validate() == []

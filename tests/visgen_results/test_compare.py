import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from visgen_results.compare import Comparison, Pair, Selection, compare


def speed(folder: Any, scale: float, *, seed: int = 0, blocks: int = 8, **columns: Any) -> None:
    """A run with raw latencies in blocks, as an interleaved comparison writes them."""
    times = scale * np.exp(np.random.default_rng(seed).normal(0, 0.03, size=(blocks, 10)))
    rows = [{"metric": "latency", "stat": "p50", "value": float(np.median(times)), "n": times.size}]
    run_id = folder.run(rows, kind="performance", **columns)
    raw = [
        {
            "metric": "latency",
            "phase": "total",
            "rank": -1,
            "block": b,
            "iter": i,
            "value": float(t),
        }
        for b, block in enumerate(times)
        for i, t in enumerate(block)
    ]
    folder.store.append("measurements", raw, kind="performance", run_id=run_id)


def only(comparison: Comparison) -> Pair:
    (pair,) = comparison.pairs
    return pair


def test_selections_are_written_as_folder_and_columns() -> None:
    assert Selection.parse("results/runs") == Selection(Path("results/runs"))
    parsed = Selection.parse("runs:dataset=digits:8,attention=sdpa")
    assert parsed == Selection(Path("runs"), {"dataset": "digits:8", "attention": "sdpa"})
    with pytest.raises(ValueError, match="no column 'atention'; nearest: 'attention'"):
        Selection.parse("runs:atention=sdpa")


def test_interleaved_blocks_show_a_slowdown(folder: Any) -> None:
    speed(folder, 1.0, seed=1, attention="chunked")
    speed(folder, 1.2, seed=2, attention="sdpa")
    a, b = Selection(folder.root, {"attention": "chunked"}), Selection(
        folder.root, {"attention": "sdpa"}
    )  # fmt: skip
    pair = only(compare(a, b))
    assert pair.verdict == "A better"
    assert pair.of == "ratio"
    assert pair.interval is not None
    assert pair.interval.low < 1.2 < pair.interval.high
    assert only(compare(b, a)).verdict == "B better"


def test_equal_speeds_show_no_difference(folder: Any) -> None:
    speed(folder, 1.0, seed=1, attention="chunked")
    speed(folder, 1.0, seed=2, attention="sdpa")
    pair = only(compare(f"{folder.root}:attention=chunked", f"{folder.root}:attention=sdpa"))
    assert pair.verdict == "no difference shown"


def test_single_numbers_without_errors_are_undecided(folder: Any) -> None:
    folder.run({"throughput": 10.0}, kind="performance", attention="chunked")
    folder.run({"throughput": 20.0}, kind="performance", attention="sdpa")
    pair = only(compare(f"{folder.root}:attention=chunked", f"{folder.root}:attention=sdpa"))
    assert (pair.a, pair.b, pair.ratio, pair.verdict) == (10.0, 20.0, 2.0, "undecided")
    assert "common seeds 1 of 3" in pair.reason


def test_runs_that_were_not_interleaved_say_so(folder: Any) -> None:
    for attention, value in (("chunked", 10.0), ("sdpa", 20.0)):
        row = {"metric": "throughput", "value": value, "ci_low": value - 1, "ci_high": value + 1}
        folder.run([row], kind="performance", attention=attention)
    pair = only(compare(f"{folder.root}:attention=chunked", f"{folder.root}:attention=sdpa"))
    assert pair.verdict == "B better"
    assert "not interleaved" in pair.reason


def quality(folder: Any, model: str, values: list[float], **common: Any) -> None:
    for seed, value in enumerate(values):
        folder.run({"fd_lite0": value}, model=model, seed=seed, common={"n": 1000} | common)


def test_a_side_that_shared_the_device_is_named(folder: Any) -> None:
    for name, exclusive in (("a", True), ("b", False)):
        row = {"metric": "latency", "stat": "p50", "value": 1.0, "exclusive": exclusive}
        folder.run([row], kind="performance", attention=name)
    pair = only(compare(f"{folder.root}:attention=a", f"{folder.root}:attention=b"))
    assert pair.reason.endswith("; B shared the device with others")


def test_paired_seeds_decide_quality(folder: Any) -> None:
    quality(folder, "a", [1.0, 1.1, 1.2])
    quality(folder, "b", [0.8, 0.91, 1.0])
    pair = only(compare(f"{folder.root}:model=a", f"{folder.root}:model=b"))
    assert pair.verdict == "B better"
    assert pair.of == "difference"
    assert pair.interval is not None
    assert pair.interval.method == "t over 3 paired seeds"
    assert pair.difference == pytest.approx(-0.1966667)


def test_holm_keeps_many_metrics_from_deciding_by_chance(folder: Any) -> None:
    names = ("fd_lite0", "kid_lite0", "precision", "recall", "density", "coverage")
    for model, shift in (("a", (0.0, 0.0, 0.0)), ("b", (0.10, 0.15, 0.20))):
        for seed in range(3):
            row = {name: 1.0 + 0.1 * seed + shift[seed] for name in names}
            folder.run(row, model=model, seed=seed)
    one = [f"{folder.root}:model={m},metric=fd_lite0" for m in "ab"]
    assert only(compare(*one)).verdict == "A better"  # p = 0.036 alone
    pairs = compare(f"{folder.root}:model=a", f"{folder.root}:model=b").pairs
    assert {pair.verdict for pair in pairs} == {"no difference shown"}
    assert all("Holm over 6 tests" in pair.reason for pair in pairs)


def test_rows_of_other_groups_are_flagged_and_get_no_verdict(folder: Any) -> None:
    quality(folder, "a", [1.0, 1.1, 1.2], protocol="v1")
    quality(folder, "b", [0.1, 0.2, 0.3], protocol="v2", n=500)
    pair = only(compare(f"{folder.root}:model=a", f"{folder.root}:model=b"))
    assert pair.verdict == "not comparable"
    assert pair.differs == {"n": (1000, 500), "protocol": ("v1", "v2")}
    assert pair.interval is None
    assert "n: 1000 against 500" in pair.reason


def test_two_folders_are_compared_row_by_row(folder: Any, folder_at: Any, tmp_path: Path) -> None:
    other = folder_at(tmp_path / "other")
    for place, machine in ((folder, "m1"), (other, "m2")):
        place.run({"fd_lite0": 1.0}, machine_id=machine)
    folder.run({"fd_lite0": 1.0}, model="only-here")
    other.run({"fd_lite0": 1.0}, model="only-there")
    found = compare(folder.root, other.root)
    assert only(found).differs == {"machine_id": ("m1", "m2")}
    assert found.only_a == ("FD-lite0, only-here",)
    assert found.only_b == ("FD-lite0, only-there",)


def test_equal_counts_are_found_among_several(folder: Any, folder_at: Any, tmp_path: Path) -> None:
    other = folder_at(tmp_path / "other")
    for n, value in ((250, 4.0), (500, 1.0), (1000, 2.0)):
        folder.run({"fd_lite0": value}, common={"n": n})
    other.run({"fd_lite0": 3.0}, common={"n": 500})
    found = compare(folder.root, other.root)
    pair = only(found)
    assert (pair.a, pair.b, pair.facts["n"], pair.differs) == (1.0, 3.0, 500, {})
    # What one side alone has is named with what sets it apart.
    names = {f"FD-lite0, transgan-tiny (n {n})" for n in (250, 1000)}
    assert (set(found.only_a), found.only_b) == (names, ())
    other.run({"fd_lite0": 5.0}, common={"n": 1000})
    both = compare(folder.root, other.root).pairs
    assert {(p.label, p.a, p.b) for p in both} == {
        ("transgan-tiny (n 500)", 1.0, 3.0),
        ("transgan-tiny (n 1000)", 2.0, 5.0),
    }


def test_without_a_common_count_the_newest_are_flagged(
    folder: Any, folder_at: Any, tmp_path: Path
) -> None:
    other = folder_at(tmp_path / "other")
    folder.run({"fd_lite0": 1.0}, common={"n": 500, "metric_opts": {"reference": "a"}})
    folder.run({"fd_lite0": 2.0}, common={"n": 800, "metric_opts": {"reference": "b"}})
    other.run({"fd_lite0": 3.0}, common={"n": 1000, "metric_opts": {"reference": "c"}})
    found = compare(folder.root, other.root)
    pair = only(found)
    assert (pair.a, pair.verdict) == (2.0, "not comparable")
    assert pair.reason == "different n: 800 against 1000"  # the options only follow from it
    assert found.only_a == ("FD-lite0, transgan-tiny (n 500)",)


def test_folders_of_one_name_are_compared_whatever_is_in_them(
    folder: Any, folder_at: Any, tmp_path: Path
) -> None:
    other = folder_at(tmp_path / "other")
    folder.run({"fd_lite0": 1.0}, model="folder:a", variant="11111111")
    other.run({"fd_lite0": 2.0}, model="folder:a", variant="22222222")
    pair = only(compare(folder.root, other.root))
    assert (pair.a, pair.b) == (1.0, 2.0)
    # Where one side has two, which of them is meant is for the reader to say.
    other.run({"fd_lite0": 3.0}, model="folder:a", variant="33333333")
    assert compare(folder.root, other.root).pairs == ()
    pair = only(compare(folder.root, f"{other.root}:variant=22222222"))
    assert (pair.a, pair.b) == (1.0, 2.0)


def test_a_folder_equals_itself(folder: Any) -> None:
    folder.run({"fd_lite0": 1.0})
    assert only(compare(folder.root, folder.root)).verdict == "equal"


def test_an_empty_side_is_an_error(folder: Any, tmp_path: Path) -> None:
    folder.run({"fd_lite0": 1.0})
    with pytest.raises(ValueError, match=r"B: .* has no row with model=nobody"):
        compare(folder.root, f"{folder.root}:model=nobody")
    with pytest.raises(ValueError, match="holds no results"):
        compare(folder.root, tmp_path / "nothing")


def test_text_markdown_and_json_say_the_same(folder: Any) -> None:
    quality(folder, "a<b>|", [1.0, 1.1, 1.2])
    quality(folder, "b", [float("nan")] * 3)
    found = compare(f"{folder.root}:model=a<b>|", f"{folder.root}:model=b")
    text = found.to_text(100)
    assert "a side was computed as NaN" in text
    assert max(map(len, text.splitlines())) <= 100
    assert "a&lt;b&gt;\\|" in found.to_markdown()
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["rows"][0]["b"] is None
    assert document["rows"][0]["verdict"] == "undecided"

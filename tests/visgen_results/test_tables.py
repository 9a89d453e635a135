import math
from typing import Any

import pytest

from visgen_results import wording
from visgen_results.display import escape_markdown, figures, plain, rank, scale
from visgen_results.leaderboard import PROXY_WARNING, leaderboard
from visgen_results.pivot import pivots
from visgen_results.report import report
from visgen_results.statistics import Interval

LITE0 = {
    "n": 1000, "n_ref": 360, "protocol": "fd_lite0-v1", "extractor": "efficientnet-lite0-64",
    "comparable": False,
}  # fmt: skip
UGLY = "a|b<script>alert(1)</script>*\x1b[31m\nnew line `code`"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.31264, "0.3126"), (83312495.0, "8.331e+07"), (5.0, "5"), (0.0, "0"), (-1.5, "-1.500"),
        (1234.5, "1,234"), (3.2e-7, "3.200e-07"), (math.nan, "NaN"), (-math.inf, "-inf"),
        (251234.0, "251,234"),
    ],
)  # fmt: skip
def test_numbers_have_four_figures(value: float, shown: str) -> None:
    assert figures(value) == shown


@pytest.mark.parametrize(
    ("values", "unit", "shown"),
    [
        ([0.004, 0.5], "s", ("ms", "4", "500")),
        ([2.0, 30.0], "s", ("s", "2", "30")),
        ([2.0**20, 2.0**31], "B", ("MiB", "1", "2,048")),
        ([0.0], "B", ("B", "0", "0")),
        ([0.25], "1", ("", "0.2500", "0.2500")),
        ([5.0], "img/s", ("img/s", "5", "5")),
    ],
)
def test_a_column_has_one_unit(values: list[float], unit: str, shown: tuple[str, ...]) -> None:
    found = scale(values, unit)
    assert (found.unit, found.show(values[0]), found.show(values[-1])) == shown


def test_intervals_are_symmetric_or_spelled_out() -> None:
    one = scale([1.0], "1")
    assert one.show_interval(Interval(1.0, 0.9, 1.1, "")) == "±0.10"
    assert one.show_interval(Interval(1.0, 0.9, 1.5, "")) == "[0.9000, 1.500]"
    assert one.show_interval(Interval(1.0, 2.0, 3.0, "")) == "[2, 3]"


def test_ranks_are_intervals_or_a_dash() -> None:
    assert [rank((1, 1)), rank((1, 3)), rank(None)] == ["1", "1-3", "-"]


def test_control_characters_are_made_visible() -> None:
    assert plain("red \x1b[31m\n\u202etxt") == "red \\x1b[31m \\x202etxt"
    assert plain("0123456789", 5) == "0123…"
    assert escape_markdown("a|b <i>") == "a\\|b &lt;i&gt;"


def demo(folder: Any) -> None:
    folder.machine()
    for seed in range(3):
        for model, fd in ((UGLY, 0.5), ("dcgan", 0.3)):
            row = {"fd_lite0": fd + 0.01 * seed, "precision": 0.7, "recall": 0.4, "kid_lite0": 0.1}
            folder.run(row, model=model, seed=seed, common=LITE0)
    folder.run({"fd_lite0": 0.05}, model="real-images", family="reference", common=LITE0)
    for batch in (1, 16):
        rows = [
            {"metric": "throughput", "value": 10.0 * batch, "unit": "img/s"},
            {"metric": "latency", "stat": "p50", "value": 0.1, "n": 40},
            {"metric": "latency", "stat": "max", "value": 0.2, "n": 40},
            {"metric": "latency", "stat": "p99", "value": None, "reason": "p99 needs 299 samples"},
            {"metric": "mem_host_peak", "value": 4.0e8},
            {"metric": "params", "value": 251234.0, "phase": "generator"},
        ]
        common = {"phase": "sample"}
        rows = [common | row for row in rows]
        folder.run(rows, kind="performance", model="dcgan", batch_size=batch, threads=2)
    folder.run([{"metric": "gate_copies", "value": 0.0, "metric_opts": {"reason": "6 % > 5 %"}}])
    folder.run(model="stl", status="oom", error_msg="did not fit " * 30)


@pytest.mark.parametrize("width", [72, 100, 140])
def test_text_keeps_to_the_width_and_says_everything(folder: Any, width: int) -> None:
    demo(folder)
    text = leaderboard(folder.root).to_text(width)
    assert max(map(len, text.splitlines())) <= width
    flat = " ".join(text.split())
    for said in (
        "digits:8, test split, 1,000 samples", PROXY_WARNING, "fd_lite0-v1", "against 360 real",
        "lower is better", "t over 3 seeds", "real-images (reference)", "sample, batch 16, fp32",
        "FAILED: copies", "6 % > 5 %", "oom: did not fit", "p99 needs 299 samples",
        "Example CPU 3.0 GHz", "2 threads",
    ):  # fmt: skip
        assert said in flat, said
    assert "\x1b" not in text
    assert " 0 " not in flat.partition("No number")[2]


def test_a_time_taken_beside_others_is_marked(folder: Any) -> None:
    for model, exclusive in (("alone", True), ("beside", False), ("unknown", None)):
        rows = [
            {"metric": "throughput", "value": 10.0, "unit": "img/s", "exclusive": exclusive},
            {"metric": "mem_host_peak", "value": 2.0**20},
        ]
        folder.run(rows, kind="performance", model=model, common={"phase": "sample"})
    board = leaderboard(folder.root)
    lines = board.to_text().splitlines()
    (marked,) = [line.split() for line in lines if "†" in line and not line.startswith("†")]
    assert "beside" in marked
    assert "10†" in marked
    assert [line for line in lines if line.startswith("† others used the device")]
    assert board.to_markdown().count("10†") == 1
    shared = {(r["model"], r["metric"]): r["shared"] for r in board.to_dict()["rows"]}
    assert [key for key, value in shared.items() if value] == [("beside", "throughput")]
    page = report(folder.root, folder.root / "r.html").read_text("utf-8")
    assert page.count("†</abbr>") == 2  # in the headline table and in that of every statistic
    quiet = leaderboard(folder.root).boards[0].rows
    assert [row.shared for row in quiet if row.identity["model"] != "beside"] == [False, False]


def test_what_is_missing_for_one_reason_is_one_entry(folder: Any) -> None:
    device = "a CPU has no device allocator; see mem_host_peak"
    for n, model in ((30, "a"), (172, "b"), (41, "c")):
        rows: list[dict[str, Any]] = [
            {"metric": metric, "value": None, "phase": phase, "reason": device}
            for metric in ("mem_alloc_peak", "mem_reserved_peak")
            for phase in ("d_step", "fwd", "bwd")
        ]
        for stat, least in (("p95", 59), ("p99", 299)):
            if n < least:
                reason = f"{n} samples; {stat} needs {least}"
                rows.append({"metric": "latency", "stat": stat, "value": None, "reason": reason})
        folder.run(rows, kind="performance", model=model, common={"phase": "d_step"})
    found = wording.collapsed(leaderboard(folder.root).missing)
    everyone = ["a chunked", "b chunked", "c chunked"]
    assert found == [
        ("peak allocated, peak reserved", "null", device,
         [f"{m} d_step/fwd/bwd" for m in everyone]),
        ("latency p95", "null", "30 to 41 samples; p95 needs 59",
         ["a chunked d_step", "c chunked d_step"]),
        ("latency p99", "null", "30 to 172 samples; p99 needs 299",
         [f"{m} d_step" for m in everyone]),
    ]  # fmt: skip
    text = leaderboard(folder.root).to_text().partition("No number")[2]
    assert text.count("no device allocator") == text.count("p99 needs") == 1


def test_reasons_are_merged_by_whole_numbers_alone(folder: Any) -> None:
    for model, reason in (("a", "torch 2.14 sees cuda:0"), ("b", "torch 2.15 sees cuda:1")):
        folder.run([{"metric": "fid", "value": None, "reason": reason}], model=model)
    reasons = [reason for _, _, reason, _ in wording.collapsed(leaderboard(folder.root).missing)]
    assert reasons == ["torch 2.14 sees cuda:0", "torch 2.15 sees cuda:1"]


def test_markdown_tables_are_whole_and_escaped(folder: Any) -> None:
    demo(folder)
    text = leaderboard(folder.root).to_markdown()
    assert "<script>" not in text
    assert "\x1b" not in text
    tables = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    counts = [line.count("|") for line in tables]
    assert set(counts) <= {8, 6, 5}  # boards, gates, reasons
    assert "0.3000, 0.3100, 0.3200" in text
    assert f"> {PROXY_WARNING}" in text


def test_a_pivot_sets_metrics_side_by_side_without_mixing_groups(folder: Any) -> None:
    demo(folder)
    folder.run({"fd_lite0": 9.0}, model="dcgan", seed=7, common=LITE0 | {"n": 50})
    quality = [p for p in pivots(leaderboard(folder.root).boards) if p.kind == "quality"]
    assert [(p.facts["n"], len(p.columns), len(p.rows)) for p in quality] == [
        (1000, 4, 3),
        (50, 1, 1),
    ]
    real = quality[0].rows[-1]
    assert real.label == "real-images"
    assert [cell is None for cell in real.cells] == [False, True, True, True]


def test_columns_of_one_metric_are_told_apart(folder: Any) -> None:
    for protocol in ("v1", "v2"):
        folder.run({"fd_lite0": 1.0}, common=LITE0 | {"protocol": protocol}, seed=0)
    (table,) = pivots(leaderboard(folder.root).boards)
    assert [column.heading for column in table.columns] == ["FD-lite0 v1*", "FD-lite0 v2*"]


def test_nothing_to_rank_is_said(folder: Any) -> None:
    folder.run(status="error", error_msg="boom")
    text = leaderboard(folder.root).to_text()
    assert "No numbers to rank." in text
    assert "error: boom" in text

"""The page of static kernel reports, from rows alone."""

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from visgen_results.reading import read_results
from visgen_results.report.kernels import _entries, kernels_report
from visgen_results.store import Store, new_run_id

TILE = {"block_m": 64, "block_n": 64, "masked_n": 32, "warps": 4, "stages": 2}


def add(store: Store, kernel: str, figures: dict[tuple[str, str], Any], **columns: Any) -> None:
    """One run with its figures; a figure is a value, or a value with options."""
    run_id = new_run_id()
    run = {
        "kind": "kernel", "cell_key": f"{kernel} {columns}", "status": "ok",
        "device_type": "static", "device_name": "sm_90",
        "model": f"attention_{kernel}", "variant": "forward causal",
        "dataset": "P1", "config_json": json.dumps({"layer": {"what": "a <script>layer</script>"}}),
        **columns,
    }  # fmt: skip
    metrics = []
    for (metric, phase), figure in figures.items():
        value, options = figure if isinstance(figure, tuple) else (figure, None)
        reason = "it carries no shape" if value is None else None
        row = {"metric": metric, "phase": phase, "value": value, "metric_opts": options}
        metrics.append({**run, "stat": "value", "rank": -1, "reason": reason, **row})
    for row in metrics:
        row.pop("config_json")
    store.append("metrics", metrics, kind="kernel", run_id=run_id)
    store.append("runs", [run], kind="kernel", run_id=run_id)


def figures(**changed: float) -> dict[tuple[str, str], Any]:
    """A clean kernel: 1 GFLOP, 10 MB; H100's rates make its floor 3 us."""
    found: dict[tuple[str, str], Any] = {
        ("registers", "total"): (128, {"tile": TILE}),
        ("stack", "total"): changed.get("stack", 0),
        ("shared_memory", "total"): 40960,
        ("shared_memory_free", "total"): changed.get("free", 190_000),
        ("resident_blocks", "total"): (4, {"limiter": "registers"}),
        ("occupancy", "total"): (0.25, {"limiter": "registers"}),
        ("matrix_instructions", "code"): (8, {"HGMMA.64x64x16.F32.BF16": 8}),
        ("instructions_per_score", "interior"): 9.0,
        ("instructions_per_score", "interior/fma"): 6.0,
        ("instructions_per_score", "interior/mufu"): 3.0,
        ("exp_per_score", "interior"): (changed.get("exp", 1.06), {"needed": 1.0}),
        ("repeated_work", "interior"): changed.get("work", 1.0),
        ("wide_share", "code"): (changed.get("wide", 0.99), {"bytes": 16, "accesses": {"16": 9}}),
        ("flops", "total"): 1e9,
        ("bytes_least", "total"): 10e6,
        ("exp_least", "total"): 1e6,
        ("floor_time", "h100"): (3e-6, {"ceiling": "bytes", "device": "H100 <b>"}),
        ("floor_time", "h100/bytes"): 3e-6,
        ("floor_time", "h100/mma"): 1e-6,
        ("floor_time", "h100/exp"): 0.5e-6,
        ("predicted_time", "h100"): 6e-6,
    }
    return found


class Rows(HTMLParser):
    """Attributes of the table's rows of kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr" and ("data-kernel" in dict(attrs)):
            self.found.append(dict(attrs))


def page(root: Path) -> tuple[str, list[dict[str, str | None]]]:
    text = kernels_report(root, root / "kernels.html").read_text("utf-8")
    rows = Rows()
    rows.feed(text)
    return text, rows.found


def test_a_row_a_kernel_that_filters_can_find(tmp_path: Path) -> None:
    store = Store(tmp_path)
    add(store, "forward", figures())
    add(store, "delta", figures(), variant="backward causal")
    text, rows = page(tmp_path)
    assert [row["data-kernel"] for row in rows] == ["forward", "delta"]
    assert [row["data-direction"] for row in rows] == ["forward", "backward"]
    assert all(row["data-target"] == "sm_90" and row["data-faults"] == "" for row in rows)
    assert "64x64/32 w4 s2" in text
    assert "8 HGMMA" in text


def test_rules_that_are_broken_are_named(tmp_path: Path) -> None:
    for name, changed, fault in (
        ("a", {"stack": 8}, "spills"),
        ("b", {"free": -1}, "does not fit"),
        ("c", {"work": 2.0}, "repeats matrix work"),
        ("d", {"exp": 2.0}, "repeats exponentials"),
        ("e", {"wide": 0.5}, "narrow loads"),
    ):
        add(Store(tmp_path), name, figures(**changed))
        found = {entry.kernel: entry.faults for entry in _entries(read_results(tmp_path))}
        assert found[name] == [fault]


def test_what_cannot_be_read_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    add(Store(tmp_path), "forward", {**figures(), ("repeated_work", "interior"): None})
    text, rows = page(tmp_path)
    assert rows[0]["data-faults"] == ""
    assert 'title="it carries no shape"' in text


def test_the_roofline_is_drawn_from_the_rows_own_rates(tmp_path: Path) -> None:
    add(Store(tmp_path), "forward", figures())
    text, _ = page(tmp_path)
    # 10 MB in 3 us, 1 GFLOP in 1 us, and where the two meet.
    assert "memory 3.33 TB/s, matrix units 1,000 TFLOP/s, ridge at 300 FLOP/byte" in text
    assert "model 6.0" in text.replace("\\u003c", "<")


def test_the_page_needs_nothing_from_outside_and_escapes_what_it_shows(tmp_path: Path) -> None:
    add(Store(tmp_path), "forward", figures())
    text, _ = page(tmp_path)
    assert "<script>layer" not in text
    assert "H100 <b>" not in text
    assert "default-src 'none'" in text
    assert 'src="http' not in text


def test_a_kernel_without_code_is_listed_with_its_reason(tmp_path: Path) -> None:
    store, run_id = Store(tmp_path), new_run_id()
    run = {
        "kind": "kernel", "cell_key": "x", "status": "error", "device_type": "static",
        "device_name": "gfx942", "model": "attention_forward", "error_msg": "too <wide>",
    }  # fmt: skip
    store.append("runs", [run], kind="kernel", run_id=run_id)
    text, _ = page(tmp_path)
    assert "too &lt;wide&gt;" in text


def test_a_folder_without_static_reports_is_an_error(tmp_path: Path) -> None:
    store, run_id = Store(tmp_path), new_run_id()
    run = {"kind": "kernel", "cell_key": "x", "status": "ok", "device_type": "cpu"}
    store.append("runs", [run], kind="kernel", run_id=run_id)
    with pytest.raises(ValueError, match="holds no static reports of kernels"):
        kernels_report(tmp_path, tmp_path / "kernels.html")
    assert not (tmp_path / "kernels.html").exists()

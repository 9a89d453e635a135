"""The examples of bench/README.md are what the planner takes."""

import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from visgen_bench.metrics import plugins
from visgen_bench.metrics.protocol import protocol
from visgen_bench.plan import Plan

README = Path(__file__).parents[2] / "bench" / "README.md"


def example(bench) -> Plan:
    first = re.findall(r"```toml\n(.*?)```", README.read_text("utf-8"), re.DOTALL)[0]
    return bench.plan(first)


def test_the_first_suite_plans_as_printed(bench) -> None:
    plan = example(bench)
    skipped = [cell.reason for cell in plan.cells if cell.action == "skip"]
    assert plan.count("run") + len(skipped) == len(plan.cells) > 20
    # The one combination that cannot run is there to show what becomes of it.
    assert len(skipped) == 2
    assert all("second derivative" in reason for reason in skipped)


def test_the_metric_of_ones_own_is_a_plug_in_as_printed() -> None:
    (block,) = re.findall(r"```python\n(  # my_package/shift.*?)```", README.read_text(), re.DOTALL)
    space: dict[str, Any] = {}
    exec(textwrap.dedent(f"  {block.strip()}"), space)
    plugin = space["METRIC"]
    plugins._check("shift_lite0", plugin)
    rows = np.array([[1.0, 0.0], [3.0, 4.0]], np.float32)
    assert plugin.formula(rows, np.zeros((3, 2), np.float32), {}) == 2.0**2 + 2.0**2
    assert plugin.protocol.sha256 == protocol("fd_lite0").sha256


def test_its_gate_finds_every_number_it_needs(bench) -> None:
    plan = example(bench)
    (gate,) = plan.suite.gates
    for model, weights in ((gate.model, gate.weights), (gate.baseline, "fit")):
        cells = [
            one.resolved
            for one in plan.cells
            if (one.resolved.cell.model, one.resolved.columns["weights"]) == (model, weights)
        ]
        assert cells, (model, weights)
        for one in cells:
            assert set(gate.metrics) <= set(getattr(one.cell, "metrics", ())), one.name
            assert one.columns["dataset"] == gate.data

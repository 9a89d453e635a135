"""The examples of bench/README.md are what the planner takes."""

import re
from pathlib import Path

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

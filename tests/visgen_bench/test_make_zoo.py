"""The zoo's weights are what the suite `learn` makes: same recipe, same seed, same data."""

from pathlib import Path

from visgen import zoo
from visgen_bench.cell import TrainCell
from visgen_bench.plan import Options, plan
from visgen_bench.suite import load


def test_every_zoo_entry_names_its_cell_of_the_suite_learn(tmp_path: Path) -> None:
    cells = plan(load("learn"), Options(out=tmp_path)).cells
    made = {one.resolved.cell.model: one for one in cells}
    entries = zoo.entries()
    assert entries.keys() == made.keys()
    for name, entry in entries.items():
        cell = made[name].resolved.cell
        assert isinstance(cell, TrainCell)
        assert entry.recipe == f"suite learn, cell_key {made[name].cell_key}"
        facts = (entry.preset, entry.seed, entry.data, entry.steps)
        assert facts == (cell.model, cell.seed, cell.data, cell.recipe.steps)

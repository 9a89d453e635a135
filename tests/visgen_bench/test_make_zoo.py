"""The zoo's weights are what the suite `learn` makes: same recipe, same seed, same data."""

from pathlib import Path

from visgen import zoo
from visgen_bench.cell import TrainCell
from visgen_bench.plan import Options, plan
from visgen_bench.suite import load


def test_every_zoo_entry_names_its_cell_of_a_suite_that_trains(tmp_path: Path) -> None:
    made = {}
    for suite in ("learn", "learn_videos"):  # of a model's stages the last one counts
        for one in plan(load(suite), Options(out=tmp_path)).cells:
            made[one.resolved.cell.model] = (suite, one)
    entries = zoo.entries()
    pictures = {name for name, (suite, _) in made.items() if suite == "learn"}
    assert pictures <= entries.keys() <= made.keys()
    for name, entry in entries.items():
        suite, one = made[name]
        cell = one.resolved.cell
        assert isinstance(cell, TrainCell)
        assert entry.recipe == f"suite {suite}, cell_key {one.cell_key}"
        facts = (entry.preset, entry.seed, entry.data, entry.steps)
        assert facts == (cell.model, cell.seed, cell.data, cell.recipe.steps)

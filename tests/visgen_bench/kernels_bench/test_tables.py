"""The committed tables of one CPU: whole, and the page of them is made from their rows."""

from pathlib import Path

from visgen_bench.kernels_bench.request import QUICK_SHAPES
from visgen_results.kernel_tables import kernel_tables, to_markdown
from visgen_results.reading import read_results
from visgen_results.upkeep import validate

FOLDER = Path(__file__).parents[3] / "results/tables/kernels_cpu"


def test_the_page_is_what_the_rows_say() -> None:
    assert (FOLDER / "tables.md").read_text("utf-8") == to_markdown(
        kernel_tables(read_results(FOLDER))
    )


def test_rows_are_whole_and_say_that_no_gpu_was_there() -> None:
    assert not validate(FOLDER)
    results = read_results(FOLDER)
    assert {row["device_type"] for row in results.numbers} == {"cpu"}
    assert {run["dataset"] for run in results.runs if run["kind"] == "kernel"} == set(QUICK_SHAPES)
    gpu = [row for row in results.numbers if row["timing_method"] in ("events", "graph")]
    assert gpu
    assert all(row["value"] is None and row["reason"] for row in gpu)
    models = {run["model"] for run in results.runs if run["kind"] == "performance"}
    assert models == {"transgan-digits8-tiny", "transgan-cifar10"}

"""The committed static tables: whole, every layer on every target, and what the README claims."""

from functools import cache
from pathlib import Path

import pytest

from visgen_kernels.shapes import SHAPES
from visgen_kernels.static.targets import TARGETS
from visgen_results.reading import Results, read_results
from visgen_results.upkeep import validate

FOLDER = Path(__file__).parents[3] / "results/tables/kernels_static"


@cache
def results() -> Results:
    return read_results(FOLDER)


def values(metric: str, phase: str) -> dict[tuple[str, str, str], float]:
    """(target, layer, kernel) -> value."""
    return {
        (row["device_name"], row["dataset"], row["model"].removeprefix("attention_")): row["value"]
        for row in results().numbers
        if row["metric"] == metric and row["phase"] == phase and row["value"] is not None
    }


def test_rows_are_whole_and_cover_every_layer_on_every_target() -> None:
    assert not validate(FOLDER)
    assert not results().failed
    assert {row["device_type"] for row in results().numbers} == {"static"}
    found = {(target, layer) for target, layer, _ in values("registers", "total")}
    assert found == {(target, layer) for target in TARGETS for layer in SHAPES}


def test_nothing_is_added_by_atomics_and_every_block_fits() -> None:
    assert set(values("atomics", "code").values()) == {0}
    assert min(values("shared_memory_free", "total").values()) >= 0
    assert min(values("resident_blocks", "total").values()) >= 1


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_first_order_kernels_do_not_spill(target: str) -> None:
    spilled = {
        (layer, kernel): size
        for (name, layer, kernel), size in values("stack", "total").items()
        if name == target and size and not kernel.startswith("double")
    }
    # Blocks of a map keep more places in registers than any other mask.
    assert spilled == ({("I2", "backward_keys"): 8} if target == "sm_90" else {})


def test_hopper_multiplies_with_wgmma_and_repeats_nothing() -> None:
    repeated = values("repeated_work", "interior")
    wanted = [key for key in repeated if key[0] == "sm_90" and "decode" not in key[2]]
    assert len(wanted) > 100
    assert all(repeated[key] <= 1.01 for key in wanted)

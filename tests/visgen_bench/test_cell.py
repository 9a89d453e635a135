"""Cells: complete, frozen, and keyed by content."""

import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from visgen_bench.cell import (
    Contents,
    PerformanceCell,
    QualityCell,
    TrainCell,
    canonical_json,
    cell_key,
    content_key,
    name_of,
    parse,
    spec_key,
    specification,
    threads_of,
)

QUALITY = QualityCell(model="m", data="digits:8", weights="zoo:m", seed=1)
TRAIN = parse(
    '{"kind": "train", "model": "m", "data": "digits:8",'
    ' "recipe": {"objective": "hinge", "steps": 3, "batch": 4, "betas": [0, 0.9]}}'
)


def test_a_cell_survives_its_own_json() -> None:
    for cell in (QUALITY, TRAIN, PerformanceCell(model="m", phase="d_step", compile=True)):
        assert parse(cell.model_dump_json()) == cell


def test_a_cell_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        QUALITY.seed = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    "fields",
    [
        {"smaples": 3},
        {"samples": "3"},
        {"samples": 3.5},
        {"samples": 0},
        {"seed": True},
        {"dtype": "fp64"},
        {"device": "gpu"},
        {"weights": "zooo"},
        {"images": "folder:x"},
    ],
)
def test_what_is_not_exactly_a_field_is_refused(fields: dict) -> None:
    given = {"kind": "quality", "model": "m", "data": "digits:8", **fields}
    with pytest.raises(ValidationError):
        parse(json.dumps(given))


def test_a_train_cell_has_its_recipes_batch() -> None:
    assert name_of(TRAIN) == "train/m/digits:8/cpu-fp32-b4-n3-s0"
    text = TRAIN.model_copy(update={"batch": 8}).model_dump_json()
    with pytest.raises(ValidationError, match=r"recipe\.batch=4"):
        parse(text)


def test_names_are_kind_model_data_and_how_it_runs() -> None:
    assert name_of(QUALITY) == "quality/m/digits:8/cpu-fp32-b100-zoo-s1"
    cell = PerformanceCell(
        model="m", phase="g_step", batch=8, attention="sdpa", dtype="bf16", compile=True, devices=2
    )
    assert name_of(cell) == "performance/m/-/cpu-bf16-sdpa-b8-x2-g_step-compiled"


def test_names_hold_no_path() -> None:
    cell = QualityCell(images="folder:/home/someone/mine", data="folder:/data/real")
    assert name_of(cell) == "quality/folder:mine/folder:real/cpu-fp32-b100"
    trained = QUALITY.model_copy(update={"weights": "file:/home/someone/g.safetensors"})
    assert "home" not in name_of(trained)


def test_canonical_json_tells_values_from_layout() -> None:
    assert canonical_json({"b": (1, 2), "a": 1.0}) == canonical_json({"a": 1.0, "b": [1, 2]})
    assert len({canonical_json(value) for value in (1, 1.0, True)}) == 3
    with pytest.raises(ValueError, match="JSON"):
        canonical_json(float("nan"))


def test_keys_are_32_hex_digits_and_the_same_in_another_process() -> None:
    contents = Contents(weights="zoo:m", data_fingerprint="f" * 64)
    code = (
        "from visgen_bench.cell import *; import sys;"
        "print(cell_key(parse(sys.argv[1]), Contents(weights='zoo:m', data_fingerprint='f'*64)))"
    )
    command = [sys.executable, "-c", code, QUALITY.model_dump_json()]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert found == cell_key(QUALITY, contents)
    assert len(found) == 32
    assert int(found, 16) >= 0


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 2},
        {"samples": 999},
        {"batch": 50},
        {"metrics": ("fid",)},
        {"dtype": "bf16"},
        {"split": "train"},
        {"attention": "sdpa"},
    ],
)
def test_whatever_decides_the_number_changes_the_key(change: dict) -> None:
    contents = Contents(weights="zoo:m")
    assert spec_key(QUALITY.model_copy(update=change), contents) != spec_key(QUALITY, contents)


def test_labels_and_the_order_of_metrics_do_not_change_the_key() -> None:
    one = QUALITY.model_copy(update={"metrics": ("a", "b"), "timeout_s": 3.0, "threads": 1})
    two = QUALITY.model_copy(update={"metrics": ("b", "a"), "threads": 2})
    assert spec_key(one, Contents()) == spec_key(two, Contents())


def test_contents_enter_the_key_and_paths_do_not() -> None:
    here = QualityCell(images="folder:/a/mine", data="folder:/a/real")
    there = QualityCell(images="folder:/b/mine", data="folder:/b/real")
    same = Contents(images_fingerprint="1", data_fingerprint="2")
    assert spec_key(here, same) == spec_key(there, same)
    for other in (
        Contents(images_fingerprint="3", data_fingerprint="2"),
        Contents(images_fingerprint="1", data_fingerprint="3"),
        Contents(images_fingerprint="1", data_fingerprint="2", protocols={"fid": "fid-v2"}),
        Contents(images_fingerprint="1", data_fingerprint="2", include_sha256="4"),
        Contents(images_fingerprint="1", data_fingerprint="2", config={"width": 3}),
    ):
        assert spec_key(here, other) != spec_key(here, same)
    assert "/a/" not in canonical_json(specification(here, same))


def test_only_a_performance_key_knows_the_machine() -> None:
    cell = PerformanceCell(model="m")
    fast, slow = Contents(machine={"device_name": "a"}), Contents(machine={"device_name": "b"})
    assert spec_key(cell, fast) == spec_key(cell, slow)
    assert cell_key(cell, fast) != cell_key(cell, slow)
    assert cell_key(QUALITY, Contents()) == spec_key(QUALITY, Contents())


def test_a_train_key_does_not_depend_on_threads_but_on_every_field_of_the_recipe() -> None:
    assert isinstance(TRAIN, TrainCell)
    other = parse(TRAIN.model_dump_json().replace('"ema":null', '"ema":0.9'))
    assert spec_key(TRAIN, Contents()) != spec_key(other, Contents())
    threaded = TRAIN.model_copy(update={"threads": 7})
    assert spec_key(TRAIN, Contents()) == spec_key(threaded, Contents())


def test_a_key_is_blake2b_of_canonical_json() -> None:
    import hashlib

    expected = hashlib.blake2b(b'{"a":1}', digest_size=16).hexdigest()
    assert content_key({"a": 1}) == expected


def test_threads_are_the_cells_own_then_the_environments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_of(QUALITY) == 3
    assert threads_of(QUALITY.model_copy(update={"threads": 2})) == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert threads_of(QUALITY) >= 1

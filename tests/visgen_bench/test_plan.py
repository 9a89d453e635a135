"""Plans: names resolved, order kept, done cells left, impossible ones skipped with a reason."""

import dataclasses
from pathlib import Path

import pytest
import torch

from visgen_bench import resolution
from visgen_bench.plan import Plan
from visgen_bench.presets import PresetError
from visgen_bench.suite import SuiteError

TRAIN = """
[[cell]]
kind = "train"
model = "dcgan-digits8-tiny"
data = "digits:8"
recipe = { objective = "nonsaturating", steps = 2, batch = 4 }
"""
TRAINED = """
[[cell]]
kind = "quality"
model = "dcgan-digits8-tiny"
data = "digits:8"
weights = "train:dcgan-digits8-tiny"
samples = 8
metrics = ["copy_share"]
"""


def quality(**fields: object) -> str:
    given = {"model": "pca20-gaussian", "data": "digits:8", "metrics": ["copy_share"], **fields}
    lines = [f"{key} = {_toml(value)}" for key, value in given.items() if value is not None]
    return "\n".join(["[[cell]]", 'kind = "quality"', *lines, ""])


def performance(**fields: object) -> str:
    lines = [f"{key} = {_toml(value)}" for key, value in fields.items()]
    return "\n".join(["[[cell]]", 'kind = "performance"', *lines, ""])


def _toml(value: object) -> str:
    return str(value).replace("'", '"') if isinstance(value, list) else repr(value).lower()


def reasons(plan: Plan) -> list[str]:
    return [cell.reason for cell in plan.cells]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model": "pca2-gaussian"}, ("model", 'nearest: "pca20-gaussian"')),
        ({"data": "digits:9"}, ("data", 'nearest: "digits:8"')),
        ({"metrics": ["fd_lite"]}, ("metrics", "fd_lite0")),
        ({"split": "tset"}, ("split", "test")),
        ({"weights": "zoo"}, ("weights", "fitted")),
        ({"model": "dcgan-digits8-tiny", "weights": "fit"}, ("weights", "not fitted")),
        ({"model": "dcgan-digits8-tiny", "weights": "zoo:nobody"}, ("zoo", "nobody")),
        ({"model": "dcgan-digits8-tiny", "weights": "file:/none"}, ("/none", "no such file")),
        ({"model": "dcgan-digits8-tiny", "weights": "train:x"}, ("no train cell",)),
        ({"model": "dcgan-digits16-tiny", "weights": "untrained"}, ("16x16", "8x8")),
        (
            {"model": "transgan-digits8-tiny", "weights": "untrained", "attention": "flsh"},
            ("attention", "flsh"),
        ),
        ({"model": None, "images": "folder:/none"}, ("images", "/none")),
    ],
)
def test_a_name_that_does_not_exist_stops_the_plan(bench, fields: dict, says: tuple) -> None:
    with pytest.raises(SuiteError) as caught:
        bench.plan(quality(**fields))
    for part in ("test.toml, cell 1", *says):
        assert part in str(caught.value)
    assert not bench.out.exists(), "nothing is written"


def test_quality_cells_come_after_the_train_cell_they_need(bench) -> None:
    plan = bench.plan(quality() + TRAINED + TRAIN)
    kinds = [cell.resolved.cell.kind for cell in plan.cells]
    assert kinds == ["quality", "train", "quality"]
    train, needing = plan.cells[1], plan.cells[2]
    assert needing.resolved.needs == train.cell_key
    assert needing.resolved.cell.weights == f"train:{train.cell_key}"


def test_a_train_cell_is_found_by_name_model_or_key(bench) -> None:
    (train, _) = bench.plan(TRAIN + TRAINED).cells
    for name in (train.name, train.cell_key):
        text = TRAIN + TRAINED.replace("train:dcgan-digits8-tiny", f"train:{name}")
        assert bench.plan(text).cells[1].resolved.needs == train.cell_key
    twice = TRAIN + TRAIN.replace("steps = 2", "steps = 3") + TRAINED
    with pytest.raises(SuiteError, match="could be train/"):
        bench.plan(twice)


def test_equal_cells_are_one_and_names_are_unique(bench) -> None:
    plan = bench.plan(quality(samples=[10, 10, 20]))
    assert len(plan.cells) == 2
    assert len({cell.name for cell in plan.cells}) == 2


def test_only_and_skip_are_globs_and_keep_what_is_needed(bench) -> None:
    text = quality() + TRAIN + TRAINED
    only = bench.plan(text, only=("quality/dcgan*",))
    assert [cell.resolved.cell.kind for cell in only.cells] == ["train", "quality"]
    assert len(bench.plan(text, skip=("*dcgan*",)).cells) == 1
    with pytest.raises(SuiteError, match="leave no cell"):
        bench.plan(text, only=("nothing*",))


def test_max_cells_counts_what_runs(bench) -> None:
    assert len(bench.plan(quality(seed=[0, 1, 2]), max_cells=2).cells) == 2


def test_the_planner_names_the_attention_that_runs(bench) -> None:
    text = quality(model=["transgan-digits8-tiny", "dcgan-digits8-tiny"], weights="untrained")
    transgan, dcgan = bench.plan(text).cells
    assert transgan.resolved.cell.attention == "chunked"
    assert dcgan.resolved.cell.attention is None
    assert "chunked" in transgan.name


def test_broken_files_of_a_folder_are_named_in_the_plan(bench, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "mine").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "mine" / "good.png")
    (tmp_path / "mine" / "bad.png").write_bytes(b"no")
    text = quality(images=f"folder:{tmp_path / 'mine'}", model=None)
    (cell,) = bench.plan(text).cells
    (note,) = cell.resolved.notes
    assert "1 files cannot be used: bad.png (" in note


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("model", "dcgan-digts8-tiny", "dcgan-digits8-tiny"),
        ("baseline", "pca2-gaussian", "pca20-gaussian"),
        ("floor", "real-image", "real-images"),
        ("data", "digits:9", "digits:8"),
    ],
)
def test_a_gate_names_what_exists(bench, field: str, value: str, says: str) -> None:
    fields = {"name": "g", "model": "dcgan-digits8-tiny", "data": "digits:8", field: value}
    gate = "".join(f'{key} = "{text}"\n' for key, text in fields.items())
    with pytest.raises(SuiteError, match=f'gate g: .*nearest: "{says}"'):
        bench.plan(f"{quality()}[[gate]]\n{gate}")


def test_a_gates_weights_are_named_as_rows_name_them(bench, tmp_path: Path) -> None:
    gate = '[[gate]]\nname = "g"\nmodel = "dcgan-digits8-tiny"\ndata = "digits:8"\nweights = '
    plan = bench.plan(f'{TRAIN}{TRAINED}{gate}"train:dcgan-digits8-tiny"\n')
    (train, quality_cell) = plan.cells
    (found,) = plan.suite.gates
    assert found.weights == quality_cell.resolved.columns["weights"] == f"train:{train.cell_key}"
    for weights, says in (
        ("train:nobody", 'no train cell "nobody"'),
        ("zooo", 'nearest: "zoo"'),
        (f"file:{tmp_path}/none.safetensors", "no such file"),
    ):
        with pytest.raises(SuiteError, match=f"gate g: weights.*{says}"):
            bench.plan(f'{TRAIN}{gate}"{weights}"\n')


def test_a_split_that_is_not_there_is_named(bench) -> None:
    text = (
        '[[cell]]\nkind = "train"\nmodel = "dcgan-digits8-tiny"\ndata = "digits:8"\n'
        'split = "trian"\nrecipe = { objective = "hinge", steps = 1, batch = 2 }\n'
    )
    with pytest.raises(SuiteError, match=r'split: .*"trian".*test, train'):
        bench.plan(text)


def test_a_wrong_name_is_told_before_any_data_is_opened(bench, tmp_path: Path) -> None:
    absent = f"folder:{tmp_path / 'absent'}"
    first = quality(data=absent)
    with pytest.raises(SuiteError, match="absent"):
        bench.plan(first)
    with pytest.raises(SuiteError, match='nearest: "fd_lite0"'):
        bench.plan(first + quality(metrics=["fd_lite"]))


def test_the_planner_names_the_attention_of_the_device(bench) -> None:
    (cell,) = bench.plan(performance(model="transgan-digits8-tiny", device="cuda")).cells
    assert cell.resolved.cell.attention == "triton"  # on a CPU it is "chunked", see above


def test_an_axis_a_model_does_not_have_gives_one_cell(bench) -> None:
    text = performance(model="dcgan-digits8-tiny", attention=["chunked", "sdpa"])
    assert len(bench.plan(text).cells) == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (performance(model="transgan-digits8-tiny", attention="triton"), "triton"),
        (
            performance(model="transgan-digits8-tiny", attention="sdpa", phase="d_step"),
            "second derivative",
        ),
        (performance(model="real-images"), "no network"),
        (performance(model="dcgan-digits8-tiny", phase="d_step", dtype="fp16"), "fp16"),
        (performance(model="dcgan-digits8-tiny", phase="d_step", devices=2), "2 devices"),
        (quality(compile=True), "compile"),
        (TRAIN.replace("data =", "devices = 2\ndata ="), "several devices"),
    ],
)
def test_an_impossible_combination_is_skipped_with_its_reason(bench, text: str, says: str) -> None:
    (cell,) = bench.plan(text).cells
    assert cell.action == "skip"
    assert says in cell.reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_a_reason(bench) -> None:
    (cell,) = bench.plan(quality(device="cuda")).cells
    assert (cell.action, "no cuda device" in cell.reason) == ("skip", True)


def test_weights_that_the_zoo_lacks_are_a_reason(bench) -> None:
    (cell,) = bench.plan(quality(model="dcgan-digits16-tiny", data="digits:16")).cells
    assert cell.action == "skip"
    assert "zoo has no weights for dcgan-digits16-tiny" in cell.reason


def test_missing_data_stops_a_plan_that_has_no_other(bench, tmp_path: Path) -> None:
    text = quality(data="cifar10")
    with pytest.raises(SuiteError, match="cifar"):
        bench.plan(text, data_root=tmp_path / "none", offline=True)
    mixed = bench.plan(text + quality(), data_root=tmp_path / "none", offline=True)
    assert [cell.action for cell in mixed.cells] == ["skip", "run"]


def test_a_second_plan_leaves_what_is_done(bench) -> None:
    text = quality(samples=8)
    bench.run(text, in_process=True)
    assert [cell.action for cell in bench.plan(text).cells] == ["done"]
    assert [cell.action for cell in bench.plan(text, rerun="all").cells] == ["run"]
    assert [cell.action for cell in bench.plan(text, rerun="failed").cells] == ["done"]
    assert [cell.action for cell in bench.plan(text, rerun="stale").cells] == ["done"]
    assert [cell.action for cell in bench.plan(quality(samples=9)).cells] == ["run"]


def test_a_capped_run_does_not_stand_for_a_whole_one(bench) -> None:
    text = quality(samples=8)
    bench.run(text, in_process=True, limit=4)
    assert [cell.action for cell in bench.plan(text, limit=4).cells] == ["done"]
    assert [cell.action for cell in bench.plan(text).cells] == ["run"]
    assert bench.plan(text, limit=8).cells[0].cell_key == bench.plan(text).cells[0].cell_key


def test_how_often_progress_is_saved_is_no_part_of_a_cell(bench) -> None:
    assert len(bench.plan(quality(chunk=[5, 7])).cells) == 1


def test_a_failed_cell_runs_again_by_itself(bench) -> None:
    bench.run(bench.faulty_cell("raise"), in_process=True)
    (cell,) = bench.plan(bench.faulty_cell("raise")).cells
    assert (cell.action, cell.reason, cell.attempts) == ("run", "was error", 1)


def test_a_cell_that_ran_out_of_memory_is_left_until_that_is_asked_for(bench) -> None:
    text = bench.faulty_cell("memory")
    bench.run(text, in_process=True)
    (cell,) = bench.plan(text).cells
    assert (cell.action, "--rerun failed" in cell.reason) == ("left", True)
    again = bench.run(text, in_process=True)
    assert (again.exit_code, [one.status for one in again.failed]) == (1, ["oom"])
    assert again.finished[0].recorded is None
    assert [bench.plan(text, rerun=r).cells[0].action for r in ("failed", "all")] == ["run", "run"]


def test_weights_of_a_train_cell_that_was_never_ok_are_no_weights(bench) -> None:
    skipped = bench.run(TRAIN.replace("data =", 'dtype = "fp16"\ndata ='))
    (train,) = skipped.having("skipped")
    with pytest.raises(SuiteError, match="no train cell"):
        bench.plan(TRAINED.replace("train:dcgan-digits8-tiny", f"train:{train.planned.cell_key}"))


def test_what_no_other_column_says_is_the_variant(bench) -> None:
    step = {"model": "dcgan-digits8-tiny", "phase": "d_step"}
    recipe = "recipe = {{ objective = {}, steps = 1, batch = 4 }}\n"
    text = performance(**step) + performance(**step) + recipe.format('["hinge", "nonsaturating"]')
    variants = [cell.resolved.columns["variant"] for cell in bench.plan(text).cells]
    assert variants[0] is None
    assert [str(v).partition("-")[0] for v in variants[1:]] == ["hinge", "nonsaturating"]


def test_changed_code_makes_a_row_stale(bench, monkeypatch: pytest.MonkeyPatch) -> None:
    text = quality(samples=8)
    bench.run(text, in_process=True)
    monkeypatch.setattr(resolution, "code_files", lambda *_: (Path(__file__),))
    (cell,) = bench.plan(text).cells
    assert (cell.action, cell.stale) == ("done", "the code has changed since")
    (again,) = bench.plan(text, rerun="stale").cells
    assert again.action == "run"


def test_the_code_hash_covers_model_kernels_and_metric(bench) -> None:
    (cell,) = bench.plan(quality(model="dcgan-digits8-tiny", weights="untrained")).cells
    names = {file.name for file in cell.resolved.code_files}
    assert {"dcgan.py", "frechet.py", "lite0.py"} < names
    assert any("visgen_kernels" in str(file) for file in cell.resolved.code_files)


def test_an_included_file_adds_presets_and_its_content_enters_the_key(bench) -> None:
    text = quality(model="faulty-none", weights="untrained")
    (before,) = bench.plan(text).cells
    bench.faulty.write_text(bench.faulty.read_text() + "\n# another thought\n")
    (after,) = bench.plan(text).cells
    assert before.cell_key != after.cell_key
    with pytest.raises(SuiteError, match="faulty-none"):
        bench.plan(text, include=())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("PRESETS = 3", "no dict PRESETS"),
        ("1 / 0", "ZeroDivisionError"),
        ("PRESETS = {'real-images': 1}", "exists already"),
    ],
)
def test_an_included_file_that_cannot_be_used_is_named(bench, content: str, says: str) -> None:
    file = bench.folder / "mine.py"
    file.write_text(content)
    with pytest.raises(PresetError, match=r"mine\.py") as caught:
        bench.plan(quality(), include=(file,))
    assert says in str(caught.value)


def test_an_estimate_of_memory_grows_with_the_batch(bench) -> None:
    from visgen_bench.plan import plan

    sampling = performance(model="dcgan-cifar10", batch=[1, 2, 65])
    steps = performance(model="dcgan-cifar10", phase=["d_step", "g_step"], batch=32)
    scored = quality(model="dcgan-digits8-tiny", batch=1, weights="untrained")
    trained = TRAIN + TRAIN.replace("batch = 4", "batch = 64")
    text = sampling + steps + scored + scored.replace("batch = 1", "batch = 500") + trained
    made = bench.plan(text)
    found = [c.estimate for c in plan(made.suite, made.options, estimate=True).cells]
    one, two, many, d_step, g_step, few, lots, short, long = [e.memory or 0 for e in found]
    assert many - one == pytest.approx(64 * (two - one), rel=0.02) != 0
    assert many < d_step  # the same batch or less, but every layer's input waits for its gradient
    assert many < g_step
    assert few < lots
    assert short < long
    assert {e.basis for e in found} == {
        "model: 10 GFLOP/s a core, weights and live tensors of one batch"
    }


def test_estimates_say_what_they_rest_on(bench) -> None:
    from visgen_bench.plan import plan

    text = quality(samples=8) + performance(model="dcgan-digits8-tiny") + TRAIN
    made = bench.plan(text)
    cells = plan(made.suite, made.options, estimate=True).cells
    assert all(cell.estimate.seconds and cell.estimate.basis.startswith("model") for cell in cells)
    bench.run(quality(samples=8), in_process=True)
    again = dataclasses.replace(made.options, rerun="all")
    first = plan(made.suite, again, estimate=True).cells[0]
    assert first.estimate.basis.startswith("history: run ")

"""Suites: TOML in, typed cells out; every mistake is one line that names its place."""

import tomllib
from pathlib import Path

import pytest

from visgen_bench.cell import QualityCell, TrainCell, name_of
from visgen_bench.matrix import from_options
from visgen_bench.suite import Suite, SuiteError, from_text, load, shipped, to_toml, toml_value

HEAD = 'name = "s"\n[[cell]]\nkind = "quality"\ndata = "digits:8"\n'


def cells(text: str, *settings: str) -> list:
    return [placed.cell for placed in from_text(text, "s.toml", settings).cells]


def test_lists_multiply_in_the_order_they_are_written() -> None:
    found = cells(HEAD + 'model = ["a", "b"]\nweights = ["zoo", "untrained"]\nseed = [0, 1]\n')
    assert [(c.model, c.weights, c.seed) for c in found] == [
        (m, w, s) for m in "ab" for w in ("zoo", "untrained") for s in (0, 1)
    ]


def test_a_list_field_is_one_value_and_a_list_of_lists_an_axis() -> None:
    (one,) = cells(HEAD + 'model = "a"\nmetrics = ["fid", "kid"]\n')
    assert one.metrics == ("fid", "kid")
    two = cells(HEAD + 'model = "a"\nmetrics = [["fid"], ["kid", "isc"]]\n')
    assert [c.metrics for c in two] == [("fid",), ("kid", "isc")]


def test_recipes_have_axes_too() -> None:
    text = """
    [[cell]]
    kind = "train"
    model = "a"
    data = "digits:8"
    [cell.recipe]
    objective = ["hinge", "nonsaturating"]
    steps = 5
    batch = 4
    betas = [0.5, 0.9]
    diffaugment = ["color"]
    """
    found = cells(text)
    assert all(isinstance(cell, TrainCell) for cell in found)
    assert [cell.recipe.objective for cell in found] == ["hinge", "nonsaturating"]
    assert found[0].recipe.betas == (0.5, 0.9)


def test_a_key_of_the_recipe_outside_of_it_is_shown_its_place() -> None:
    text = '[[cell]]\nkind = "train"\nmodel = "a"\ndata = "digits:8"\nsteps = 5\n'
    with pytest.raises(SuiteError, match=r'key "steps" belongs to the recipe; .*\[cell.recipe\]'):
        cells(text)


def test_defaults_go_to_the_kinds_that_have_the_field() -> None:
    text = """
    [defaults]
    data = "digits:8"
    samples = 7
    [[cell]]
    kind = "quality"
    model = "a"
    [[cell]]
    kind = "performance"
    model = "a"
    """
    quality, performance = cells(text)
    assert (quality.samples, performance.data) == (7, "digits:8")


GATED = """
[[cell]]
kind = "quality"
data = "digits:8"
model = ["dcgan", "real-images", "pca20-gaussian"]
metrics = ["fd_lite0", "precision", "recall", "digit_classes", "digit_confident", "copy_share"]
[[gate]]
name = "g"
data = "digits:8"
"""


def test_false_leaves_a_condition_of_a_gate_out() -> None:
    suite = from_text(GATED + 'model = "dcgan"\nleast_classes = false\n', "s.toml")
    assert suite.gates[0].least_classes is None
    assert suite.gates[0].metrics == (
        "fd_lite0", "precision", "recall", "digit_confident", "copy_share",
    )  # fmt: skip
    assert from_text(to_toml(suite), "again.toml").gates == suite.gates


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[[cell]]\nkind = "qualty"\n', ("s.toml, cell 1", '"qualty"', 'nearest: "quality"')),
        ("[[cell]]\nmodel = 'a'\n", ("cell 1", "kind is missing", "train, quality")),
        (HEAD + "smaples = 3\n", ('unknown key "smaples"', 'nearest: "samples"', "allowed")),
        (HEAD + 'model = "a"\nsamples = "x"\n', ('samples = "x"', "integer")),
        (HEAD + 'model = "a"\nsamples = 2.5\n', ("samples = 2.5", "integer")),
        (HEAD + 'model = "a"\ndtype = "bf61"\n', ('dtype = "bf61"', 'nearest: "bf16"')),
        (HEAD + 'model = "a"\nweights = "zooo"\n', ('"zooo"', 'nearest: "zoo"')),
        (HEAD, ("needs either", "neither")),
        (HEAD + "model = []\n", ("model = []", "empty axis")),
        ('[[cell]]\nkind = "quality"\nmodel = "a"\n', ('key "data" is missing',)),
        ("name = 'x'\n", ("no [[cell]]",)),
        ("cell = 3\n", ("cell = 3", "[[cell]]")),
        ("nmae = 'x'\n", ('unknown key "nmae"', 'nearest: "name"')),
        ("name = 'a/b'\n[[cell]]\n", ("name", "without '/'")),
        ("name = \n", ("not TOML", "line 1")),
        (HEAD + 'model = "a"\n[[gate]]\nname = "g"\n', ("gate 1", 'key "model" is missing')),
        (HEAD + 'model = "a"\ninclude = "b.py"\n', ('unknown key "include"',)),
        (GATED + 'model = "dcgan"\ndistance = "fd_lite"', ("fd_lite", "nearest", "fd_lite0")),
        (HEAD + 'model = "a"\n[defaults]\ndat = 1\n', ('unknown key "dat"', 'nearest: "data"')),
    ],
)
def test_a_mistake_is_one_line_with_its_place(text: str, parts: tuple[str, ...]) -> None:
    with pytest.raises(SuiteError) as caught:
        from_text(text, "s.toml")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("s.toml", *parts):
        assert part in message


@pytest.mark.parametrize(
    ("recipe", "parts"),
    [
        ("{ objective = 'hing', steps = 1, batch = 2 }", ("recipe.objective", 'nearest: "hinge"')),
        ("{ objective = 'hinge', step = 1, batch = 2 }", ('"step"', 'nearest: "steps"')),
        ("{ objective = 'hinge', steps = 0, batch = 2 }", ("recipe", "steps=0")),
        ("{ objective = 'hinge', steps = 1, batch = 2, diffaugment = ['colour'] }", ("color",)),
    ],
)
def test_recipes_are_checked_as_strictly(recipe: str, parts: tuple[str, ...]) -> None:
    text = f'[[cell]]\nkind = "train"\nmodel = "a"\ndata = "d"\nrecipe = {recipe}\n'
    with pytest.raises(SuiteError) as caught:
        from_text(text, "s.toml")
    for part in parts:
        assert part in str(caught.value)


def test_settings_overrule_the_file_and_name_one_kind_if_asked() -> None:
    text = HEAD + 'model = "a"\n[[cell]]\nkind = "performance"\nmodel = "a"\n'
    quality, performance = cells(text, "batch=7", "performance.batch=9", 'model="b"')
    assert (quality.batch, performance.batch, quality.model) == (7, 9, "b")
    assert len(cells(text, "seed=[1,2]")) == 4
    with pytest.raises(SuiteError, match='"smaples"; nearest: "samples"'):
        cells(text, "smaples=3")
    with pytest.raises(SuiteError, match="write key=value"):
        cells(text, "samples")


def test_a_setting_of_one_model_reaches_no_other() -> None:
    text = HEAD + 'model = ["a", "b", "c"]\nseed = [0, 1]\n'
    found = [(cell.model, cell.weights) for cell in cells(text, 'b.weights="file:w"')]
    assert found == [("a", None)] * 2 + [("b", "file:w")] * 2 + [("c", None)] * 2
    with pytest.raises(SuiteError, match=r'no cell has a key "d\.weights"'):
        cells(text, 'd.weights="file:w"')


def test_the_published_suite_takes_weights_for_the_model_alone() -> None:
    suite = load("images", ['transgan-cifar10.weights="file:mine.safetensors"'])
    weights = {p.cell.model: p.cell.weights for p in suite.cells if p.cell.kind == "quality"}
    assert weights["transgan-cifar10"] == "file:mine.safetensors"
    assert weights["real-images"] is None


def test_a_value_from_the_command_line_is_toml_or_text() -> None:
    assert [toml_value(t) for t in ("3", "0.5", "true", "zoo", '"3"', "[1, 2]")] == [
        3, 0.5, True, "zoo", "3", [1, 2],
    ]  # fmt: skip


def test_the_toml_of_a_suite_gives_the_same_suite() -> None:
    for name in shipped():
        suite = load(name)
        again = from_text(to_toml(suite), "again.toml")
        assert [p.cell for p in again.cells] == [p.cell for p in suite.cells]
        assert again.gates == suite.gates
        tomllib.loads(to_toml(suite))


def test_an_unknown_suite_names_the_nearest_shipped_one(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match='"quik"; nearest: "quick"'):
        load("quik")
    with pytest.raises(SuiteError, match="cannot be read"):
        load(str(tmp_path / "none.toml"))
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(SuiteError, match="cannot be read"):
        load(str(tmp_path / "latin.toml"))


def options(**given: str | bool) -> Suite:
    return from_options(given, ())


def test_a_command_line_is_a_matrix() -> None:
    suite = options(model="a,b", kind="performance", batch="1,8", dtype="bf16,fp32", compile=True)
    names = [name_of(placed.cell) for placed in suite.cells]
    assert len(names) == 8
    assert names[0] == "performance/a/-/cpu-bf16-b1-sample-compiled"


def test_the_kind_follows_from_what_is_asked() -> None:
    assert [p.cell.kind for p in options(model="a").cells] == ["performance"]
    (cell,) = [p.cell for p in options(model="a", data="digits:8", metrics="fid,kid").cells]
    assert isinstance(cell, QualityCell)
    assert cell.metrics == ("fid", "kid")
    both = options(model="a", data="digits:8", kind="quality,performance", samples="5")
    assert [p.cell.kind for p in both.cells] == ["quality", "performance"]


def test_an_option_of_another_kind_is_a_mistake() -> None:
    with pytest.raises(SuiteError, match="--phase belongs to performance cells"):
        options(model="a", data="digits:8", kind="quality", phase="sample")
    with pytest.raises(SuiteError, match=r"--batch-size|batch = "):
        options(model="a", batch="many")
    with pytest.raises(SuiteError, match='nearest: "quality"'):
        options(model="a", kind="qualtiy")


def test_a_train_cell_can_be_told_by_settings_alone() -> None:
    settings = ["recipe.objective=hinge", "recipe.steps=3", "recipe.batch=2"]
    suite = from_options({"model": "a", "kind": "train", "data": "digits:8"}, settings)
    (cell,) = [p.cell for p in suite.cells]
    assert isinstance(cell, TrainCell)
    assert cell.recipe.steps == 3


def test_shipped_suites_are_what_the_design_says() -> None:
    quick = load("quick")
    models = {p.cell.model for p in quick.cells if isinstance(p.cell, QualityCell)}
    assert {"real-images", "independent-pixels", "pca20-gaussian"} < models
    assert quick.gates[0].most_of_baseline == 0.6

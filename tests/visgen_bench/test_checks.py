"""What is refused before a cell starts, and what its user is told of the data."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from visgen.catalogue import find
from visgen.checkpoints import save_weights
from visgen.checkpoints.weights import part_states
from visgen_bench.suite import SuiteError


def pictures(folder: Path, count: int, size: tuple[int, int] = (8, 8)) -> str:
    """A folder of `count` different pictures, as a data spec."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(count):
        pixels = noise.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return f"folder:{folder}"


def cell(kind: str, **fields: object) -> str:
    lines = [f"{key} = {value!r}" for key, value in fields.items()]
    return "\n".join(["[[cell]]", f'kind = "{kind}"', *lines, ""])


def quality(data: str, **fields: object) -> str:
    given = {"model": "pca20-gaussian", "data": data, "metrics": ["fd_lite0"], **fields}
    return cell("quality", **{key: value for key, value in given.items() if value is not None})


def train(data: str, model: str = "dcgan-digits8-tiny", **fields: object) -> str:
    recipe = 'recipe = { objective = "hinge", steps = 1, batch = 2 }\n'
    return cell("train", model=model, data=data, **fields) + recipe


def refused(bench, text: str) -> str:
    with pytest.raises(SuiteError) as caught:
        bench.plan(text)
    assert not bench.out.exists(), "nothing is written"
    return str(caught.value)


def test_speed_on_data_of_another_size_is_refused_with_the_fix(bench) -> None:
    said = refused(bench, cell("performance", model="transgan-cifar10", data="digits:8"))
    assert "transgan-cifar10 draws 32x32 pictures and digits:8 holds 8x8" in said
    assert "leave data out: speed does not depend on it" in said
    assert bench.plan(cell("performance", model="transgan-digits8-tiny", data="digits:8")).cells
    assert bench.plan(cell("performance", model="transgan-cifar10")).cells


def test_a_shipped_set_of_another_size_is_not_trained_on(bench) -> None:
    said = refused(bench, train("digits:8", model="dcgan-digits16-tiny"))
    assert "dcgan-digits16-tiny draws 16x16 pictures and digits:8 holds 8x8" in said


def test_training_resizes_a_folder_and_says_so_and_a_score_does_not(bench, tmp_path: Path) -> None:
    data = pictures(tmp_path / "mine", 12, (9, 11))
    (planned,) = bench.plan(train(data)).cells
    assert planned.resolved.notes == (
        f"{data}: pictures of 9x11 are resized to the model's 8x8 to train",
    )
    said = refused(bench, quality(data, model="dcgan-digits8-tiny", weights="untrained"))
    assert "bring the folder's pictures to 8x8" in said
    (same,) = bench.plan(train(pictures(tmp_path / "same", 12))).cells
    assert same.resolved.notes == ()


def test_which_pictures_of_a_folder_are_compared_with_is_said(bench, tmp_path: Path) -> None:
    data = pictures(tmp_path / "mine", 60)
    plan = bench.plan(quality(data) + quality(data, model="real-images"))
    (note,) = plan.notes  # of two cells, once
    assert note.startswith(f'{data}: scores are against its split "test", 12 of 60 pictures')
    assert "--split all" in note
    assert bench.plan(quality(data, split="all")).notes == ()
    assert bench.plan(quality("digits:8")).notes == ()


@pytest.mark.parametrize(
    ("count", "fields", "says"),
    [
        (1, {"split": "all"}, ("holds 1 picture, 1 of them", "fd_lite0 needs 2")),
        (1, {"split": "all"}, ("give a folder with more",)),
        (6, {}, ("holds 6 pictures, 1 of them in its split", "--split all")),
        (6, {"split": "all"}, ("5 of them in its split", "fitted to 21 or more")),
        (1, {"model": None, "images": "SELF"}, ("0 of them",)),
    ],
)
def test_a_folder_with_too_few_pictures_is_refused_in_the_plan(
    bench, tmp_path: Path, count: int, fields: dict, says: tuple[str, ...]
) -> None:
    data = pictures(tmp_path / "few", count)
    given = {key: data if value == "SELF" else value for key, value in fields.items()}
    said = refused(bench, quality(data, **given))
    for part in ("test.toml, cell 1: data: ", *says):
        assert part in said


def test_what_needs_no_reference_needs_no_second_picture(bench, tmp_path: Path) -> None:
    data = pictures(tmp_path / "few", 1)
    text = quality(data, model="real-images", metrics=["digit_confident"])
    assert [planned.action for planned in bench.plan(text).cells] == ["run"]


def test_an_empty_split_is_not_trained_on(bench, tmp_path: Path) -> None:
    data = pictures(tmp_path / "few", 1)
    assert "0 of them in its split" in refused(bench, train(data, split="test"))
    assert bench.plan(train(data)).cells


def test_pictures_of_several_sizes_fit_no_reference(bench, tmp_path: Path) -> None:
    data = pictures(tmp_path / "mine", 4)
    Image.new("RGB", (5, 5)).save(tmp_path / "mine" / "other.png")
    said = refused(bench, quality(data, model="real-images", split="all"))
    assert "real-images is fitted to pictures of one size" in said
    (planned,) = bench.plan(train(data)).cells
    assert "of several sizes are resized to the model's 8x8" in planned.resolved.notes[0]


class Trap:
    """Opening its pickle writes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("mine.pth", "pickle", "is a pickle, which may run code"),
        ("renamed.safetensors", "pickle", "is a pickle, which may run code"),
        ("mine.pt", "whole", "is a pickle"),  # by its name alone
        ("cut.safetensors", "cut", "is not a whole safetensors file"),
        ("text.safetensors", "text", "is not a whole safetensors file"),
    ],
)
def test_weights_that_cannot_be_read_are_refused_in_the_plan(
    bench, tmp_path: Path, name: str, content: str, says: str
) -> None:
    whole = tmp_path / "whole.safetensors"
    save_weights(whole, part_states(find("dcgan-digits8-tiny").build().networks()), {})
    made = {
        "pickle": pickle.dumps({"generator": Trap(tmp_path / "sprung")}),
        "whole": whole.read_bytes(),
        "cut": whole.read_bytes()[:-100],
        "text": b"these are no weights at all",
    }
    (tmp_path / name).write_bytes(made[content])
    fields = {"model": "dcgan-digits8-tiny", "weights": f"file:{tmp_path / name}"}
    assert says in refused(bench, quality("digits:8", **fields))
    assert not (tmp_path / "sprung").exists()
    assert bench.plan(quality("digits:8", **{**fields, "weights": f"file:{whole}"})).cells

"""What can be asked for, and what every mistake is told."""

import pytest

from visgen_bench.errors import UsageError
from visgen_bench.kernels_static.request import make_tasks, split_names
from visgen_kernels.shapes import SHAPES


def test_left_out_means_all() -> None:
    found = make_tasks()
    assert {task.shape for task in found} == set(SHAPES)
    assert {task.target for task in found} == {"sm_80", "sm_90", "sm_100", "gfx942"}
    of_g1 = {task.direction for task in found if task.shape == "G1"}
    assert of_g1 == {"forward", "backward"}
    of_d2 = {task.direction for task in found if task.shape == "D2"}
    assert of_d2 == {"forward", "backward", "double_backward"}
    assert {task.direction for task in found if task.shape == "X1"} == {"decode"}


def test_a_kernel_is_looked_for_where_it_is_launched() -> None:
    found = make_tasks(kernels=["delta"], shapes=["V1"], targets=["sm_90"])
    assert [task.direction for task in found] == ["backward", "double_backward"]
    assert all(task.kernels == {"delta"} for task in found)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"shapes": ["w9"]}, 'unknown shape "w9"; nearest: "W'),
        ({"targets": ["sm90"]}, 'unknown target "sm90"; nearest: "sm_90"'),
        ({"kernels": ["backward_key"]}, 'unknown kernel "backward_key"; nearest: "backward_keys"'),
        ({"directions": ["back"]}, 'unknown direction "back"; nearest: "backward"'),
        ({"dtype": "bf61"}, 'unknown dtype "bf61"; nearest: "bf16"'),
        (
            {"shapes": ["X1"], "kernels": ["forward"]},
            "no kernel fits --shape X1, --kernel forward together",
        ),
    ],
)
def test_what_cannot_be_is_named(asked: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_tasks(**asked)


def test_commas_and_repeated_options_are_one_list() -> None:
    assert split_names(["G1, G2", "W1,"]) == ["G1", "G2", "W1"]
    assert split_names(None) == []

"""What a command line asks for: groups, defaults, and mistakes with the nearest name."""

from typing import Any

import pytest

from visgen_bench.errors import UsageError
from visgen_bench.kernels_bench.names import BACKENDS, SDPA, default_backends, split_sdpa
from visgen_bench.kernels_bench.refusals import refusal
from visgen_bench.kernels_bench.request import QUICK_SHAPES, Group, groups
from visgen_kernels.shapes import SHAPES

NOTHING: dict[str, Any] = {
    "shapes": None, "directions": None, "backends": None, "device": "cpu", "dtype": None,
    "batch": None, "threads": 1, "seconds": None, "quick": False,
}  # fmt: skip


def asked(**given: Any) -> list[Group]:
    return groups(**{**NOTHING, **given})


def test_no_shape_is_left_out() -> None:
    found = asked()
    assert {group.shape for group in found} == set(SHAPES)
    twice = {group.shape for group in found if group.direction == "double_backward"}
    assert twice == {id for id, shape in SHAPES.items() if shape.second_derivative}
    assert [g.direction for g in found if g.shape == "X1"] == ["forward"]
    assert {group.dtype for group in found} == {"fp32"}
    assert all(group.batch is None for group in found)


def test_quick_is_six_small_shapes_at_a_batch_of_two() -> None:
    found = asked(quick=True)
    assert {group.shape for group in found} == set(QUICK_SHAPES)
    assert {group.batch for group in found} == {2}
    assert asked(quick=True, batch=3, shapes="G1")[0].batch == 3


def test_names_are_found_in_any_case_and_ours_is_the_devices_own() -> None:
    (group,) = asked(shapes="d4", directions="Double_Backward", backends="ours,EAGER,ours")
    assert (group.shape, group.direction) == ("D4", "double_backward")
    assert group.backends == ("chunked", "eager")


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ({"shapes": "G33"}, 'unknown shape "G33"; nearest: "G3'),
        ({"backends": "flash-attn"}, 'nearest: "flash_attn"'),
        ({"directions": "backwards"}, 'nearest: "backward"'),
        ({"dtype": "fp23"}, 'nearest: "fp32"'),
        ({"device": "gpu"}, "use cpu, cuda or cuda:N"),
        ({"shapes": ","}, "names nothing"),
    ],
)
def test_a_mistake_names_the_nearest(given: dict[str, str], near: str) -> None:
    with pytest.raises(UsageError) as caught:
        asked(**given)
    assert near in str(caught.value)


def test_a_group_survives_its_process_border() -> None:
    (group,) = asked(shapes="V1", directions="backward")
    assert Group.from_json(group.to_json()) == group


def test_every_default_can_take_part_on_a_cpu() -> None:
    for group in asked():
        shape = SHAPES[group.shape]
        for name in group.backends:
            reason = refusal(name, shape, group)
            assert reason is None, (group.name, name, reason)


def test_on_a_gpu_every_backend_of_the_list_is_compared_with() -> None:
    found = default_backends(SHAPES["V1"], "forward", "cuda")
    assert found[0] == "triton"
    for name in ("eager", "sdpa", "sdpa-kernel", "sdpa-flash", "sdpa-cudnn-kernel", "flex",
                 "sdpa-augmented", "sdpa-compiled"):  # fmt: skip
        assert name in found
    assert "sdpa-unfolded" in default_backends(SHAPES["I2"], "backward", "cuda")
    assert default_backends(SHAPES["D4"], "double_backward", "cuda")[0] == "triton"


def test_sdpa_names_say_backend_and_how() -> None:
    assert split_sdpa("sdpa") == ("", "")
    assert split_sdpa("sdpa-kernel") == ("", "kernel")
    assert split_sdpa("sdpa-efficient-copied") == ("efficient", "copied")
    assert len(set(SDPA)) == 15
    assert len(set(BACKENDS)) == len(BACKENDS)


@pytest.mark.parametrize(
    ("name", "shape", "direction", "dtype", "device", "reason"),
    [
        ("triton", "G1", "forward", "fp32", "cpu", "CUDA or ROCm"),
        ("sdpa", "G1", "double_backward", "fp32", "cpu", "compare with sdpa-math"),
        ("sdpa-cudnn", "G1", "forward", "fp32", "cpu", "needs a GPU"),
        ("sdpa-augmented", "G1", "forward", "fp32", "cpu", "no key bias"),
        ("sdpa-unfolded", "G1", "forward", "fp32", "cpu", "no block-local mask"),
        ("flex", "G1", "forward", "fp32", "cpu", "GPU"),
        ("flex", "D4", "double_backward", "bf16", "cuda", "no second derivative"),
        ("chunked", "X1", "backward", "fp32", "cpu", "not differentiated"),
        ("eager", "Q1", "forward", "fp32", "cpu", "look-up of codes"),
        ("distances", "G1", "forward", "fp32", "cpu", "is attention"),
        ("distances", "Q1", "backward", "fp32", "cpu", "no derivative"),
        ("natten", "T2", "forward", "bf16", "cuda", "natten is not installed"),
    ],
)
def test_what_cannot_be_compared_says_why(
    name: str, shape: str, direction: str, dtype: str, device: str, reason: str
) -> None:
    group = Group(shape=shape, direction=direction, backends=(name,), device=device, dtype=dtype)
    assert reason in (refusal(name, SHAPES[shape], group) or "")

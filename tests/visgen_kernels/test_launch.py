"""Launches as values: what calls on tensors without content would launch."""

import torch

from visgen_kernels.attention import launch as attention
from visgen_kernels.attention.tiles import target_of
from visgen_kernels.launch import Launch, recorded, recorded_target
from visgen_kernels.shapes import SHAPES


def test_a_call_on_meta_tensors_is_recorded_and_not_run() -> None:
    shape = SHAPES["W1"]
    inputs = shape.inputs()
    with recorded("sm_80") as launches:
        out, lse = attention.forward(shape.call(inputs), inputs.q, inputs.k, inputs.v)
    assert out.is_meta
    assert lse.shape == (8, 3137, 12)
    (one,) = launches
    assert one.name == "attention_forward"
    # 96 score matrices, a program for every tile of queries.
    assert one.programs == 96 * -(-3137 // one.constants["block_m"])


def test_the_target_is_that_of_the_recording_inside_of_it_alone() -> None:
    meta = torch.device("meta")
    assert recorded_target() is None
    with recorded("gfx942"):
        assert target_of(meta) == "gfx942"
        with recorded("sm_100"):
            assert target_of(meta) == "sm_100"
        assert target_of(meta) == "gfx942"
    assert recorded_target() is None


def test_an_empty_grid_runs_nothing() -> None:
    Launch(None, 0, ()).run()

"""What launches compute: all scores of a layer, whatever kernel it is."""

import pytest
import torch

from visgen_kernels.attention.arguments import Rows, head_parts, rows_of
from visgen_kernels.launch import Launch
from visgen_kernels.layouts import Sequence
from visgen_kernels.shapes import SHAPES
from visgen_kernels.static.analysis import Facts, Specimen
from visgen_kernels.static.facts import KERNELS, facts_of, tensors_of, widest_access
from visgen_kernels.static.plain_loop import plain_loop
from visgen_kernels.static.specimens import Layer, specimens
from visgen_kernels.static.targets import TARGETS

SM_90 = TARGETS["sm_90"]


def named(id: str, direction: str = "forward", dtype: str = "bf16") -> dict[str, Specimen]:
    found = specimens(Layer(SHAPES[id], dtype), direction, SM_90)
    return {one.facts.kernel: one for one in found}


def computed(facts: Facts) -> float:
    """Scores of all programs, those of masked pieces and of padding included."""
    assert facts.scores is not None
    if facts.whole is None:
        return facts.programs * facts.scores
    masked = facts.masked_scores or facts.scores
    return facts.programs * (facts.whole * facts.scores + facts.masked * masked)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_programs_and_passes_cover_all_scores(direction: str) -> None:
    needed = SHAPES["P1"].pairs * SHAPES["P1"].score_matrices
    for found in named("P1", direction, "fp32").values():
        if found.facts.kernel == "delta":
            assert (found.facts.scores, found.facts.flops) == (None, None)
        else:
            assert needed <= computed(found.facts) <= 1.05 * needed


def test_the_bias_gradient_meets_every_pair_of_tokens() -> None:
    # 16 x 16 maps in tiles of whole map rows: every offset is met by the tiles that have it.
    found = named("G2", "backward", "fp32")["bias_gradient"].facts
    needed = SHAPES["G2"].pairs * SHAPES["G2"].score_matrices
    assert needed <= computed(found) <= 1.05 * needed


def test_a_decoding_step_reads_the_whole_cache_once() -> None:
    found = named("X1", "decode")
    facts = found["decode_one"].facts
    assert facts.programs == 32 * facts.tile["splits"]
    assert computed(facts) == pytest.approx(32 * 4096)
    assert facts.work is not None
    cache = 2 * 32 * 4096 * 144 * 2
    assert cache < facts.work.bytes < 1.001 * cache
    combined = found["decode_combine"].facts
    assert combined.work is not None
    # 144 sums, m and l of every split in float32, 144 outputs in 16 bits.
    assert combined.work.bytes == 32 * (facts.tile["splits"] * 4 * 146 + 2 * 144)


def test_the_codebook_is_searched_whole() -> None:
    facts = named("Q1", "codebook")["nearest_code"].facts
    assert computed(facts) == pytest.approx(32_768 * 2048)
    assert facts.work is not None
    assert facts.work.flops == 2 * 32_768 * 2048 * 256
    assert facts.flops is not None
    assert facts.whole is not None
    assert facts.programs * facts.whole * facts.flops == pytest.approx(facts.work.flops)


def test_three_tf32_products_count_as_three() -> None:
    (found,) = specimens(Layer(SHAPES["Q1"], "fp32"), "codebook", SM_90)
    assert found.facts.work is not None
    assert found.facts.work.flops == 3 * 2 * 32_768 * 2048 * 256
    assert found.facts.dtype == "tf32"


def test_flops_of_a_tile_count_padded_head_dimensions() -> None:
    assert sum(head_parts(144)) == 144  # 128 + 16
    forward = named("P1")["forward"].facts
    assert forward.scores is not None
    assert forward.flops == 2 * forward.scores * 2 * 144
    queries = named("C2", "backward", "fp32")["backward_queries"].facts  # d_v 60 becomes 64
    assert queries.scores is not None
    assert queries.flops == 2 * queries.scores * (2 * 144 + 64)


def test_a_second_derivative_is_its_kernels_in_order() -> None:
    names = list(named("D4", "double_backward", "fp32"))
    assert names == ["delta", "double_rows", "double_queries", "double_keys", "double_bias"]
    assert set(names) <= set(KERNELS)


@pytest.mark.parametrize(("id", "widest"), [("W1", 16), ("D2", 16), ("G6", 8), ("S3", 4)])
def test_the_widest_access_is_what_head_strides_allow(id: str, widest: int) -> None:
    assert named(id)["forward"].facts.widest == widest


def test_vectors_do_not_make_rows_narrow() -> None:
    x = torch.empty(2, 8, 3, 64, device="meta", dtype=torch.bfloat16)
    row = rows_of(Sequence(), x)
    assert isinstance(row, Rows)
    assert widest_access(Launch(plain_loop, 1, ((row, 3), None, 7))) == 16


def test_tensors_are_those_of_rows_not_statistics_or_tables() -> None:
    found = named("D5", "double_backward")
    assert found["double_keys"].facts.tensors == {
        *(f"t.{name}.base" for name in ("q", "k", "v", "grad", "of_q", "of_k", "of_v")),
        "gk.base",
        "gv.base",
    }
    assert found["delta"].facts.tensors == {"grad.base", "out.base"}


def test_without_rows_they_are_those_of_the_narrowest_floating_type() -> None:
    def meta(dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(64, device="meta", dtype=dtype)

    x, sums, places = meta(torch.bfloat16), meta(torch.float32), meta(torch.int8)
    assert tensors_of(Launch(plain_loop, 1, (x, sums, places, x))) == {"q", "out"}
    assert tensors_of(Launch(plain_loop, 1, (places, places))) == {"q", "k"}


def test_a_kernel_that_is_not_known_has_no_figures_of_its_own() -> None:
    facts = facts_of(Launch(plain_loop, 7, (), {"block_m": 64}), SHAPES["W1"], "forward")
    assert (facts.kernel, facts.programs, facts.scores, facts.work) == ("plain_loop", 7, None, None)

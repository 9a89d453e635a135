"""Which loop computes how many scores, and what is said of what cannot be read."""

import pytest

from visgen_kernels.static.compile import Compiled
from visgen_kernels.static.report import report
from visgen_kernels.static.targets import TARGETS

LOOP = """
.L_x_{label}:
{body}
        /*0050*/               @P1 BRA `(.L_x_{label}) ;
"""
HMMA, EX2, FFMA = "HMMA.16816.F32.BF16 R8, R4, R6, R8", "MUFU.EX2 R9, R9", "FFMA R1, R1, R1, R1"


def sass(*loops: list[str]) -> str:
    text = ""
    for label, instructions in enumerate(loops):
        body = "\n".join(f"        /*0010*/                   {one} ;" for one in instructions)
        text += LOOP.format(label=label, body=body)
    return text + "        /*0060*/                   EXIT ;\n"


def compiled(code: str, target: str = "sm_90", warps: int = 1) -> Compiled:
    return Compiled(TARGETS[target], warps, code, 64, 0, 0)


# A tile of 16 x 16 scores: 8 exponentials a lane; 2 HMMA hold 8192 FLOPs.
WHOLE = [HMMA] * 2 + [EX2] * 8 + [FFMA] * 21  # + the branch: 32 x 32 lanes / 256 scores = 4
HALF = [HMMA] + [EX2] * 4 + [FFMA] * 26  # also 32 instructions, for half of the scores


def test_a_loop_over_pieces_is_known_by_its_matrix_work() -> None:
    found = report(compiled(sass(HALF, WHOLE)), scores=256, flops=8192)
    assert [loop.scores for loop in found.loops] == [128, 256]
    assert [loop.mma_ratio for loop in found.loops] == [1, 1]
    assert [loop.exponentials for loop in found.loops] == [1, 1]
    assert found.interior.instructions == 4
    assert found.boundary is not None
    assert found.boundary.instructions == 8


def test_without_shapes_exponentials_tell_it() -> None:
    code = sass(HALF, WHOLE).replace("HMMA.16816.F32.BF16", "UTCHMMA")
    found = report(compiled(code, "sm_100"), scores=256, flops=8192)
    assert [loop.scores for loop in found.loops] == [128, 256]
    assert found.interior.mma_ratio is None
    assert "carries no shape (UTCHMMA)" in found.unread["mma_ratio"]


def test_where_no_loop_goes_over_whole_tiles_all_are_pieces() -> None:
    found = report(compiled(sass(HALF)), scores=256, flops=8192, masked_scores=128, has_whole=False)
    assert found.interior.scores == 128
    assert found.interior.mma_ratio == 1
    assert found.boundary is None


def test_repeated_work_is_seen() -> None:
    twice = [HMMA] * 4 + [EX2] * 16
    found = report(compiled(sass(twice)), scores=256, flops=8192)
    assert found.interior.mma_ratio == 2
    assert found.interior.exponentials == 2


def test_steps_that_were_unrolled_into_one_pass_are_no_repeated_work() -> None:
    # A step reads 2 KiB: 4 loads of 16 bytes by 32 lanes.
    step = [HMMA] * 2 + ["LDG.E.128 R4, [R2.64]"] * 4
    known = {"scores": 64.0, "flops": 8192.0, "steps": 4, "step_bytes": 2048.0}
    for code, scores in ((sass(step), 64), (sass(step * 4), 256)):
        (loop,) = report(compiled(code), **known).loops
        assert (loop.scores, loop.mma_ratio) == (scores, 1)
    # The same work four times over reads no more.
    repeated = [HMMA] * 8 + ["LDG.E.128 R4, [R2.64]"] * 4
    assert report(compiled(sass(repeated)), **known).loops[0].mma_ratio == 4


def test_a_kernel_without_loops_is_one_pass() -> None:
    found = report(compiled(sass(["LDG.E.128 R4, [R2.64]"] * 3).replace("@P1 BRA", "NOP")))
    assert found.loops == ()
    assert found.interior is found.whole
    assert found.straight
    assert found.whole.counts.wide_share(16) == 1
    assert found.whole.instructions is None
    assert "no matrix instruction" in found.unread["loops"]


def test_matrix_instructions_without_a_loop_are_one_pass_too() -> None:
    straight = sass(WHOLE).replace("@P1 BRA", "NOP")
    found = report(compiled(straight), scores=256, flops=8192)
    assert found.whole.mma_ratio == 1
    assert "stand in no loop" in found.unread["loops"]
    assert found.whole.instructions == pytest.approx(33 * 32 / 256)


def test_a_loop_without_matrix_instructions_is_found_if_its_scores_are_given() -> None:
    code = sass([EX2] * 8 + [FFMA] * 23, ["LDG.E R4, [R2.64]"])
    assert report(compiled(code)).loops == ()
    assert not report(compiled(code)).straight
    (loop,) = report(compiled(code), scores=256).loops
    assert loop.instructions == 4
    assert loop.exponentials == 1
    (loop,) = report(compiled(sass([FFMA, "LDG.E.128 R4, [R2.64]"])), scores=32).loops
    assert loop.counts.total == 3


def test_waiting_for_a_barrier_is_no_loop_that_counts() -> None:
    assert report(compiled(sass(["SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4]"]))).straight


def test_the_size_of_a_bulk_copy_is_not_made_up() -> None:
    code = sass(["UTMALDG.2D [UR4], [UR6]", "LDG.E R4, [R2.64]", HMMA])
    found = report(compiled(code))
    assert found.whole.counts.wide_share(16) is None
    assert found.unread["wide_share"].startswith("1 bulk copies (TMA)")


PTX = """.file 1 "k.py"
.loc 1 1 5
ld.global.v4.b32 q;
.loc 1 2 5
ld.global.b32 sums;
.loc 1 3 5
st.global.v2.b32 o;
"""
TTGIR = """tt.func public @k(%q: !tt.ptr<bf16>, %sums: !tt.ptr<f32>, %o: !tt.ptr<bf16>) {
%0 = tt.load %q : !tt.ptr<bf16> loc(#loc1)
%1 = tt.load %sums : !tt.ptr<f32> loc(#loc2)
tt.store %o, %0 : !tt.ptr<bf16> loc(#loc3)
#loc1 = loc("k.py":1:5)
#loc2 = loc("k.py":2:5)
#loc3 = loc("k.py":3:5)
"""


def made_from(*code: tuple[str, int]) -> Compiled:
    """Instructions, each with the line of PTX that it was made from."""
    place = '\t//## File ".nv_debug_ptx_txt", line'
    text = "".join(f"{place} {line}\n        /*0010*/  {one} ;\n" for one, line in code)
    return Compiled(TARGETS["sm_90"], 1, text, 64, 0, 0, ttgir=TTGIR, ptx=PTX)


def test_loads_of_other_pointers_have_no_part_in_the_share_and_stores_have_their_own() -> None:
    made = made_from(("LDG.E.128 R4", 3), ("LDG.E R8", 5), ("STG.E.64 R4", 7), ("EXIT", 7))
    counts = report(made, tensors=frozenset({"q", "o"})).whole.counts
    assert (counts.wide_share(16), counts.wide_share(16, stores=True)) == (1, 0)
    counts = report(made).whole.counts  # of all pointers
    assert counts.wide_share(16) == 16 / 20


def test_a_share_that_cannot_be_known_has_its_reason() -> None:
    made = made_from(("LDG.E.128 R4", 3), ("LDG.E R8", 99), ("EXIT", 99))
    found = report(made, tensors=frozenset({"q", "o"}))
    assert found.whole.counts.wide_share(16) is None
    assert found.unread["wide_share"] == "1 loads may go through these pointers or through others"
    assert found.unread["wide_share/stores"].startswith("no store of global memory through these")

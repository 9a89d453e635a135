"""The static report: parsing of machine code, occupancy, and what K1 costs on four targets.

Compiles in this process, where Triton's interpreter is off.
"""

import pytest
import triton.language as tl
from triton import jit

from visgen_kernels.attention.launch import Tile
from visgen_kernels.masks import Blocks1d, Causal, SlidingWindow
from visgen_kernels.static.compile import (
    TARGETS,
    Compiled,
    CompileFailed,
    Kernel,
    compile_kernel,
)
from visgen_kernels.static.counts import by_pipe, global_accesses, mma_flops
from visgen_kernels.static.loops import Instruction, read_program
from visgen_kernels.static.occupancy import Occupancy, occupancy
from visgen_kernels.static.report import Report, report
from visgen_kernels.static.specimens import forward_kernel, plain_kernel

SASS = """
        /*0000*/                   S2R R0, SR_CTAID.X ;
.L_x_1:
        /*0010*/                   LDG.E.128 R4, [R2.64] ;
.L_x_2:
        /*0020*/                   HMMA.16816.F32.BF16 R8, R4, R6, R8 ;
        /*0030*/                   MUFU.EX2 R9, R9 ;
        /*0040*/              @!P0 BRA `(.L_x_4) ;
        /*0050*/               @P1 BRA `(.L_x_2) ;
        /*0060*/               @P2 BRA `(.L_x_1) ;
        /*0070*/                   STG.E [R2.64], R8 ;
        /*0080*/                   EXIT ;
.L_x_4:
        /*0090*/                   SYNCS.PHASECHK R3 ;
        /*00a0*/                   BRA.U UP0, `(.L_x_4) ;
        /*00b0*/                   BRA `(.L_x_2) ;
.L_x_9:
        /*00c0*/                   BRA `(.L_x_9);
"""


def is_mma(instruction: Instruction) -> bool:
    return "MMA" in instruction.mnemonic


def test_a_wait_out_of_line_belongs_to_the_loop_that_jumps_to_it() -> None:
    program = read_program(SASS, amd=False)
    (main,) = program.innermost(is_mma)
    assert [one.mnemonic for one in main.instructions] == [
        "HMMA.16816.F32.BF16", "MUFU.EX2", "BRA", "BRA", "SYNCS.PHASECHK", "BRA.U", "BRA",
    ]  # fmt: skip
    # The outer loop, the main loop and the spin; the code after the last jump is never reached.
    assert sorted(len(loop.instructions) for loop in program.loops)[:2] == [1, 2]
    assert max(len(loop.instructions) for loop in program.loops) == 9
    assert len(program.instructions) == 13


def test_amd_code_is_read_alike() -> None:
    code = (
        "kernel:\n; %bb.0:\n\ts_load_dwordx2 s[0:1], s[4:5], 0x0\n.LBB0_1:   ; loop\n"
        "\tglobal_load_dwordx4 v[0:3], v4, s[0:1]\n"
        "\tv_mfma_f32_32x32x8_bf16_1k a[0:15], v[0:1], v[2:3], a[0:15]\n"
        "\tv_exp_f32_e32 v5, v5\n\ts_cbranch_scc1 .LBB0_1\n\ts_endpgm\n\t.section x\n\tv_nop\n"
    )
    program = read_program(code, amd=True)
    (loop,) = program.innermost(lambda one: one.mnemonic.startswith("v_mfma"))
    assert len(loop.instructions) == 4
    assert by_pipe(loop.instructions, amd=True) == {"ldg": 1, "mma": 1, "mufu": 1, "control": 1}
    assert mma_flops(loop.instructions, amd=True) == 2 * 32 * 32 * 8
    assert [(a.width, a.count) for a in global_accesses(loop.instructions, amd=True)] == [(16, 1)]


@pytest.mark.parametrize(
    ("mnemonic", "flops"),
    [
        ("HMMA.16816.F32.BF16", 4096),
        ("HMMA.1688.F32.TF32", 2048),
        ("HGMMA.64x128x16.F32.BF16", 2 * 64 * 128 * 16 / 4),
    ],
)
def test_matrix_work_follows_from_the_mnemonic(mnemonic: str, flops: float) -> None:
    assert mma_flops([Instruction(mnemonic, mnemonic)], amd=False) == flops


def test_matrix_work_of_tcgen05_is_unknown_not_zero() -> None:
    assert mma_flops([Instruction("UTCHMMA", "UTCHMMA")], amd=False) is None


def made(target: str, registers: int, shared: int, warps: int) -> Compiled:
    return Compiled(TARGETS[target], warps, "", registers, 0, shared)


@pytest.mark.parametrize(
    ("compiled", "expected"),
    [
        # 65,536 registers / (128 x 128 threads) = 4 blocks.
        (made("sm_80", 128, 0, 4), Occupancy(4, 16, "registers")),
        # 255 rounds up to 256 a thread: two blocks.
        (made("sm_80", 255, 0, 4), Occupancy(2, 8, "registers")),
        # 228 KiB hold two blocks of 96 KiB + 1 KiB.
        (made("sm_90", 64, 96 * 1024, 4), Occupancy(2, 8, "shared memory")),
        (made("sm_90", 32, 0, 4), Occupancy(16, 64, "warps")),
        (made("sm_90", 16, 0, 1), Occupancy(32, 32, "blocks")),
        # 512 registers a lane hold two waves of 256 on each of four SIMDs.
        (made("gfx942", 256, 0, 4), Occupancy(2, 8, "registers")),
        (made("gfx942", 64, 40 * 1024, 4), Occupancy(1, 4, "shared memory")),
        (made("gfx942", 64, 80 * 1024, 4), Occupancy(0, 0, "shared memory")),
    ],
)
def test_occupancy_by_hand(compiled: Compiled, expected: Occupancy) -> None:
    assert occupancy(compiled) == expected


def test_a_block_that_does_not_fit_is_found_though_the_compiler_says_nothing() -> None:
    assert not made("gfx942", 64, 80 * 1024, 4).fits
    assert made("gfx942", 64, 64 * 1024, 4).fits


@jit
def _broken(x, n: tl.constexpr):
    tl.store(x + tl.arange(0, n), 1.0)


def test_a_kernel_that_does_not_compile_is_named_with_its_target() -> None:
    kernel = Kernel(_broken, {"x": "*fp32"}, {"n": 3})  # not a power of two
    with pytest.raises(CompileFailed, match="_broken for sm_90"):
        compile_kernel(kernel, TARGETS["sm_90"])


def read(kernel: Kernel, target: str) -> Report:
    constants = kernel.constants
    scores = constants["block_m"] * constants["block_n"]
    parts = [constants.get(name, 0) for name in ("d0", "d1", "dv0", "dv1")]
    width = sum(parts) or 2 * constants["d"]
    return report(compile_kernel(kernel, TARGETS[target]), scores=scores, flops=2 * scores * width)


TILES = {
    ("sm_80", 64): Tile(64, 64, 4, 2),
    ("sm_90", 64): Tile(64, 64, 4, 2),
    ("sm_90", 128): Tile(128, 64, 8, 2),
    ("sm_100", 64): Tile(64, 64, 4, 2),
    ("gfx942", 64): Tile(128, 64, 4, 2),
}
MASKED = {
    "causal": {"mask": Causal()},
    "window": {"mask": SlidingWindow(32, 1)},
    "1-D blocks": {"mask": Blocks1d(256)},
    "key lengths": {"key_lengths": True},
}


@pytest.mark.parametrize(("target", "d"), list(TILES))
def test_k1_uses_matrix_units_without_spills_or_repeated_work(target: str, d: int) -> None:
    found = read(forward_kernel(TILES[target, d], d), target)
    assert found.compiled.stack == 0
    assert found.local_accesses == 0
    assert found.compiled.fits
    assert found.matrix_instructions > 0
    assert found.occupancy.blocks >= 1
    assert len(found.loops) == 2  # whole tiles, and the last one
    for loop in found.loops:
        assert loop.exponentials <= 1.1
        assert loop.mma_ratio in (None, pytest.approx(1.0))
    assert found.accesses[0].width == 16


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_nine_tenths_of_the_bytes_move_sixteen_at_a_time(target: str) -> None:
    accesses = read(forward_kernel(TILES[target, 64], 64), target).accesses
    total = sum(a.width * a.count for a in accesses)
    assert accesses[0].width * accesses[0].count >= 0.9 * total


@pytest.mark.parametrize(("target", "d"), [("sm_80", 64), ("sm_90", 64), ("sm_90", 128)])
def test_k1_costs_at_most_a_tenth_more_than_the_plain_loop(target: str, d: int) -> None:
    tile = TILES[target, d]
    plain, own = (read(kernel(tile, d), target) for kernel in (plain_kernel, forward_kernel))
    assert plain.compiled.stack == own.compiled.stack == 0
    ratio = own.cheapest_loop.instructions / plain.cheapest_loop.instructions
    assert ratio <= 1.10


def test_masks_are_free_in_whole_tiles_and_the_position_bias_is_cheap() -> None:
    tile = TILES["sm_90", 64]
    plain = read(forward_kernel(tile, 64), "sm_90").cheapest_loop.instructions
    for name, fields in MASKED.items():
        found = read(forward_kernel(tile, 64, **fields), "sm_90")
        assert found.compiled.stack == 0, name
        assert found.cheapest_loop.instructions <= 1.10 * plain, name
    bias = read(forward_kernel(tile, 64, bias=(16, 16), inner=16), "sm_90")
    assert bias.cheapest_loop.instructions <= 1.35 * plain


def test_wgmma_is_what_hopper_multiplies_with() -> None:
    found = read(forward_kernel(TILES["sm_90", 64], 64), "sm_90")
    assert "HGMMA" in found.compiled.code
    assert "HMMA.16816" not in found.compiled.code


def test_a_head_stride_that_is_no_multiple_of_16_keeps_loads_wide() -> None:
    found = read(forward_kernel(Tile(64, 64, 4, 2), 72), "sm_90")
    widths = {access.width for access in found.accesses}
    assert min(widths - {4}) == 16  # 4 bytes: the log-sum-exp, a number a row

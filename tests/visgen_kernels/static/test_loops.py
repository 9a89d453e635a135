"""Parsing of machine code into loops."""

from visgen_kernels.static.counts import by_pipe
from visgen_kernels.static.loops import Instruction, read_program

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
        /*00d0*/                   NOP;
        /*00e0*/                   NOP;
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


def test_what_only_fills_up_the_last_line_of_code_is_no_instruction() -> None:
    assert len(read_program(SASS, amd=False).instructions) == 13


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


def test_instructions_say_what_they_were_made_from() -> None:
    announced = SASS.replace(
        "        /*0010*/", '\t//## File ".nv_debug_ptx_txt", line 12\n        /*0010*/'
    )
    places = [one.place for one in read_program(announced, amd=False).instructions]
    assert places[:3] == ["", "ptx:12", "ptx:12"]
    code = (
        '\t.file\t1 "/kernels" "k.py"\n\t.loc\t1 7 5 ; k.py:7:5\n\tv_nop\n'
        "\t.loc\t1 0 0 is_stmt 0\n\tv_nop\n\ts_endpgm\n"
    )
    places = [one.place for one in read_program(code, amd=True).instructions]
    assert places == ["/kernels/k.py:7:5", "", ""]

"""What an instruction's name says, and what it does not."""

import pytest

from visgen_kernels.static.counts import (
    Access,
    Moved,
    atomics,
    bulk_copies,
    global_accesses,
    mma_flops,
    moved,
    pipe_of,
    shared_bytes,
    wide_share,
)
from visgen_kernels.static.loops import Instruction
from visgen_kernels.static.pointers import ELSEWHERE, Pointers


def named(*mnemonics: str) -> list[Instruction]:
    return [Instruction(mnemonic, mnemonic) for mnemonic in mnemonics]


@pytest.mark.parametrize(
    ("mnemonic", "flops"),
    [
        ("HMMA.16816.F32.BF16", 2 * 16 * 8 * 16),
        ("HMMA.1688.F32.TF32", 2 * 16 * 8 * 8),
        ("IMMA.16832.S8.S8", 2 * 16 * 8 * 32),
        ("DMMA.884", 2 * 8 * 8 * 4),
        # Four warps issue a wgmma together.
        ("HGMMA.64x128x16.F32.BF16", 2 * 64 * 128 * 16 / 4),
        ("QGMMA.64x64x32.F32.E4M3.E4M3", 2 * 64 * 64 * 32 / 4),
    ],
)
def test_matrix_work_follows_from_the_mnemonic(mnemonic: str, flops: float) -> None:
    assert mma_flops(named(mnemonic), amd=False) == flops


@pytest.mark.parametrize(
    ("mnemonic", "flops"),
    [
        ("v_mfma_f32_32x32x8_bf16_1k", 2 * 32 * 32 * 8),
        ("v_mfma_f32_16x16x16_f16", 2 * 16 * 16 * 16),
        ("v_mfma_f32_4x4x4_16b_f16", 2 * 4 * 4 * 4 * 16),
        ("v_mfma_f32_32x32x1_2b_f32", 2 * 32 * 32 * 1 * 2),
    ],
)
def test_so_it_does_on_amd_also_for_several_blocks_at_once(mnemonic: str, flops: float) -> None:
    assert mma_flops(named(mnemonic), amd=True) == flops


@pytest.mark.parametrize("mnemonic", ["UTCHMMA", "UTCQMMA.2CTA", "HMMA.99999.F32"])
def test_matrix_work_without_a_shape_is_unknown_not_zero(mnemonic: str) -> None:
    assert pipe_of(named(mnemonic)[0], amd=False) == "mma"
    assert mma_flops(named("HMMA.16816.F32.BF16", mnemonic), amd=False) is None


def test_no_matrix_instruction_is_no_matrix_work() -> None:
    assert mma_flops(named("FFMA", "MUFU.EX2"), amd=False) == 0


def test_accesses_by_width() -> None:
    sass = named("LDG.E.128", "LDGSTS.E.BYPASS.LTC128B.128", "LDG.E.U16", "STG.E", "LDS.128")
    assert global_accesses(sass, amd=False) == (Access(16, 2), Access(4, 1), Access(2, 1))
    amd = named("buffer_load_dwordx4", "global_load_ushort", "global_store_dwordx2", "ds_read_b64")
    assert global_accesses(amd, amd=True) == (Access(16, 1), Access(8, 1), Access(2, 1))


def test_bytes_weigh_not_instructions() -> None:
    accesses = (Access(16, 2), Access(4, 2))
    assert wide_share(accesses, 16) == 32 / 40
    assert wide_share(accesses, 4) == 1.0
    assert wide_share((), 16) is None


@pytest.mark.parametrize("amd", [False, True])
def test_loads_and_stores_are_apart_by_the_pointers_they_go_through(amd: bool) -> None:
    load, store = ("buffer_load_dwordx4", "global_store_dword") if amd else ("LDG.E.128", "STG.E")
    code = [Instruction(load, load, place) for place in ("1", "2", "2", "3", "4", "4", "4", "4")]
    code.append(Instruction(store, store, "1"))
    q, sums = frozenset({"q"}), frozenset({"sums"})
    known = Pointers({"1": q, "2": sums, "3": q | sums, "4": frozenset({ELSEWHERE})}, {"1": sums})
    found = moved(code, amd=amd, store=False, pointers=known, tensors=q)
    assert found == Moved((Access(16, 1),), (Access(16, 2),), (Access(16, 5),))
    assert found.bytes == 16 * 8
    assert found.wide_share(16) is None  # it would be a guess
    found = moved(code, amd=amd, store=True, pointers=known, tensors=q)
    assert found == Moved((), (Access(4, 1),))
    # Asked about all pointers, it does not matter which they are.
    assert moved(code, amd=amd, store=False) == Moved((Access(16, 8),))


def test_bulk_copies_are_counted_but_not_measured() -> None:
    code = named("UTMALDG.2D", "UBLKCP", "LDG.E.128")
    assert bulk_copies(code, amd=False) == 2
    assert global_accesses(code, amd=False) == (Access(16, 1),)


def test_atomics_are_found() -> None:
    assert atomics(named("RED.E.ADD.F32", "ATOMG.E.ADD", "ATOMS.OR", "REDUX"), amd=False) == 2
    assert atomics(named("global_atomic_add_f32", "global_load_dword"), amd=True) == 1


def test_shared_memory_bytes_of_a_lane() -> None:
    assert shared_bytes(named("LDS.128", "LDSM.16.M88.4", "STS", "STS.U8"), amd=False) == 37
    assert shared_bytes(named("ds_read2_b64", "ds_write_b16", "ds_read_b128"), amd=True) == 34

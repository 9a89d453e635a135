"""Compiling what a call would launch: the JIT's own view of tensors that hold nothing."""

import pytest
import torch
import triton.language as tl
from triton import jit

from visgen_kernels.launch import Launch
from visgen_kernels.static.compile import CompileFailed, compile_launch, source_of
from visgen_kernels.static.plain_loop import plain_loop
from visgen_kernels.static.report import report
from visgen_kernels.static.targets import TARGETS

SM_90, GFX942 = TARGETS["sm_90"], TARGETS["gfx942"]
ALIGNED = ["tt.divisibility", 16]


def plain(x: torch.Tensor, n: int, **options: int) -> Launch:
    constants = {"d": 64, "block_m": 64, "block_n": 64}
    return Launch(plain_loop, 1, (x, x, x, x, n, 0.125), constants, 4, 2, options)


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


def test_the_compiler_is_told_what_the_arguments_show() -> None:
    whole = meta(8, 1024, 64)
    source = source_of(plain(whole, 1024), SM_90)
    assert source.signature["q"] == "*bf16"
    assert source.signature["scale"] == "fp32"
    assert source.attributes[(0,)] == [ALIGNED]
    assert source.attributes[(4,)] == [ALIGNED]  # 1024 is a multiple of 16
    assert source.constants[(6,)] == 64
    assert source.options["num_warps"] == 4
    odd = source_of(plain(whole.view(-1)[1:], 1000), SM_90)
    assert odd.attributes[(0,)] == odd.attributes[(4,)] == []  # 2 bytes off, 1000 = 62.5 x 16


def test_integers_of_one_become_constants_and_large_ones_64_bits() -> None:
    one = source_of(plain(meta(8, 64), 1), SM_90)
    assert one.signature["n"] == "constexpr"
    assert one.constants[(4,)] == 1
    assert source_of(plain(meta(8, 64), 2**40), SM_90).signature["n"] == "i64"


def test_amd_hears_which_tensors_are_below_two_gigabytes() -> None:
    small, large = (source_of(plain(meta(n, 64), 64), GFX942) for n in (1024, 2**25))
    assert ["tt.pointer_range", 32] in small.attributes[(0,)]
    assert large.attributes[(0,)] == [ALIGNED]


@pytest.mark.parametrize("target", list(TARGETS))
def test_every_target_compiles_and_is_read_back(target: str) -> None:
    compiled = compile_launch(plain(meta(8, 1024, 64), 1024), TARGETS[target])
    assert compiled.stack == 0
    assert compiled.fits
    assert compiled.warps == 4
    assert 0 < compiled.registers <= 512
    found = report(compiled, scores=64 * 64, flops=2 * 64 * 64 * 128)
    assert found.interior.counts.matrix
    assert found.whole.counts.wide_share(16) is not None
    assert len(found.loops) == 1
    if target.startswith("sm"):  # gfx942's 32 x 32 products want 128 rows for four waves
        assert found.interior.exponentials == pytest.approx(1, abs=0.1)
        assert found.whole.counts.wide_share(16) == 1
    else:
        assert found.interior.mma_ratio == pytest.approx(1.5)
        assert found.interior.exponentials == pytest.approx(2, abs=0.1)


def test_an_address_of_unknown_alignment_makes_accesses_narrow() -> None:
    shifted = compile_launch(plain(meta(8, 1024, 64).view(-1)[1:], 1024), SM_90)
    accesses = report(shifted).whole.counts.loads.tensors
    assert [access.width for access in accesses] == [2]


@jit
def _broken(x, n: tl.constexpr):
    tl.store(x + tl.arange(0, n), 1.0)


def test_a_kernel_that_does_not_compile_is_named_with_its_target() -> None:
    with pytest.raises(CompileFailed, match=r"^_broken for sm_90: .*power of 2 \(at 2:"):
        compile_launch(Launch(_broken, 1, (meta(8),), {"n": 3}), SM_90)  # no power of two


def test_arguments_that_do_not_fit_are_an_error_of_the_launch() -> None:
    with pytest.raises(CompileFailed, match=r"_broken for sm_90: .*'n'"):
        source_of(Launch(_broken, 1, (meta(8),)), SM_90)
    with pytest.raises(CompileFailed, match="matrix_instr_nonkdim"):
        source_of(plain(meta(8, 64), 64, matrix_instr_nonkdim=16), SM_90)
    assert source_of(plain(meta(8, 64), 64, matrix_instr_nonkdim=16), GFX942)


def test_an_interpreted_kernel_has_no_code() -> None:
    with pytest.raises(CompileFailed, match="unset TRITON_INTERPRET"):
        source_of(Launch(_broken.fn, 1, (meta(8),), {"n": 4}), SM_90)

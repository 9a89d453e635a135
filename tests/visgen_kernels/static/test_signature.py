"""A user's own kernel by name: what a signature says, and every way to get it wrong."""

from pathlib import Path

import pytest

from visgen_kernels.launch import Launch
from visgen_kernels.static.compile import compile_launch, source_of
from visgen_kernels.static.report import report
from visgen_kernels.static.signature import KernelError, load_launches
from visgen_kernels.static.targets import TARGETS

FILE = str(Path(__file__).parent / "user_kernels.py")
SM_90 = TARGETS["sm_90"]
ALIGNED = [["tt.divisibility", 16]]


def only(name: str, signature: str | None = None, *constants: str) -> Launch:
    ((label, launch),) = load_launches(f"{FILE}:{name}", signature=signature, constants=constants)
    assert label == ""
    return launch


def test_hints_reach_the_compiler() -> None:
    source = source_of(only("add", "*fp32:16,*fp32, *bf16:16 ,i32:16", "BLOCK=64"), SM_90)
    assert list(source.signature.values()) == ["*fp32", "*fp32", "*bf16", "i32", "constexpr"]
    assert [source.attributes[(i,)] for i in range(4)] == [ALIGNED, [], ALIGNED, ALIGNED]
    assert source.constants[(4,)] == 64


def test_tuples_numbers_and_defaults() -> None:
    source = source_of(only("scaled", "*fp32:16, (i32, i64:16), fp32", "BLOCK=64"), SM_90)
    assert source.signature["sizes"] == ("i32", "i64")
    assert source.attributes[(1, 1)] == ALIGNED
    assert source.signature["factor"] == "fp32"
    assert source.constants[(4,)] == 2  # ROWS' default
    one = source_of(only("add", "*fp32,*fp32,*fp32,i32:1", "BLOCK=64"), SM_90)
    assert one.constants[(3,)] == 1


def test_a_kernel_without_matrix_instructions_has_counts_of_its_whole_code() -> None:
    compiled = compile_launch(only("add", "*fp32:16,*fp32:16,*fp32:16,i32", "BLOCK=512"), SM_90)
    found = report(compiled)
    assert found.loops == ()
    assert found.interior is found.whole
    assert found.whole.counts.total > 10
    # 512 numbers on 128 threads are one access of 4 bytes x 4; an unaligned n masks them apart.
    assert found.whole.counts.loads.bytes == 2 * 16
    assert found.whole.counts.stores.bytes == 16
    assert found.whole.instructions is None
    assert "no matrix instruction" in found.unread["loops"]
    assert "was not given" in found.unread["instructions"]


def test_an_exact_launch_is_taken_as_it_is() -> None:
    launch = only("launch_of_add")
    assert launch.programs == 4
    compiled = compile_launch(launch, SM_90)
    # n = 4096 is a multiple of 16, so masked accesses stay wide.
    assert report(compiled).whole.counts.wide_share(16) == 1


def test_every_config_of_an_autotuner_is_a_launch() -> None:
    found = load_launches(f"{FILE}:tuned", signature="*fp32:16,*fp32:16,i32")
    assert [label for label, _ in found] == ["BLOCK=128", "BLOCK=1024"]
    assert [launch.warps for _, launch in found] == [2, 8]
    assert [source_of(launch, SM_90).constants[(3,)] for _, launch in found] == [128, 1024]


@pytest.mark.parametrize(
    ("name", "signature", "constants", "message"),
    [
        ("ad", None, (), 'no "ad"; nearest kernel: "add"'),
        ("number", None, (), "is a int; a kernel is a triton.jit function"),
        ("returns_nothing", None, (), "returned None; it must return Launch"),
        ("launch_of_add", "i32", (), "--signature means nothing for it"),
        ("add", "i32", (), "needs a value of BLOCK; add --constant BLOCK=VALUE"),
        ("add", "i32", ("BLOCK",), "write NAME=VALUE"),
        ("add", "i32", ("BLOK=3",), 'no constant "BLOK"; nearest: "BLOCK"'),
        ("add", None, ("BLOCK=64",), r"takes 4 arguments beside constants \(x, y, out, n\)"),
        ("add", "*fp32,*fp32,*fp32", ("BLOCK=64",), "--signature has 3"),
        ("add", "*fp31,*fp32,*fp32,i32", ("BLOCK=64",), r'unknown type "\*fp31"; nearest: "\*fp3'),
        ("add", "*fp32:8,*fp32,*fp32,i32", ("BLOCK=64",), r"possible: \*fp32, \*fp32:16"),
        ("add", "*fp32,*fp32,*fp32,i32[", ("BLOCK=64",), "is no type; write"),
        ("add", "*fp32,*fp32,(*fp32,i32", ("BLOCK=64",), "parentheses do not match"),
    ],
)
def test_what_does_not_fit_is_named(
    name: str, signature: str | None, constants: tuple[str, ...], message: str
) -> None:
    with pytest.raises(KernelError, match=message):
        load_launches(f"{FILE}:{name}", signature=signature, constants=constants)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("add", "name a kernel as module:function"),
        ("nowhere.at_all:add", r'no module "nowhere.at_all" .* its file as nowhere/at_all.py'),
        ("nowhere.py:add", "there is no file nowhere.py"),
    ],
)
def test_a_module_that_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        load_launches(name)

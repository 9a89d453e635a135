"""Which arguments loads and stores go through: in TTGIR, in PTX, in the code of all targets."""

from pathlib import Path

import pytest
import torch

from visgen_kernels.launch import Launch
from visgen_kernels.static.compile import compile_launch
from visgen_kernels.static.counts import Access
from visgen_kernels.static.facts import tensors_of
from visgen_kernels.static.loops import Instruction
from visgen_kernels.static.pointers import ELSEWHERE, read_pointers
from visgen_kernels.static.report import Counts, report
from visgen_kernels.static.signature import load
from visgen_kernels.static.targets import TARGETS

FILE = Path(__file__).with_name("user_kernels.py")
HEAD = (
    "  tt.func public @k(%x: !tt.ptr<bf16> loc(#loc), %y: !tt.ptr<bf16> loc(#loc), "
    "%t.sums: !tt.ptr<f32> loc(#loc)) {\n"
)
TAIL = (
    '#loc1 = loc("k.py":1:5)\n#loc2 = loc("k.py":2:5)\n#loc3 = loc("k.py":3:5)\n'
    '#loc9 = loc("k.py":9:5)\n#loc4 = loc(callsite(#loc1 at #loc9))\n'
    '#loc5 = loc("part"(#loc4))\n#loc6 = loc(fused[#loc2, #loc3])\n'
)


def loads(*lines: str) -> dict[str, frozenset[str]]:
    return dict(read_pointers(HEAD + "".join(f"{line}\n" for line in lines) + TAIL).loads)


def names(*which: str) -> frozenset[str]:
    return frozenset(which)


def test_a_pointer_is_followed_to_its_argument() -> None:
    found = loads(
        "    %0 = tt.addptr %x, %c1 : !tt.ptr<bf16>, i32 loc(#loc)",
        "    %1 = tt.splat %0 : !tt.ptr<bf16> -> tensor<8x!tt.ptr<bf16>, #b> loc(#loc)",
        "    %2 = tt.load %1, %mask : tensor<8x!tt.ptr<bf16>, #b> loc(#loc1)",
        "    %3 = ttg.async_copy_global_to_local %t.sums, %m : !tt.ptr<f32> -> <8xf32> loc(#loc2)",
        "    %4 = amdg.buffer_load %y[%o], %mask : tensor<8xbf16, #b> loc(#loc3)",
    )
    assert found == {
        "k.py:1:5": names("x"),
        "k.py:2:5": names("t.sums"),
        "k.py:3:5": names("y"),
    }


def test_stores_are_apart_from_loads() -> None:
    found = read_pointers(
        HEAD
        + "    tt.store %x, %v : !tt.ptr<bf16> loc(#loc1)\n"
        + "    amdg.buffer_store %v, %y[%o], %mask : tensor<8xbf16, #b> loc(#loc2)\n"
        + TAIL
    )
    assert found.loads == {}
    assert found.stores == {"k.py:1:5": names("x"), "k.py:2:5": names("y")}


def test_inlined_code_stands_where_it_was_written_and_shares_its_answer() -> None:
    found = loads(
        "    %0 = tt.load %x : !tt.ptr<bf16> loc(#loc4)",
        "    %1 = tt.load %t.sums : !tt.ptr<f32> loc(#loc5)",
        "    %2 = tt.load %y : !tt.ptr<bf16> loc(#loc6)",
    )
    assert found["k.py:1:5"] == names("x", "t.sums")
    assert found["k.py:2:5"] == found["k.py:3:5"] == names("y")


def test_pointers_that_a_loop_exchanges_are_both() -> None:
    found = loads(
        "    %r:2 = scf.for %i = %lo to %hi step %c iter_args(%a = %x, %b = %y) -> (p, p)  : i32 {",
        "      %0 = tt.load %a : !tt.ptr<bf16> loc(#loc1)",
        "      scf.yield %b, %a : !tt.ptr<bf16>, !tt.ptr<bf16> loc(#loc)",
        "    } loc(#loc)",
        "    %1 = tt.load %r#1 : !tt.ptr<bf16> loc(#loc2)",
    )
    assert found == {"k.py:1:5": names("x", "y"), "k.py:2:5": names("x", "y")}


def test_branches_give_what_either_gives() -> None:
    found = loads(
        "    %r = scf.if %c -> (!tt.ptr<bf16>) {",
        "      scf.yield %x : !tt.ptr<bf16> loc(#loc)",
        "    } else {",
        "      scf.yield %y : !tt.ptr<bf16> loc(#loc)",
        "    } loc(#loc)",
        "    %0 = tt.load %r : !tt.ptr<bf16> loc(#loc1)",
        "    %1 = arith.select %c, %r, %x : !tt.ptr<bf16> loc(#loc)",
        "    %2 = tt.load %1 : !tt.ptr<bf16> loc(#loc2)",
    )
    assert found == {"k.py:1:5": names("x", "y"), "k.py:2:5": names("x", "y")}


def test_a_name_means_what_it_was_last_given() -> None:
    found = loads(
        "    scf.if %c {",
        "      %0 = tt.addptr %x, %c1 : !tt.ptr<bf16>, i32 loc(#loc)",
        "    } loc(#loc)",
        "    scf.for %i = %lo to %hi step %c iter_args(%0 = %unknown) -> (p)  : i32 {",
        "      %1 = tt.load %0 : !tt.ptr<f32> loc(#loc1)",
        "    } loc(#loc)",
    )
    assert found == {"k.py:1:5": names("t.sums")}


def test_a_pointer_of_unknown_way_is_any_of_its_type_and_one_from_memory_is_none() -> None:
    found = loads(
        "    %0 = some.thing %x : !tt.ptr<bf16> loc(#loc)",
        "    %1 = tt.load %0 : !tt.ptr<bf16> loc(#loc1)",
        "    %2 = tt.int_to_ptr %n : i64 -> !tt.ptr<bf16> loc(#loc)",
        "    %3 = tt.load %2 : !tt.ptr<bf16> loc(#loc2)",
    )
    assert found == {"k.py:1:5": names("x", "y"), "k.py:2:5": names(ELSEWHERE)}


def test_an_instruction_without_a_place_may_be_any_access_of_its_kind() -> None:
    found = read_pointers(
        HEAD
        + "    %0 = tt.load %x : !tt.ptr<bf16> loc(#loc1)\n"
        + "    %1 = tt.load %t.sums : !tt.ptr<f32> loc(#loc2)\n"
        + TAIL
    )
    known = Instruction("LDG.E", "LDG.E", "k.py:2:5")
    assert found.behind(known, store=False) == names("t.sums")
    unknown = Instruction("LDG.E", "LDG.E")
    assert found.behind(unknown, store=False) == names("x", "t.sums")
    assert found.behind(unknown, store=True) == names(ELSEWHERE)


def test_lines_of_inline_assembly_stand_where_it_begins() -> None:
    ptx = (
        ".loc 1 1 5\n// begin inline asm\n.loc 1 1 5\nmov.u32 %r1, 0;\n.loc 1 2 5\n"
        "@%p1 ld.global.b32 { %r1 }, [ %rd1 + 0 ];\n// end inline asm\n"
        'ld.param.b64 %rd2, [k_param_0];\n.file 1 "k.py"\n'
    )
    ttgir = (
        HEAD
        + "    %0 = tt.load %x : !tt.ptr<bf16> loc(#loc1)\n"
        + "    %1 = tt.load %t.sums : !tt.ptr<f32> loc(#loc2)\n"
        + TAIL
    )
    found = read_pointers(ttgir, ptx)
    assert found.loads["ptx:6"] == names("x")
    assert "ptx:8" not in found.loads


def counts(target: str, kernel: str = "centred") -> Counts:
    rows, columns = 64, 64
    x = torch.empty(rows * columns, device="meta", dtype=torch.bfloat16)
    mean = torch.empty(rows, device="meta")
    constants = {"ROWS": rows, "COLUMNS": columns}
    launch = Launch(load(f"{FILE}:{kernel}"), 1, (x, mean, x), constants, 4, 1)
    compiled = compile_launch(launch, TARGETS[target])
    assert tensors_of(launch) == names("x", "out")
    return report(compiled, tensors=tensors_of(launch)).whole.counts


@pytest.mark.parametrize("target", list(TARGETS))
def test_a_number_a_row_does_not_make_rows_narrow(target: str) -> None:
    found = counts(target)
    lanes = 4 * TARGETS[target].warp
    assert found.loads.tensors == (Access(16, 64 * 64 // 8 // lanes),)
    assert {access.width for access in found.loads.others} == {4}
    assert found.loads.unattributed == found.stores.unattributed == ()
    assert found.wide_share(16) == found.wide_share(16, stores=True) == 1


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_what_shares_its_place_with_other_pointers_is_unattributed(target: str) -> None:
    found = counts(target, "centred_alike")
    assert found.loads.tensors == ()
    assert found.loads.unattributed
    assert found.wide_share(16) is None
    assert found.wide_share(16, stores=True) == 1

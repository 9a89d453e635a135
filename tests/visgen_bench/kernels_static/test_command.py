"""`visgen-bench kernels static` as its users meet it."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from visgen_bench import cli

FILE = Path(__file__).parents[2] / "visgen_kernels" / "static" / "user_kernels.py"
ADD = (f"{FILE}:add", "--signature", "*fp32:16,*fp32:16,*fp32:16,i32:16", "--constant", "BLOCK=64")
Invoke = Callable[..., tuple[int, str, str]]


@pytest.fixture
def invoke(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Invoke:
    """Run the command in this process: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["visgen-bench", "kernels", "static", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


def test_an_own_kernel_is_profiled_without_a_gpu(invoke: Invoke, tmp_path: Path) -> None:
    code, out, err = invoke(*ADD, "--target", "sm_90")
    assert code == 0
    assert "add for sm_90" in out
    assert "registers: " in out
    assert "not read (loops): no matrix instruction" in out
    page = tmp_path / "results" / "runs" / "kernels-static" / "kernels.html"
    assert out.rstrip().endswith(f"report: {page.relative_to(tmp_path)}")
    assert "[1/1]" in err


def test_json_is_one_document_with_rows(invoke: Invoke) -> None:
    code, out, _ = invoke(*ADD, "--target", "sm_90", "--json", "--out", "there")
    rows = json.loads(out)["rows"]
    assert code == 0
    assert {row["device_name"] for row in rows} == {"sm_90"}
    assert {row["metric"] for row in rows} >= {"registers", "predicted_time"}
    for row in rows:
        assert row["value"] is not None or row["reason"]


def test_a_kernel_that_does_not_compile_ends_with_1(invoke: Invoke) -> None:
    code, out, err = invoke(f"{FILE}:skewed", "--signature", "*fp32", "--target", "sm_90")
    assert code == 1
    assert "failed: " in out
    assert "power of 2" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--target", "sm_09"), 'unknown target "sm_09"; nearest: "sm_90"'),
        (("--shape", "G9"), 'unknown shape "G9"; nearest: "G'),
        (("--kernel", "foward"), 'unknown kernel "foward"; nearest: "forward"'),
        (("--signature", "i32"), "--signature is of a kernel of your own"),
        (("--bytes", "3"), "--bytes is of a kernel of your own"),
        ((*ADD, "--shape", "G1"), "--shape is of the package's kernels"),
        (("torch:nothing_there",), 'torch has no "nothing_there"'),
        ((f"{FILE}:add",), "needs a value of BLOCK; add --constant BLOCK=VALUE"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    invoke: Invoke, arguments: tuple[str, ...], message: str
) -> None:
    code, out, err = invoke(*arguments)
    assert code == 2
    assert out == ""
    assert message in err.strip().splitlines()[-1]

"""Imports point down; the command line and readers of results pay for nothing heavy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "visgen_kernels": ROOT / "kernels/visgen_kernels",
    "visgen": ROOT / "visgen",
    "visgen_bench": ROOT / "bench/visgen_bench",
    "visgen_results": ROOT / "results/visgen_results",
}
ALLOWED = {
    "visgen_kernels": {"visgen_kernels"},
    "visgen": {"visgen", "visgen_kernels"},
    "visgen_bench": set(PACKAGES),
    "visgen_results": {"visgen_results"},
}
HEAVY = {
    "torchmetrics",
    "torchvision",
    "torch_fidelity",
    "sklearn",
    "pandas",
    "transformers",
    "timm",
    "scipy",
}


def imported(path: Path) -> set[str]:
    """Top-level names of every import of a file, those inside functions included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.add((node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_imports_point_down(package: str) -> None:
    files = sorted(PACKAGES[package].rglob("*.py"))
    assert files
    for path in files:
        upward = (imported(path) & set(PACKAGES)) - ALLOWED[package]
        assert not upward, f"{path.relative_to(ROOT)} imports {upward}"


def test_results_need_no_torch() -> None:
    for path in PACKAGES["visgen_results"].rglob("*.py"):
        assert "torch" not in imported(path), path


def loaded(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after `code`."""
    command = f"{code}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True, timeout=120
    )
    return set(done.stdout.split())


def test_the_command_line_starts_without_anything_heavy() -> None:
    assert not loaded("import visgen_bench.cli") & (HEAVY | {"torch", "numpy", "pyarrow"})


def test_a_worker_pays_for_torch_alone() -> None:
    code = "import visgen_bench.worker, visgen.catalogue, visgen_bench.metrics.evaluation"
    # pyarrow starts a thread, and a server with a second thread cannot be forked cleanly.
    assert not loaded(code) & (HEAVY | {"pyarrow"})


def test_no_file_is_named_after_nothing() -> None:
    vague = {"utils.py", "helpers.py", "common.py", "misc.py"}
    found = [p for folder in PACKAGES.values() for p in folder.rglob("*.py") if p.name in vague]
    assert not found

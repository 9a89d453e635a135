"""K5 in Triton's interpreter against float64 autograd of autograd of the definition."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def interpreted() -> dict[str, Any]:
    """What `interpreted_double.py` printed."""
    script = Path(__file__).with_name("interpreted_double.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_gradients_are_within_three_times_the_error_of_the_same_dtype(interpreted) -> None:
    assert len(interpreted["errors"]) > 40
    for name, found in interpreted["errors"].items():
        for which, one in found["gradients"].items():
            # What is not written stays NaN, and NaN is not at most anything.
            assert one["error"] <= 3 * one["low"] + 2 * one["rounding"] + 4e-6, (name, which, one)
            assert one["dtype"], (name, which)


def test_two_runs_give_the_same_bits(interpreted) -> None:
    twice = [found["same"] for found in interpreted["errors"].values() if found["twice"]]
    assert twice
    assert all(twice)


def test_what_is_not_finite_reaches_only_what_belongs_to_rows_that_see_it(interpreted) -> None:
    assert len(interpreted["hurt"]) == 3
    for mask, found in interpreted["hurt"].items():
        for name in ("grad", "q", "k", "v"):
            assert found[name] == {"broken": True, "others": True}, (mask, name)

"""`attention(implementation="triton")` with autograd, in Triton's interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def errors() -> dict[str, dict[str, float]]:
    """What `interpreted_call.py` printed."""
    script = Path(__file__).with_name("interpreted_call.py")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_outputs_and_both_derivatives_are_those_of_the_cpu_in_float64(errors) -> None:
    assert len(errors) == 13
    for name, found in errors.items():
        # Shares of the largest value; float32 rounds at 6e-8.
        assert found["out"] <= 1e-6, (name, found)
        assert found["first"] <= 2e-6, (name, found)
        assert found["second"] <= 4e-6, (name, found)

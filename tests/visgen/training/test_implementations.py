"""TransGAN trains alike through every implementation of attention, gradient penalty included."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("loss_curve.py")


def curve(implementation: str, *, interpreted: bool = False) -> dict[str, Any]:
    """Losses of three steps of WGAN-GP, and the absolute sums of the weights after them."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["TRITON_INTERPRET"] = "1" if interpreted else "0"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), implementation],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    return curve("reference")


@pytest.mark.parametrize(("implementation", "interpreted"), [("chunked", False), ("triton", True)])
def test_the_loss_curve_is_the_references_to_rounding(
    reference: dict[str, Any], implementation: str, interpreted: bool
) -> None:
    found = curve(implementation, interpreted=interpreted)
    assert len(found["curve"]) == len(reference["curve"]) == 3
    for ours, theirs in zip(found["curve"], reference["curve"], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5, abs=2e-6)
        assert "discriminator/penalty" in ours
    assert found["weights"] == pytest.approx(reference["weights"], rel=2e-6)

"""What attention needs beyond its results: layouts are not copied, no n x n array is held."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def measured(what: str) -> Any:
    script = Path(__file__).with_name("attention_memory.py")
    command = [sys.executable, str(script), what]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    return json.loads(done.stdout)


def test_no_layout_is_copied() -> None:
    for layout, found in measured("views").items():
        tensor = found["tensor"]  # megabytes of q, k, v, or the output, each
        # Beyond the result less than one permuted copy of one of them; q, k and v would be three.
        assert found["infer"] - tensor < 0.6 * tensor, layout
        # The packed gradient is three tensors.
        assert found["backward"] - 3 * tensor < 0.8 * tensor, layout


def test_second_derivative_at_4096_tokens_needs_less_than_a_gigabyte() -> None:
    # One array of 4096 x 4096 in float32 for 4 heads would be 268 MB alone; it was 81 when written.
    assert measured("penalty") < 200.0

"""The README's example runs, and what it says of sizes holds."""

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[2] / "kernels" / "README.md"


def test_example_runs_and_gives_the_shape_it_states() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    first, second = block.split("out.shape")
    exec(first, names)
    stated = re.search(r"# (\(.*\))", second)
    assert stated is not None
    assert str(tuple(names["out"].shape)) == stated.group(1)
    exec(second.partition("\n")[2], names)
    assert names["out"].shape == (2, 50, 4, 16)

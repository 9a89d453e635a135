"""Presets from entry points: a broken plug-in is named and harms nobody else."""

import sys
from pathlib import Path

import pytest

from visgen_bench.presets import GROUP, PresetError, load_presets

MODULE = "PRESETS = {'plugged': 3}\n"


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Make a distribution with an entry point, as an installer would leave it."""

    def make(name: str, code: str) -> None:
        (tmp_path / f"{name}.py").write_text(code)
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = {name}\n")

    monkeypatch.syspath_prepend(str(tmp_path))
    yield make
    for name in ("good_plugin", "bad_plugin", "odd_plugin"):
        sys.modules.pop(name, None)


def test_a_plug_in_adds_its_presets(install) -> None:
    install("good_plugin", MODULE)
    presets = load_presets()
    assert presets.find("plugged") == 3
    assert presets.broken == {}


def test_a_broken_plug_in_is_named_to_whoever_misses_a_model(install) -> None:
    install("good_plugin", MODULE)
    install("bad_plugin", "import not_there_at_all\n")
    install("odd_plugin", "PRESETS = [1]\n")
    presets = load_presets()
    assert presets.find("plugged") == 3
    assert set(presets.broken) == {"bad_plugin", "odd_plugin"}
    with pytest.raises(PresetError) as caught:
        presets.find("pluged")
    for part in ('nearest: "plugged"', "bad_plugin is broken", "not_there_at_all"):
        assert part in str(caught.value)


def test_a_config_that_can_be_changed_is_refused_with_the_fix(tmp_path: Path) -> None:
    file = tmp_path / "soft.py"
    file.write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Soft:\n    a: int = 1\n"
        "PRESETS = {'soft': Soft()}\n"
    )
    with pytest.raises(PresetError, match=r'"soft" can be changed; write .*frozen=True'):
        load_presets([file])


def test_a_plug_in_does_not_replace_what_is_there(install) -> None:
    install("good_plugin", "PRESETS = {'real-images': 3}\n")
    assert load_presets().find("real-images") != 3

"""Presets by name: the catalogue, the reference generators, plug-ins, and a user's own file.

A user's file is any Python file with a dict `PRESETS`; a plug-in is an entry point of the group
`visgen.models` that gives such a dict, or a module with one. A broken plug-in is named, and matters
only to whoever asks for a model that is nowhere else.
"""

import hashlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from visgen.names import hint_or_list
from visgen_bench.cell import Cell
from visgen_bench.errors import UsageError

GROUP = "visgen.models"


class PresetError(UsageError):
    """A model name that is nowhere, or a file or plug-in that gives no presets."""


@dataclass(frozen=True, kw_only=True)
class Presets:
    """Every model that can be named.

    `included` maps names of a user's files to the file; `broken` maps plug-ins to what is wrong.
    """

    configs: Mapping[str, Any]
    included: Mapping[str, str] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)

    def find(self, name: str) -> Any:
        """The config of a name; raises `PresetError` with the nearest one."""
        if name in self.configs:
            return self.configs[name]
        near = hint_or_list(name, self.configs)
        where = "visgen-bench list shows all, --include FILE adds yours"
        text = f'unknown model "{name}"{near} ({where})'
        for plugin, reason in self.broken.items():
            text += f"; plug-in {plugin} is broken: {reason}"
        raise PresetError(text)


def load_presets(include: Sequence[Path] = (), *, plugins: bool = True) -> Presets:
    """The catalogue with everything that was added to it.

    Raises:
        PresetError: if an included file cannot be used, or names a model that exists already.
    """
    from visgen.baselines import statistical
    from visgen.catalogue import CATALOGUE

    configs: dict[str, Any] = {**CATALOGUE, **statistical.PRESETS}
    broken: dict[str, str] = {}
    if plugins:
        for name, presets, reason in _plugin_presets():
            if reason:
                broken[name] = reason
            configs = {**presets, **configs}
    included: dict[str, str] = {}
    for file in include:
        for name, config in presets_of_file(file).items():
            if name in configs:
                raise PresetError(
                    f'{file} defines "{name}", which exists already; give it another name'
                )
            configs[name] = config
            included[name] = str(file.resolve())
    return Presets(configs=configs, included=included, broken=broken)


def config_of(cell: Cell) -> Any:
    """The config of a cell's model; what a worker builds from."""
    include = [Path(cell.include)] if cell.include else []
    return load_presets(include, plugins=cell.include is None).find(cell.model)


def presets_of_file(file: Path) -> dict[str, Any]:
    """`PRESETS` of a Python file, which is executed. Raises `PresetError`."""
    if not file.is_file():
        raise PresetError(f"--include {file}: no such file")
    # Registered under its content, so that dataclasses in it find their module.
    name = f"visgen_include_{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"
    module = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, file)
        if spec is None or spec.loader is None:
            raise PresetError(f"--include {file}: not a Python file; its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise PresetError(
                f"--include {file}: cannot be run: {type(error).__name__}: {error}"
            ) from error
    presets = getattr(module, "PRESETS", None)
    if not isinstance(presets, dict) or not presets:
        raise PresetError(f"--include {file}: has no dict PRESETS (name -> config)")
    try:
        _check_frozen(presets)
    except TypeError as error:
        raise PresetError(f"--include {file}: {error}") from error
    return presets


def _check_frozen(presets: Mapping[str, Any]) -> None:
    """Raise TypeError for a config that could change after its key was taken."""
    for name, config in presets.items():
        if isinstance(config, type):
            raise TypeError(f'PRESETS["{name}"] is a class; write {config.__name__}()')
        if type(config).__hash__ is None:
            raise TypeError(
                f'the config of "{name}" can be changed; write @dataclass(frozen=True) above '
                f"class {type(config).__name__}"
            )


def _plugin_presets() -> list[tuple[str, dict[str, Any], str]]:
    """(entry point, its presets, what is wrong with it)."""
    found = []
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            loaded = point.load()
            presets = getattr(loaded, "PRESETS", loaded)
            if not isinstance(presets, dict):
                raise TypeError(f"gives {type(presets).__name__}, not a dict of presets")
            _check_frozen(presets)
            found.append((point.name, presets, ""))
        except Exception as error:  # noqa: BLE001 - somebody else's code may raise anything
            found.append((point.name, {}, f"{type(error).__name__}: {error}"))
    return found

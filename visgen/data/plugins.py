"""Sets that other packages bring: entry points of a group, beside our own sets."""

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from visgen.data.dataset import DataError, DataMissing, UnknownData
from visgen.names import hint

Opened = TypeVar("Opened")


def known_names(specs: Sequence[str], group: str) -> list[str]:
    """Our own sets, then the plug-ins of the group (none of them is loaded)."""
    plugins = importlib.metadata.entry_points(group=group)
    return [*specs, *sorted({point.name for point in plugins})]


def check_known(
    spec: str,
    specs: Sequence[str],
    group: str,
    *,
    what: str,
    path_kind: str,
    is_path: Callable[[Path], bool],
) -> None:
    """Raise UnknownData, with the nearest match, if no set has this name; opens nothing.

    Args:
        spec: As somebody wrote it.
        specs: Our own sets.
        group: Of the plug-ins.
        what: Such sets are called.
        path_kind: `KIND:PATH` is anybody's own.
        is_path: Whether a path could be meant by that.
    """
    kind = spec.partition(":")[0]
    if kind == path_kind or spec in specs:
        return  # plug-ins are looked for only where our own sets end
    names = known_names(specs, group)
    if kind in names[len(specs) :]:
        return
    try:
        meant = is_path(Path(spec).expanduser())
    except (OSError, RuntimeError):  # too long for a name, or nobody's home
        meant = False
    near = f'; nearest: "{path_kind}:{spec}"' if meant else hint(spec, names)
    raise UnknownData(f'unknown {what} "{spec}"{near} (there are {", ".join(names)}).')


def open_plugin(
    group: str, spec: str, wanted: type[Opened], *arguments: Any, **options: Any
) -> Opened:
    """What the plug-in opens, called with spec, arguments and options.

    Raises:
        DataMissing: as the plug-in raised it.
        DataError: whatever else goes wrong while it loads is told under its name.
    """
    name = spec.partition(":")[0]
    point = next(iter(importlib.metadata.entry_points(group=group, name=name)))
    try:
        data = point.load()(spec, *arguments, **options)
    except (DataError, DataMissing):
        raise
    except Exception as error:  # somebody else's code may raise anything
        raise DataError(
            f'plug-in {point.name} ({point.value}) cannot open "{spec}": '
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(data, wanted):
        raise DataError(
            f'plug-in {point.name} ({point.value}) gave {type(data).__name__} for "{spec}"; '
            f"it must give a {wanted.__module__}.{wanted.__qualname__}."
        )
    return data

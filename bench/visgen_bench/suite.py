"""Suites: a TOML file, or a command line, becomes a list of cells; all typing errors end here.

    name = "digits"
    [defaults]                       # fields for every cell whose kind has them
    [[cell]]
    kind = "quality"
    model = ["transgan-digits8-tiny", "dcgan-digits8-tiny"]   # a list is an axis of the matrix
    [[gate]]                         # judged after the run (gates.py)

A list is an axis wherever the field is not itself a list; a list of lists is an axis of lists.
Axes multiply in the order in which they are written, the last one fastest.
"""

import dataclasses
import difflib
import itertools
import json
import tomllib
import typing
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from visgen.names import close, hint, hint_or_list
from visgen_bench import recipes
from visgen_bench.cell import KINDS, Cell, parse
from visgen_bench.errors import UsageError
from visgen_bench.gates import Gate
from visgen_bench.metrics.errors import ProtocolError
from visgen_results.metrics import QUALITY, UnknownMetric, info

Entry = dict[str, Any]
TOP_LEVEL = ("name", "description", "defaults", "cell", "gate")


class SuiteError(UsageError):
    """A suite, or a command line, that cannot be understood; one line that names the place."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placed:
    """A cell and where it was written, for messages."""

    cell: Cell
    where: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Suite:
    """A named list of cells, and the gates judged after them."""

    name: str
    description: str = ""
    cells: tuple[Placed, ...] = ()
    gates: tuple[Gate, ...] = ()
    entries: tuple[Entry, ...] = ()  # as written, for `to_toml`


def nearest(given: str, known: Iterable[str]) -> str:
    """The known name that is nearest to `given`, however far; empty if nothing is known."""
    known = list(known)
    far = difflib.get_close_matches(given, known, n=1, cutoff=0.0)
    return next(iter((*close(given, known), *far)), "")


def shipped() -> dict[str, str]:
    """Names of the suites that come with the package (`quick`, `published/...`), and their text."""
    folder = resources.files("visgen_bench").joinpath("suites")
    found = {}
    for prefix, place in (("", folder), ("published/", folder.joinpath("published"))):
        for file in sorted(place.iterdir(), key=lambda file: file.name):
            if file.name.endswith(".toml"):
                found[prefix + file.name[:-5]] = file.read_text("utf-8")
    return found


def load(given: str, settings: Sequence[str] = ()) -> Suite:
    """Read a suite file, or a shipped suite by its name.

    Args:
        given: A path that ends in `.toml`, or a shipped suite's name.
        settings: `key=value` texts that overrule the file (`--set`).

    Raises:
        SuiteError: one line: file, key, value, what is allowed and the nearest match.
    """
    if given.endswith(".toml"):
        try:
            text = Path(given).read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise SuiteError(f"suite {given}: cannot be read: {error}") from error
        return from_text(text, Path(given).name, settings)
    known = shipped()
    if given not in known:
        raise SuiteError(
            f'unknown suite "{given}"{_own_file(given) or hint(given, known)} '
            f"(shipped: {', '.join(known)}; a file of your own ends in .toml)"
        )
    return from_text(known[given], f"{given}.toml", settings)


def _own_file(given: str) -> str:
    """The hint for a suite of one's own whose name was given without its ending."""
    return f'; nearest: "{given}.toml"' if Path(f"{given}.toml").is_file() else ""


def from_text(text: str, file: str, settings: Sequence[str] = ()) -> Suite:
    """The suite written in `text`; `file` names it in messages. Raises `SuiteError`."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SuiteError(f"{file}: not TOML: {error}") from error
    _known_keys(document, TOP_LEVEL, file)
    name = document.get("name", file.removesuffix(".toml"))
    if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
        raise SuiteError(f"{file}: name = {_show(name)}; a name is a text without '/' in it")
    defaults = document.get("defaults", {})
    if not isinstance(defaults, dict):
        raise SuiteError(f"{file}: defaults = {_show(defaults)}; write a table [defaults]")
    entries = [
        _with_defaults(entry, defaults, f"{file}, cell {number}")
        for number, entry in enumerate(_tables(document, "cell", file), start=1)
    ]
    _known_keys(defaults, {key for kind in KINDS for key in _fields(kind)}, f"{file}, defaults")
    gates = _tables(document, "gate", file)
    return from_entries(name, entries, file, settings, str(document.get("description", "")), gates)


def from_entries(
    name: str,
    entries: Sequence[Entry],
    file: str,
    settings: Sequence[str] = (),
    description: str = "",
    gates: Sequence[Mapping[str, Any]] = (),
) -> Suite:
    """The suite of these cell tables (before the matrix is multiplied out). Raises `SuiteError`."""
    entries = _overrule(entries, settings)
    cells = []
    for number, entry in enumerate(entries, start=1):
        where = f"{file}, cell {number}"
        cells.extend(Placed(cell=cell, where=where) for cell in _cells(entry, where))
    if not cells:
        raise SuiteError(f"{file}: has no [[cell]]; a suite needs at least one")
    checked = tuple(
        _gate(gate, f"{file}, gate {number}") for number, gate in enumerate(gates, start=1)
    )
    return Suite(
        name=name,
        description=description,
        cells=tuple(cells),
        gates=checked,
        entries=tuple(entries),
    )


def _tables(document: Mapping[str, Any], key: str, file: str) -> list[dict[str, Any]]:
    tables = document.get(key, [])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise SuiteError(f"{file}: {key} = {_show(tables)}; write tables [[{key}]]")
    return tables


def _kind(entry: Mapping[str, Any], where: str) -> str:
    kind = entry.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        given = "is missing" if kind is None else f"= {_show(kind)} is unknown"
        near = hint(kind, KINDS) if isinstance(kind, str) else ""
        raise SuiteError(f"{where}: kind {given}{near} (allowed: {', '.join(KINDS)})")
    return kind


def _with_defaults(entry: Entry, defaults: Entry, where: str) -> Entry:
    fields = _fields(_kind(entry, where))
    return {**{key: value for key, value in defaults.items() if key in fields}, **entry}


def _fields(kind: str) -> dict[str, Any]:
    """Fields of a kind of cell that a suite may write, and their types."""
    fields = KINDS[kind].model_fields.items()
    # A user's file is named on the command line (--include): it is code, and a suite is not.
    return {"kind": str} | {name: field.annotation for name, field in fields if name != "include"}


def _known_keys(given: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in given:
        if key not in known:
            raise SuiteError(
                f'{where}: unknown key "{key}"{hint(key, known)} '
                f"(allowed: {', '.join(sorted(known))})"
            )


def _is_list(annotation: Any) -> bool:
    options = typing.get_args(annotation) if typing.get_origin(annotation) is not tuple else ()
    return typing.get_origin(annotation) is tuple or any(
        typing.get_origin(option) is tuple for option in options
    )


def _axis(value: Any, annotation: Any, where: str, key: str) -> list[Any]:
    """The values that one key takes."""
    if not isinstance(value, list):
        return [value]
    if _is_list(annotation) and not (value and all(isinstance(item, list) for item in value)):
        return [value]
    if not value:
        raise SuiteError(f"{where}: {key} = []; an empty axis gives no cells")
    return value


def _cells(entry: Entry, where: str) -> list[Cell]:
    """Multiply the axes out and check every cell."""
    kind = _kind(entry, where)
    fields = _fields(kind)
    for key in entry:
        if "recipe" in fields and key not in fields and key in recipes.fields():
            raise SuiteError(
                f'{where}: key "{key}" belongs to the recipe; write it below [cell.recipe]'
            )
    _known_keys(entry, fields, where)
    axes: dict[str, list[Any]] = {}
    for key, value in entry.items():
        if key == "recipe" and isinstance(value, dict):
            _check_objective(value, where)
            known = recipes.fields(value.get("objective"))
            _known_keys(value, known, f"{where}, recipe")
            for name, item in value.items():
                axes[f"recipe.{name}"] = _axis(item, known[name], where, f"recipe.{name}")
        elif key == "sampling" and isinstance(value, dict):
            for name, item in value.items():
                axes[f"sampling.{name}"] = _axis(item, float, where, f"sampling.{name}")
        else:
            axes[key] = _axis(value, fields[key], where, key)
    cells = []
    for values in itertools.product(*axes.values()):
        flat = dict(zip(axes, values, strict=True))
        cells.append(_cell(flat, where))
    return cells


def _check_objective(recipe: Mapping[str, Any], where: str) -> None:
    """Raise `SuiteError` for an objective there is not; a list of some is an axis."""
    given = recipe.get("objective")
    for one in given if isinstance(given, list) else [given]:
        if one not in recipes.OBJECTIVES:
            said = "is missing" if given is None else f"= {_show(one)} is unknown"
            near = hint(str(one), recipes.OBJECTIVES)
            raise SuiteError(
                f"{where}: recipe.objective {said}{near} (allowed: {', '.join(recipes.OBJECTIVES)})"
            )


def _cell(flat: Entry, where: str) -> Cell:
    nested: Entry = {}
    for key, value in flat.items():
        table, dot, name = key.partition(".")
        if dot:
            nested.setdefault(table, {})[name] = value
        else:
            nested[key] = value
    try:
        return parse(json.dumps(nested, default=str))
    except ValidationError as error:
        raise SuiteError(_explain(error, where)) from error


def _gate(table: Mapping[str, Any], where: str) -> Gate:
    _known_keys(table, Gate.model_fields, where)
    # TOML has no null: `false` leaves a condition out.
    written = {key: None if value is False else value for key, value in table.items()}
    try:
        gate = Gate.model_validate_json(json.dumps(written, default=str))
    except ValidationError as error:
        raise SuiteError(_explain(error, where)) from error
    for name in gate.metrics:
        try:
            _known_metric(name)
        except ProtocolError as error:
            raise SuiteError(f"{where}: metrics: {error}") from error
        except UnknownMetric as error:
            near = hint_or_list(name, QUALITY)
            raise SuiteError(f'{where}: unknown metric "{name}"{near}') from error
    return gate


def _known_metric(name: str) -> None:
    """Raise `UnknownMetric` for a metric that there is not, `ProtocolError` for a broken one."""
    try:
        info(name)
    except UnknownMetric:
        from visgen_bench.metrics import plugins  # imports torch, which most gates do not need

        if plugins.find(name) is None:
            raise


def _explain(error: ValidationError, where: str) -> str:
    """Pydantic's first error as one line: place, key, value, what is allowed, nearest match."""
    first = error.errors(include_url=False)[0]
    tags = {*KINDS, *(recipes.OBJECTIVES if first["loc"][1:2] == ("recipe",) else ())}
    path = [str(part) for part in first["loc"] if part not in tags]
    key = ".".join(path)
    text = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f'{where}: key "{key}" is missing'
    if not key:
        return f"{where}: {text}"
    value = first["input"]
    if first["type"] == "value_error" and isinstance(value, dict):
        return f"{where}: {key}: {text}"
    near = ""
    expected = first.get("ctx", {}).get("expected")
    if first["type"] == "literal_error" and isinstance(expected, str) and isinstance(value, str):
        choices = [choice.strip("' ") for choice in expected.replace(" or ", ",").split(",")]
        near = hint(value, choices)
    return f"{where}: {key} = {_show(value)}: {text[:1].lower()}{text[1:]}{near}"


def _show(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _overrule(entries: Sequence[Entry], settings: Sequence[str]) -> list[Entry]:
    """Apply `--set key=value` to every cell whose kind has the key.

    `KIND.key` and `MODEL.key` reach the cells of one kind or one model only.
    """
    changed = [{**entry} for entry in entries]
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise SuiteError(f'--set {setting}: write key=value, as in "--set samples=200"')
        value = toml_value(text)
        head, dot, rest = key.partition(".")
        name, targets = key, changed
        if dot and head in KINDS:
            name, targets = rest, [e for e in changed if e.get("kind") == head]
        elif dot and any(head in _models(e) for e in changed):
            changed = [part for e in changed for part in _apart(e, head)]
            name, targets = rest, [e for e in changed if _models(e) == [head]]
        if not sum([_put(entry, name, value) for entry in targets]):
            known = {field for e in targets for field in _fields(_kind(e, "--set"))}
            known |= {f"recipe.{field}" for field in recipes.fields()}
            raise SuiteError(
                f'--set {setting}: no cell has a key "{name}"{hint_or_list(name, sorted(known))}'
            )
    return changed


def _models(entry: Entry) -> list[Any]:
    given = entry.get("model", [])
    return given if isinstance(given, list) else [given]


def _apart(entry: Entry, model: str) -> list[Entry]:
    """The entry, cut so that `model` stands alone; the order of the models is kept."""
    models = _models(entry)
    if model not in models or len(models) == 1:
        return [entry]
    place = models.index(model)
    parts = (models[:place], [model], models[place + 1 :])
    return [{**entry, "model": part} for part in parts if part]


def _put(entry: Entry, name: str, value: Any) -> bool:
    """Set a field if this kind of cell has it."""
    fields = _fields(_kind(entry, "--set"))
    if name.startswith("recipe."):
        field = name.removeprefix("recipe.")
        recipe = entry.get("recipe") or {}
        if "recipe" not in fields or field not in recipes.fields(recipe.get("objective")):
            return False
        entry["recipe"] = {**recipe, field: value}
        return True
    if name.startswith("sampling."):
        if "sampling" not in fields:
            return False
        entry["sampling"] = {**(entry.get("sampling") or {}), name.removeprefix("sampling."): value}
        return True
    if name not in fields:
        return False
    entry[name] = value
    return True


def toml_value(text: str) -> Any:
    """A command line's value: a TOML value where it is one, else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def to_toml(suite: Suite) -> str:
    """The TOML that this suite stands for; `load` of it gives the same cells."""
    lines = [f"name = {_toml(suite.name)}"]
    if suite.description:
        lines.append(f"description = {_toml(suite.description)}")
    for entry in suite.entries:
        lines += ["", "[[cell]]", *_table(entry)]
    for gate in suite.gates:
        limits = {k: False if v is None else v for k, v in gate.model_dump().items()}
        lines += ["", "[[gate]]", *_table(limits)]
    return "\n".join(lines) + "\n"


def _table(entry: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in entry.items() if value is not None]


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(_table(value)) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # A TOML basic string, number or boolean is written as in JSON.
    return json.dumps(value, ensure_ascii=False)

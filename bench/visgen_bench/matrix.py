"""A suite from the command line: options become cell tables, commas become axes.

    --model transgan-cifar10,dcgan-cifar10 --kind performance --batch-size 1,8 --dtype fp32,bf16

is the suite with one `[[cell]]` of kind performance whose keys are lists. An option goes to the
kinds that have such a key; one that none of the chosen kinds has is a mistake.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from visgen.names import hint
from visgen_bench.cell import KINDS
from visgen_bench.suite import Entry, Suite, SuiteError, from_entries, toml_value

# Keys whose values may themselves contain a comma, or that are one list for all cells.
LISTS = ("metrics",)


def from_options(
    options: Mapping[str, str | bool | None], settings: Sequence[str], name: str = "custom"
) -> Suite:
    """The suite that a command line stands for.

    Args:
        options: Keys of cells with their texts as typed (`"1,8"`), flags as bool, None if not
            given. `kind` may list several.
        settings: `key=value` texts of `--set`.

    Raises:
        SuiteError: for an option that fits no chosen kind, or a value that fits no key.
    """
    given = {key: value for key, value in options.items() if value not in (None, False)}
    kinds = _kinds(given)
    given.pop("kind", None)
    used: set[str] = set()
    entries = []
    for kind in kinds:
        fields = KINDS[kind].model_fields
        entry: Entry = {"kind": kind}
        for key, value in given.items():
            if key in fields:
                entry[key] = _value(key, value)
                used.add(key)
        entries.append(entry)
    for key in given:
        if key not in used:
            having = ", ".join(kind for kind, model in KINDS.items() if key in model.model_fields)
            raise SuiteError(
                f"--{_flag(key)} belongs to {having} cells; --kind is {', '.join(kinds)}"
            )
    return from_entries(name, entries, "the command line", _settings(entries, settings))


def _kinds(given: Mapping[str, str | bool]) -> list[str]:
    """As given; else quality if there is data to compare with, performance if not."""
    text = given.get("kind")
    if not isinstance(text, str):
        return ["quality" if "data" in given and "phase" not in given else "performance"]
    kinds = [part.strip() for part in text.split(",")]
    for kind in kinds:
        if kind not in KINDS:
            raise SuiteError(
                f"--kind {kind} is unknown{hint(kind, KINDS)} (allowed: {', '.join(KINDS)})"
            )
    return kinds


def _settings(entries: Sequence[Entry], settings: Sequence[str]) -> Sequence[str]:
    """A recipe given piece by piece needs its table to exist."""
    if any(setting.partition("=")[0].endswith("recipe") for setting in settings):
        return settings
    for entry in entries:
        if entry["kind"] == "train":
            entry.setdefault("recipe", {})
    return settings


def _value(key: str, value: str | bool) -> Any:
    if isinstance(value, bool):
        return value
    parts = [part.strip() for part in value.split(",") if part.strip()]
    values = [_typed(key, part) for part in parts]
    if key in LISTS:
        return values
    return values[0] if len(values) == 1 else values


def _typed(key: str, text: str) -> Any:
    """A number where the key takes numbers; every other key takes text."""
    numeric = ("samples", "seed", "batch", "devices", "threads")
    return toml_value(text) if key in numeric else text


def _flag(key: str) -> str:
    return {"batch": "batch-size", "devices": "per-model"}.get(key, key.replace("_", "-"))

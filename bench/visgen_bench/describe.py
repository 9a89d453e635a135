"""What can be named in a suite, and what each name means, as plain text and as JSON."""

import dataclasses
from typing import Any

from visgen.names import hint
from visgen_bench.errors import usage_errors
from visgen_bench.presets import Presets
from visgen_bench.suite import SuiteError, from_text, shipped, to_toml


def everything(presets: Presets) -> dict[str, list[dict[str, Any]]]:
    """Models, suites, metrics and data by name, one line each."""
    from visgen.data.opening import data_names
    from visgen_bench.metrics import plugins
    from visgen_bench.metrics.evaluation import names
    from visgen_results.metrics import describe

    broken = plugins.broken()  # loads all plug-ins, so that the table has their metrics
    return {
        "models": [_model_line(name, config) for name, config in presets.configs.items()],
        "suites": [_suite_line(name, text) for name, text in shipped().items()],
        "metrics": [
            {"name": name, "description": describe(name).description}
            for name in names()
            if name not in broken
        ],
        "data": [{"name": spec} for spec in data_names()],
    }


def _model_line(name: str, config: Any) -> dict[str, Any]:
    size = getattr(config, "image_size", None)
    return {
        "name": name,
        "family": getattr(config, "family", ""),
        "task": getattr(config, "task", ""),
        "size": f"{size[0]}x{size[1]}" if size else "the data's",
        "zoo": ", ".join(_zoo(name)),
    }


def _zoo(model: str) -> list[str]:
    from visgen import zoo

    return [name for name, entry in zoo.entries().items() if entry.preset == model]


def _suite_line(name: str, text: str) -> dict[str, Any]:
    suite = from_text(text, f"{name}.toml")
    return {"name": name, "cells": len(suite.cells), "description": suite.description}


def one(name: str, presets: Presets) -> dict[str, Any]:
    """All that is known of a model, a shipped suite, a metric or zoo weights.

    Raises:
        SuiteError: if the name is none of these; names the nearest.
    """
    from visgen import zoo
    from visgen_bench.metrics.errors import ProtocolError
    from visgen_bench.metrics.evaluation import names

    if name in presets.configs:
        return _model(name, presets.configs[name])
    if name in shipped():
        suite = from_text(shipped()[name], f"{name}.toml")
        return {"suite": name, "description": suite.description, "toml": to_toml(suite)}
    if name in names():
        with usage_errors(ProtocolError):
            return _metric(name)
    if name in zoo.entries():
        return {"weights": name, **_facts(zoo.entries()[name])}
    known = [*presets.configs, *shipped(), *names(), *zoo.entries()]
    raise SuiteError(f'nothing is called "{name}"{hint(name, known)} (visgen-bench list shows all)')


def _model(name: str, config: Any) -> dict[str, Any]:
    found = {"model": name, "module": type(config).__module__, **_model_line(name, config)}
    found["config"] = _facts(config)
    if hasattr(config, "build"):
        found["parameters"] = _parameters(config)
    return found


def _parameters(config: Any) -> dict[str, int]:
    """Trainable values of each part, counted without memory for them."""
    import torch

    with torch.device("meta"):
        networks = config.build(attention="reference").networks()
    return {part: sum(p.numel() for p in net.parameters()) for part, net in networks.items()}


def _metric(name: str) -> dict[str, Any]:
    from visgen_bench.metrics.evaluation import available
    from visgen_bench.metrics.protocol import protocol
    from visgen_results.metrics import describe

    info = describe(name)
    direction = {True: "higher is better", False: "lower is better", None: "no direction"}
    return {
        "metric": name,
        "description": info.description,
        "direction": direction[info.higher_is_better],
        **_facts(protocol(name)),
        "here": available(name) or "can be computed",
    }


def _facts(thing: Any) -> dict[str, Any]:
    if not dataclasses.is_dataclass(thing) or isinstance(thing, type):
        return {"repr": repr(thing)}
    pairs = ((field.name, getattr(thing, field.name)) for field in dataclasses.fields(thing))
    return {name: _plain(value) for name, value in pairs}


def _plain(value: Any) -> Any:
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "items"):
        return {str(key): _plain(item) for key, item in value.items()}
    return _facts(value) if dataclasses.is_dataclass(value) else str(value)


def lines(facts: dict[str, Any], indent: str = "") -> list[str]:
    """Nested facts as indented text."""
    found = []
    for key, value in facts.items():
        if isinstance(value, dict):
            found += [f"{indent}{key}:", *lines(value, indent + "  ")]
        elif isinstance(value, str) and "\n" in value:
            found += [f"{indent}{key}:", *(f"{indent}  {line}" for line in value.splitlines())]
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else value
            found.append(f"{indent}{key}: {text}")
    return found


def columns(rows: list[dict[str, Any]], indent: str = "  ") -> list[str]:
    """Rows as aligned columns without a heading."""
    if not rows:
        return [f"{indent}(none)"]
    texts = [[str(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    padded = (
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        for row in texts
    )
    return [f"{indent}{line}".rstrip() for line in padded]

"""The one table of models: preset name -> config."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

from visgen.baselines import dcgan, statistical
from visgen.models import transgan

CATALOGUE: dict[str, Any] = {**transgan.PRESETS, **dcgan.PRESETS, **statistical.PRESETS}


class UnknownPreset(ValueError):
    """A name that is not in the catalogue."""


def find(name: str, catalogue: dict[str, Any] = CATALOGUE) -> Any:
    """The config called `name`.

    Raises:
        UnknownPreset: with the nearest name.
    """
    if name not in catalogue:
        near = get_close_matches(name, catalogue, n=1, cutoff=0.0)
        hint = f'; nearest: "{near[0]}"' if near else ""
        raise UnknownPreset(f'unknown model "{name}"{hint} (visgen-bench list shows all)')
    return catalogue[name]

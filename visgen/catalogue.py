"""The one table of models: preset name -> config."""

from __future__ import annotations

from typing import Any

from visgen.baselines import conv_lstm, dcgan, statistical, unet3d, video_statistics
from visgen.models import transgan, videogpt
from visgen.names import hint_or_list

CATALOGUE: dict[str, Any] = {
    **transgan.PRESETS,
    **videogpt.PRESETS,
    **dcgan.PRESETS,
    **conv_lstm.PRESETS,
    **unet3d.PRESETS,
    **statistical.PRESETS,
    **video_statistics.PRESETS,
}


class UnknownPreset(ValueError):
    """A name that is not in the catalogue."""


def find(name: str, catalogue: dict[str, Any] = CATALOGUE) -> Any:
    """The config called `name`.

    Raises:
        UnknownPreset: with the nearest name.
    """
    if name not in catalogue:
        near = hint_or_list(name, catalogue)
        raise UnknownPreset(f'unknown model "{name}"{near} (visgen-bench list shows all)')
    return catalogue[name]

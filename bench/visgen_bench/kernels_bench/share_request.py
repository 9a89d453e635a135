"""What `kernels share` is asked for: a model, a phase, and implementations side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgen_bench.cell import PHASES
from visgen_bench.errors import UsageError
from visgen_bench.kernels_bench.request import (
    check_device,
    check_name,
    chosen_names,
    default_device,
)
from visgen_bench.presets import Presets

DEFAULT_PHASES = ("sample", "d_step")
DTYPES = ("fp32", "bf16")
IMPLEMENTATIONS = ("triton", "chunked", "sdpa", "sdpa-math", "reference")


@dataclass(frozen=True, kw_only=True)
class ShareRequest:
    """One model in one phase.

    `seconds`, `fewest` and `most` are of the rounds of whole steps, and again of those of attention
    alone; as in `request.Group`.
    """

    model: str
    phase: str
    implementations: tuple[str, ...]
    device: str
    dtype: str
    batch: int
    threads: int = 1
    seconds: float = 10.0
    fewest: int = 6
    most: int = 60
    seed: int = 0
    include: tuple[Path, ...] = ()

    @property
    def device_type(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]

    @property
    def name(self) -> str:
        """For progress and messages."""
        return f"{self.model} {self.phase} b{self.batch}"

    def to_json(self) -> str:
        """The request as one line."""
        return json.dumps(dataclasses.asdict(self), default=str)

    @staticmethod
    def from_json(text: str) -> ShareRequest:
        """Inverse of `to_json`."""
        fields = json.loads(text)
        fields["implementations"] = tuple(fields["implementations"])
        fields["include"] = tuple(Path(path) for path in fields["include"])
        return ShareRequest(**fields)


def share_requests(
    *,
    presets: Presets,
    include: tuple[Path, ...],
    models: str | None,
    phases: str | None,
    implementations: str | None,
    device: str | None,
    dtype: str | None,
    batch: int,
    threads: int,
    seconds: float | None,
    seed: int = 0,
) -> list[ShareRequest]:
    """The requests that a command line asks for; None stands for all models with attention.

    Raises:
        UsageError: for a name that does not exist, with the nearest one.
    """
    device = device or default_device()
    device_type = check_device(device)
    known = presets.configs
    ours = "chunked" if device_type == "cpu" else "triton"
    otherwise = tuple(n for n in IMPLEMENTATIONS if n not in ("triton", "chunked") or n == ours)
    names = chosen_names(models, known, "model", _with_attention(known))
    kind = dtype or "fp32"
    check_name(kind, DTYPES, "dtype")
    chosen = chosen_names(implementations, IMPLEMENTATIONS, "attention", otherwise)
    if ours not in chosen:
        chosen = (ours, *chosen)  # a gain is one of ours over another
    return [
        ShareRequest(
            model=model,
            phase=phase,
            implementations=chosen,
            device=device,
            dtype=kind,
            batch=batch,
            threads=threads,
            seconds=seconds or 10.0,
            seed=seed,
            include=include,
        )
        for model in names
        for phase in chosen_names(phases, PHASES, "phase", DEFAULT_PHASES)
    ]


def _with_attention(known: Mapping[str, Any]) -> tuple[str, ...]:
    from visgen_bench.resolution import uses_attention

    found = tuple(name for name, config in known.items() if uses_attention(config))
    if not found:
        raise UsageError("no preset has attention")
    return found

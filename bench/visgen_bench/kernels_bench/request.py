"""What `kernels bench` is asked for: shapes x directions, each a group of backends side by side.

A group is measured in one process, because a ratio needs both sides taken in turns; groups have a
process each, so that one which dies takes nothing else along.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from visgen.names import hint
from visgen_bench.errors import UsageError
from visgen_bench.kernels_bench.names import BACKENDS, default_backends

DIRECTIONS = ("forward", "backward", "double_backward")
DTYPES = ("bf16", "fp16", "fp32")
# Small enough for a laptop's CPU at a batch of 2, and of every kind: position bias, key bias,
# class token, second derivative, axes, masks, key lengths.
QUICK_SHAPES = ("G1", "D4", "V1", "T2", "W3", "C1")
QUICK_BATCH = 2


@dataclass(frozen=True, kw_only=True)
class Group:
    """One shape in one direction, and the backends that are compared over it.

    Attributes:
        shape: Id of a reference shape.
        direction: `forward`, `backward`, `double_backward`.
        backends: Names (`names.BACKENDS`), ours first.
        device: "cpu", "cuda", "cuda:1".
        dtype: "bf16", "fp16", "fp32".
        batch: Samples; None: the reference shape's own.
        threads: Of a CPU.
        seconds: Of timed rounds.
        fewest: Rounds even if the seconds are over; up to six times the seconds.
        most: Rounds at most.
        seed: Of the tensors' content.
    """

    shape: str
    direction: str
    backends: tuple[str, ...]
    device: str
    dtype: str
    batch: int | None = None
    threads: int = 1
    seconds: float = 5.0
    fewest: int = 6
    most: int = 200
    seed: int = 0

    @property
    def device_type(self) -> str:
        """The device without its number."""
        return self.device.partition(":")[0]

    @property
    def name(self) -> str:
        """For progress and messages."""
        return f"{self.shape} {self.direction}"

    def to_json(self) -> str:
        """The group as one line."""
        return json.dumps(dataclasses.asdict(self))

    @staticmethod
    def from_json(text: str) -> Group:
        """Inverse of `to_json`."""
        fields = json.loads(text)
        return Group(**{**fields, "backends": tuple(fields["backends"])})


def groups(
    *,
    shapes: str | None,
    directions: str | None,
    backends: str | None,
    device: str | None,
    dtype: str | None,
    batch: int | None,
    threads: int,
    seconds: float | None,
    quick: bool,
    seed: int = 0,
) -> list[Group]:
    """The groups that a command line asks for; commas separate names, None stands for all.

    quick: six small shapes, a batch of 2 and less than a second of rounds, where nothing else is
    said.

    Raises:
        UsageError: for a name that does not exist, with the nearest one.
    """
    from visgen_kernels.shapes import SHAPES

    device = device or default_device()
    device_type = check_device(device)
    chosen = chosen_names(shapes, SHAPES, "shape", QUICK_SHAPES if quick else tuple(SHAPES))
    ways = chosen_names(directions, DIRECTIONS, "direction", ())
    names = chosen_names(_without_aliases(backends, device), BACKENDS, "backend", ())
    kind = dtype or ("fp32" if device_type == "cpu" else "bf16")
    check_name(kind, DTYPES, "dtype")
    found = []
    for id in chosen:
        shape = SHAPES[id]
        for way in ways or _own_directions(shape.kind, shape.second_derivative):
            found.append(
                Group(
                    shape=id,
                    direction=way,
                    backends=names or default_backends(shape, way, device_type),
                    device=device,
                    dtype=kind,
                    batch=batch or (QUICK_BATCH if quick else None),
                    threads=threads,
                    seconds=seconds or (0.6 if quick else 5.0),
                    seed=seed,
                )
            )
    return found


def _own_directions(kind: str, second_derivative: bool) -> tuple[str, ...]:
    """The directions that training or sampling takes with such a layer."""
    if kind != "attention":
        return ("forward",)
    return DIRECTIONS if second_derivative else DIRECTIONS[:2]


def _without_aliases(given: str | None, device: str) -> str | None:
    if given is None:
        return None
    from visgen_kernels import resolve

    parts = [part.strip() for part in given.split(",")]
    return ",".join(resolve(device) if part == "ours" else part for part in parts)


def chosen_names(
    given: str | None, known: Iterable[str], what: str, otherwise: Sequence[str]
) -> tuple[str, ...]:
    """The names in `given`, checked; `all` and None have their meaning."""
    if given is None:
        return tuple(otherwise)
    if given == "all":
        return tuple(known)
    known = tuple(known)
    folded = {name.lower(): name for name in known}
    names = [part.strip() for part in given.split(",") if part.strip()]
    found = [folded.get(name.lower(), name) for name in names]
    for name in found:
        check_name(name, known, what)
    if not found:
        raise UsageError(f'--{what} "{given}" names nothing (known: {", ".join(known)})')
    return tuple(dict.fromkeys(found))


def check_name(name: str, known: Iterable[str], what: str) -> None:
    """Raise `UsageError` with the nearest name, if there is no such one."""
    known = tuple(known)
    if name not in known:
        near = hint(name, known)
        raise UsageError(f'unknown {what} "{name}"{near} (known: {", ".join(known)})')


def default_device() -> str:
    """A GPU if torch sees one."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def check_device(device: str) -> str:
    """The device's type.

    Raises:
        UsageError: for a device that is not here, or of another kind.
    """
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise UsageError(f'--device "{device}": use cpu, cuda or cuda:N')
    if kind == "cuda":
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(number or 0) >= count:
            raise UsageError(
                f"--device {device}: torch sees {count} CUDA devices here; use --device cpu, "
                "which times the CPU implementations and says so"
            )
    return kind

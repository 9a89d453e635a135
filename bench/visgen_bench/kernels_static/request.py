"""What `kernels static` is asked for: layers x directions x targets, or a kernel of the user's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from visgen_bench.errors import UsageError
from visgen_kernels.shapes import SHAPES, find_shape
from visgen_kernels.static.facts import KERNELS
from visgen_kernels.static.specimens import DIRECTIONS, DTYPES
from visgen_kernels.static.targets import TARGETS, find_target


@dataclass(frozen=True)
class Task:
    """One direction of one layer on one target: all the kernels that it launches.

    Attributes:
        shape: Id of the layer.
        direction: `forward`, ...
        target: `sm_90`, ...
        dtype: Of the tensors.
        kernels: Those to be examined; empty: all.
    """

    shape: str
    direction: str
    target: str
    dtype: str = "bf16"
    kernels: frozenset[str] = frozenset()

    @property
    def name(self) -> str:
        """For progress lines."""
        return f"{self.shape} {self.direction} {self.target}"


@dataclass(frozen=True)
class OwnTask:
    """A kernel of the user's on one target.

    Attributes:
        name: `module:function` or `file.py:function`.
        target: `sm_90`, ...
        signature, constants, options, warps, stages: As `signature.load_launches` takes them.
        programs: Size of the grid; None: unknown, as are the next four.
        scores: That one pass of its main loop computes.
        flops: Matrix FLOPs that such a pass needs.
        passes: Of a program through its main loop.
        moved: Bytes that the whole grid has to move at least.
    """

    name: str
    target: str
    signature: str | None = None
    constants: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    warps: int = 4
    stages: int = 3
    programs: int | None = None
    scores: float | None = None
    flops: float | None = None
    passes: float | None = None
    moved: float | None = None


def make_tasks(
    *,
    shapes: Sequence[str] = (),
    directions: Sequence[str] = (),
    kernels: Sequence[str] = (),
    targets: Iterable[str] = (),
    dtype: str = "bf16",
) -> list[Task]:
    """Tasks of the package's kernels; what is left out means all.

    Raises:
        UsageError: for a name that does not exist (the nearest is named), or if nothing is left.
    """
    chosen = [_shape(name) for name in shapes] or list(SHAPES)
    wanted = [_one_of("kernel", name, KERNELS) for name in kernels]
    ways = [_one_of("direction", name, DIRECTIONS) for name in directions] or list(DIRECTIONS)
    where = chosen_targets(targets)
    _one_of("dtype", dtype, DTYPES)
    if wanted:
        ways = [way for way in ways if any(way in KERNELS[kernel] for kernel in wanted)]
    found = [
        Task(shape, way, target, dtype, frozenset(wanted))
        for target in where
        for shape in chosen
        for way in ways
        if _has(shape, way)
    ]
    if not found:
        asked = (("shape", shapes), ("direction", directions), ("kernel", kernels))
        given = ", ".join(f"--{name} {','.join(values)}" for name, values in asked if values)
        raise UsageError(f"no kernel fits {given} together; leave one of them out")
    return found


def chosen_targets(names: Iterable[str]) -> list[str]:
    """Targets by name; none named: all.

    Raises:
        UsageError: for a name that does not exist.
    """
    try:
        return [find_target(name).name for name in names] or list(TARGETS)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _has(shape: str, direction: str) -> bool:
    """Whether a layer is ever differentiated that often, and is of the kind."""
    layer = SHAPES[shape]
    if layer.kind != "attention":
        return direction == layer.kind
    if direction == "double_backward":
        return layer.second_derivative
    return direction in ("forward", "backward")


def _shape(name: str) -> str:
    try:
        return find_shape(name).id
    except ValueError as error:
        raise UsageError(str(error)) from error


def _one_of(what: str, name: str, known: Iterable[str]) -> str:
    choices = list(known)
    if name not in choices:
        near = get_close_matches(name, choices, n=1, cutoff=0.0)[0]
        raise UsageError(
            f'unknown {what} "{name}"; nearest: "{near}" (known: {", ".join(choices)})'
        )
    return name


def split_names(values: Sequence[str] | None) -> list[str]:
    """`--shape G1,G2 --shape W1` as names."""
    return [part.strip() for value in values or () for part in value.split(",") if part.strip()]

"""One launch of a Triton kernel as a value: to be run on a device, or compiled without one.

Because the static report compiles the very arguments that a call would pass, what the JIT derives
from them (which strides and pointers are multiples of 16, which integers are 1) is the same there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

# Triton reads this when it decorates a kernel, so it has to be set before the import.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


@dataclass(frozen=True)
class Launch:
    """A kernel with everything that one launch of it takes.

    Attributes:
        kernel: A `triton.jit` function.
        programs: Size of the grid, which has one axis: x may reach 2^31 - 1, y and z only 65,535.
        arguments: In the kernel's order; tensors (on any device, meta included), numbers, tuples
            and named tuples of them, `tl.constexpr` where a tuple holds a constant, None.
        constants: The kernel's `tl.constexpr` arguments by name.
        warps: Per program.
        stages: Of the software pipeline.
        options: What only some targets know, such as `matrix_instr_nonkdim` of AMD's.
    """

    kernel: Any
    programs: int
    arguments: tuple[Any, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)
    warps: int = 4
    stages: int = 2
    options: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The kernel's name."""
        return self.kernel.__name__

    def run(self) -> None:
        """Run it on the tensors' device; an empty grid does nothing."""
        recording = _RECORDING.get()
        if recording is not None:
            recording[1].append(self)
            return
        if self.programs == 0:
            return
        self.kernel[(self.programs,)](
            *self.arguments,
            **self.constants,
            **self.options,
            num_warps=self.warps,
            num_stages=self.stages,
        )


_RECORDING: ContextVar[tuple[str, list[Launch]] | None] = ContextVar("recording", default=None)


@contextmanager
def recorded(target: str) -> Iterator[list[Launch]]:
    """What calls on meta tensors would launch on a target, such as `sm_90`; nothing is run."""
    launches: list[Launch] = []
    token = _RECORDING.set((target, launches))
    try:
        yield launches
    finally:
        _RECORDING.reset(token)


def recorded_target() -> str | None:
    """The target that launches are recorded for; None outside of `recorded`."""
    recording = _RECORDING.get()
    return None if recording is None else recording[0]

"""A Triton kernel, compiled for a GPU that is not here.

`triton.compile` with an explicit target touches no driver. What the JIT would derive from real
arguments (which are multiples of 16) has to be said here, or loads come out narrower or wider than
in production.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TIMEOUT_S = 60


class CompileFailed(RuntimeError):
    """The compiler refused a kernel; the message names kernel, target and reason."""


@dataclass(frozen=True)
class Target:
    """A GPU architecture. Shared memory per block in bytes; lanes of a warp."""

    name: str
    backend: str
    arch: int | str
    warp: int
    shared_limit: int

    @property
    def is_amd(self) -> bool:
        """Whether its code is AMD's."""
        return self.backend == "hip"


TARGETS = {
    target.name: target
    for target in (
        Target("sm_80", "cuda", 80, 32, 163 * 1024),
        Target("sm_90", "cuda", 90, 32, 227 * 1024),
        Target("sm_100", "cuda", 100, 32, 227 * 1024),
        Target("gfx942", "hip", "gfx942", 64, 64 * 1024),
    )
}


@dataclass(frozen=True)
class Kernel:
    """A kernel with everything that the compiler is told.

    Attributes:
        function: A `triton.jit` function.
        types: Type of every argument that is no constant: `*bf16`, `i32`, `fp32`, or a tuple.
        constants: Values of the `tl.constexpr` arguments.
        divisible: Arguments known to be multiples of 16 (bytes for pointers); an element of a tuple
            is (name, place).
        warps: Per block.
        stages: Of the pipeliner.
    """

    function: Any
    types: Mapping[str, Any]
    constants: Mapping[str, Any]
    divisible: Sequence[str | tuple[str, int]] = ()
    warps: int = 4
    stages: int = 2

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__


@dataclass(frozen=True)
class Compiled:
    """Machine code as text, and what one block of it takes.

    Attributes:
        target: What it was compiled for.
        warps: Per block.
        code: SASS of `nvdisasm -c`, or AMD assembly.
        registers: Per thread (AMD: vector registers, accumulators included).
        stack: Bytes of local memory per thread; more than 0 means spills.
        shared: Bytes of shared memory per block, as the compiler laid it out.
    """

    target: Target
    warps: int
    code: str
    registers: int
    stack: int
    shared: int

    @property
    def fits(self) -> bool:
        """Whether its shared memory is within the target's limit; the compiler does not check."""
        return self.shared <= self.target.shared_limit


def compile_kernel(kernel: Kernel, target: Target) -> Compiled:
    """Compile for a target and read the code back.

    Raises:
        CompileFailed: if the compiler, or a tool that reads its output, fails.
    """
    names = list(kernel.function.arg_names)
    signature = {name: kernel.types.get(name, "constexpr") for name in names}
    constants = {(names.index(name),): value for name, value in kernel.constants.items()}
    hints = {_path(names, what): [["tt.divisibility", 16]] for what in kernel.divisible}
    options = {"num_warps": kernel.warps, "num_stages": kernel.stages}
    try:
        built = triton.compile(
            ASTSource(kernel.function, signature, constants, hints),
            target=GPUTarget(target.backend, target.arch, target.warp),
            options=options,
        )
    except Exception as error:  # Triton raises many kinds
        raise CompileFailed(f"{kernel.name} for {target.name}: {error}") from error
    shared = int(built.metadata.shared)
    if target.is_amd:
        return _read_amd(built.asm["amdgcn"], target, kernel.warps, shared)
    return _read_nvidia(built.asm["cubin"], target, kernel, shared)


def _path(names: Sequence[str], what: str | tuple[str, int]) -> tuple[int, ...]:
    if isinstance(what, str):
        return (names.index(what),)
    return (names.index(what[0]), what[1])


def _read_nvidia(cubin: bytes, target: Target, kernel: Kernel, shared: int) -> Compiled:
    # The tools read files: one of its own for each process, or two analyses swap their code.
    handle, name = tempfile.mkstemp(suffix=".cubin")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", name)
        code = _tool("nvdisasm", "-c", name)
    finally:
        Path(name).unlink()
    lines = [line for line in usage.splitlines() if " REG:" in line]
    if len(lines) != 1:
        raise CompileFailed(f"{kernel.name} for {target.name}: {len(lines)} functions in the code")
    facts = dict(part.split(":") for part in lines[0].split() if part.count(":") == 1)
    return Compiled(target, kernel.warps, code, int(facts["REG"]), int(facts["STACK"]), shared)


def _tool(name: str, *arguments: str) -> str:
    command = [str(_TOOLS / name), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileFailed(f"{name} of the Triton package cannot be run: {error}") from error
    if done.returncode:
        raise CompileFailed(f"{name} ended with {done.returncode}: {done.stderr[:500]}")
    return done.stdout


def _read_amd(code: str, target: Target, warps: int, shared: int) -> Compiled:
    facts = {}
    for line in code.splitlines():
        key, colon, value = line.strip().partition(":")
        if colon and key.startswith(".") and value.strip().isdigit():
            facts[key] = int(value)
    # On gfx942 accumulators come out of the same 512 registers; .vgpr_count holds both.
    stack = facts[".private_segment_fixed_size"]
    return Compiled(target, warps, code, facts[".vgpr_count"], stack, shared)

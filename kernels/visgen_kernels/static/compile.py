"""A Triton kernel, compiled for a GPU that is not here.

`triton.compile` with an explicit target touches no driver. What the JIT would derive from a call's
arguments (which pointers and strides are multiples of 16, which integers are 1, which tensors are
below 2 GiB) is derived here by the JIT's own functions, from tensors on the meta device if need be:
with other hints loads would come out narrower or wider than in production.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from visgen_kernels.launch import Launch
from visgen_kernels.static.targets import Target

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_TIMEOUT_S = 60


class CompileFailed(RuntimeError):
    """The compiler refused a kernel; the message names kernel, target and reason."""


@dataclass(frozen=True)
class Source:
    """What the compiler is told about a kernel, in its own terms.

    Attributes:
        function: A `triton.jit` function.
        signature: Type of every parameter by name: `*bf16`, `i32`, `constexpr`, tuples of them.
        constants: Values of constants by place: (3,), or (3, 0) inside a tuple.
        attributes: What is known of arguments, by place: [["tt.divisibility", 16]].
        options: Of the backend: num_warps, num_stages, ...
    """

    function: Any
    signature: Mapping[str, Any]
    constants: Mapping[tuple[int, ...], Any]
    attributes: Mapping[tuple[int, ...], Any]
    options: Mapping[str, Any] = field(default_factory=dict)

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
        code: SASS of `nvdisasm -c`, or AMD assembly; with lines of its source, if they were kept.
        registers: Per thread (AMD: vector registers, accumulators included).
        stack: Bytes of local memory per thread; more than 0 means spills.
        shared: Bytes of shared memory per block, as the compiler laid it out.
        name: The kernel's.
        spilled: Vector registers spilled, where the compiler says so (AMD); None on NVIDIA.
        ttgir: Triton's own code of the kernel, before it became the machine's.
        ptx: What NVIDIA's assembler was given; "" on AMD.
        tensor_memory: Columns of tensor memory per block (sm_100).
    """

    target: Target
    warps: int
    code: str
    registers: int
    stack: int
    shared: int
    name: str = ""
    spilled: int | None = None
    ttgir: str = ""
    ptx: str = ""
    tensor_memory: int = 0

    @property
    def fits(self) -> bool:
        """Whether shared and tensor memory are within the target's limits.

        The compiler does not check: too much tensor memory makes the whole kernel a trap.
        """
        tensor = self.tensor_memory <= self.target.tensor_memory
        return tensor and self.shared <= self.target.shared_limit


def source_of(launch: Launch, target: Target) -> Source:
    """What the JIT would tell the compiler if this launch ran on the target.

    Raises:
        CompileFailed: if the arguments do not fit the kernel, or the kernel is an interpreted one.
    """
    kernel = launch.kernel
    if not isinstance(kernel, JITFunction):
        raise CompileFailed(
            f"{launch.name} is a {type(kernel).__name__}, which has no code to compile: unset "
            "TRITON_INTERPRET before visgen_kernels is imported."
        )
    backend = make_backend(_gpu(target))
    options = {"num_warps": launch.warps, "num_stages": launch.stages, **launch.options}
    options |= {"debug": kernel.debug or knobs.runtime.debug}
    options |= {"instrumentation_mode": knobs.compilation.instrumentation_mode}
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    try:
        given = {**launch.constants, **options}
        bound, specialization, _ = bind(*launch.arguments, **given)
        parsed, signature, constants, attributes = kernel._pack_args(
            backend, given, bound, specialization, None
        )
    except (TypeError, KeyError, AssertionError) as error:
        raise CompileFailed(f"{launch.name} for {target.name}: {error}") from error
    return Source(kernel, signature, constants, attributes, dict(parsed.__dict__))


def compile_launch(launch: Launch, target: Target) -> Compiled:
    """Compile what a launch would run, as the JIT would, and read the code back.

    Raises:
        CompileFailed: if the compiler, or a tool that reads its output, fails.
    """
    return compile_source(source_of(launch, target), target)


def compile_source(source: Source, target: Target) -> Compiled:
    """Compile for a target and read the code back.

    Triton keeps what it compiled (`~/.triton/cache`, or TRITON_CACHE_DIR), so a second time costs
    only the reading.

    Raises:
        CompileFailed: if the compiler, or a tool that reads its output, fails.
    """
    try:
        built = triton.compile(
            ASTSource(source.function, source.signature, source.constants, source.attributes),
            target=_gpu(target),
            options=dict(source.options),
        )
    except Exception as error:  # Triton raises many kinds
        raise CompileFailed(f"{source.name} for {target.name}: {_in_short(error)}") from error
    warps, shared = int(built.metadata.num_warps), int(built.metadata.shared)
    if target.is_amd:
        found = _read_amd(built.asm["amdgcn"], target, source.name, warps, shared)
    else:
        found = _read_nvidia(built.asm["cubin"], target, source.name, warps, shared)
    return replace(
        found,
        ttgir=built.asm["ttgir"],
        ptx=built.asm.get("ptx", ""),
        tensor_memory=getattr(built.metadata, "tmem_size", 0) or 0,
    )


def _in_short(error: Exception) -> str:
    """The reason and the place of a compiler's error, which shows source code between them."""
    cause = error.__cause__ or error
    lines = [line.strip() for line in str(cause).splitlines() if line.strip(" ^")]
    place = next((line.strip().rstrip(":") for line in str(error).splitlines() if line), "")
    reason = lines[-1] if lines else type(cause).__name__
    return reason if place == reason else f"{reason} ({place})"


def _gpu(target: Target) -> GPUTarget:
    return GPUTarget(target.backend, target.arch, target.warp)


def _read_nvidia(cubin: bytes, target: Target, name: str, warps: int, shared: int) -> Compiled:
    # The tools read files: one of its own for each process, or two analyses swap their code.
    handle, path = tempfile.mkstemp(suffix=".cubin")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(cubin)
        usage = _tool("cuobjdump", "--dump-resource-usage", path)
        code = _tool("nvdisasm", "-c", "--print-line-info-ptx", path)
    finally:
        Path(path).unlink()
    lines = [line for line in usage.splitlines() if " REG:" in line]
    if len(lines) != 1:
        raise CompileFailed(f"{name} for {target.name}: {len(lines)} functions in the code")
    facts = dict(part.split(":") for part in lines[0].split() if part.count(":") == 1)
    return Compiled(target, warps, code, int(facts["REG"]), int(facts["STACK"]), shared, name)


def _tool(name: str, *arguments: str) -> str:
    command = [str(_TOOLS / name), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CompileFailed(f"{name} of the Triton package cannot be run: {error}") from error
    if done.returncode:
        raise CompileFailed(f"{name} ended with {done.returncode}: {done.stderr[:500]}")
    return done.stdout


def _read_amd(code: str, target: Target, name: str, warps: int, shared: int) -> Compiled:
    facts = {}
    for line in code.splitlines():
        key, colon, value = line.strip().partition(":")
        if colon and key.startswith(".") and value.strip().isdigit():
            facts[key] = int(value)
    # On gfx942 accumulators come out of the same 512 registers; .vgpr_count holds both.
    stack, spilled = facts[".private_segment_fixed_size"], facts[".vgpr_spill_count"]
    registers = facts[".vgpr_count"]
    return Compiled(target, warps, code, registers, stack, shared, name, spilled)

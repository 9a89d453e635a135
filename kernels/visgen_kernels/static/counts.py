"""Instructions by the pipe that executes them, matrix work, and widths of memory accesses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from visgen_kernels.static.loops import Instruction

# Longest prefix wins. What is in no list is counted as `other` and shown.
_SASS_PIPES = {
    "mma": ("HMMA", "HGMMA", "QGMMA", "IMMA", "UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA"),
    "mufu": ("MUFU",),
    "fma": ("FFMA", "FADD", "FMUL", "IMAD", "HFMA2", "HADD2", "HMUL2", "FADD2", "FFMA2", "FMUL2"),
    "alu": (
        "FMNMX", "FSEL", "FSETP", "FSET", "FCHK", "IADD", "LOP3", "LOP", "ISETP", "SEL", "SHF",
        "PRMT", "LEA", "MOV", "F2FP", "F2F", "I2F", "F2I", "I2FP", "IABS", "IMNMX", "VIMNMX",
        "PLOP3", "P2R", "R2P", "CS2R", "SGXT", "BMSK", "FLO", "POPC", "ISCADD", "VIADD", "VOTE",
        "HSETP2", "HMNMX2", "FMNMX3", "VIMNMX3", "R2UR", "S2R", "S2UR", "NOP", "LDC", "HSET2",
        "PRMT", "VOTEU", "REDUX", "CREDUX", "ELECT",
    ),
    "lds": ("LDS", "STS", "LDSM", "STSM", "ATOMS"),
    "shfl": ("SHFL",),
    "ldg": ("LDG", "STG", "LDGSTS", "UTMALDG", "UTMASTG", "ATOMG", "RED", "UBLKCP"),
    "local": ("LDL", "STL"),
    "tmem": ("LDTM", "STTM", "UTCATOM", "UTCBAR", "UTCCP"),
    "control": (
        "BRA", "EXIT", "BAR", "WARPSYNC", "BSSY", "BSYNC", "CALL", "RET", "DEPBAR", "LDGDEPBAR",
        "SYNCS", "WARPGROUP", "MEMBAR", "CCTL", "ERRBAR", "FENCE", "YIELD", "NANOSLEEP", "BRX",
        "WARPGROUPSET", "ACQBULK", "BREAK", "KILL", "ARRIVES", "USETMAXREG",
    ),
}  # fmt: skip
_AMD_PIPES = {
    "mma": ("v_mfma", "v_smfmac"),
    "mufu": ("v_exp", "v_log", "v_rcp", "v_rsq", "v_sqrt", "v_sin", "v_cos"),
    "alu": ("v_",),
    "lds": ("ds_",),
    "ldg": ("global_", "buffer_", "flat_"),
    "local": ("scratch_",),
    "control": ("s_branch", "s_cbranch", "s_barrier", "s_waitcnt", "s_endpgm", "s_nop", "s_sleep"),
    "uniform": ("s_",),
}

_HGMMA = re.compile(r"HGMMA\.64x(\d+)x(\d+)")
_MFMA = re.compile(r"v_mfma_\w+?_(\d+)x(\d+)x(\d+)")
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1, "16": 2, "8": 1, "256": 32}
_AMD_WIDTHS = (
    ("dwordx4", 16), ("dwordx3", 12), ("dwordx2", 8), ("dword", 4), ("short", 2), ("ushort", 2),
    ("byte", 1), ("ubyte", 1), ("b128", 16), ("b96", 12), ("b64", 8), ("b32", 4), ("b16", 2),
    ("u16", 2), ("d16", 2),
)  # fmt: skip


@dataclass(frozen=True)
class Access:
    """Global memory instructions of one width: bytes of one lane, and how many there are."""

    width: int
    count: int


def pipe_of(instruction: Instruction, *, amd: bool) -> str:
    """The pipe that executes an instruction; `uniform` and `other` included."""
    name = instruction.mnemonic
    table = _AMD_PIPES if amd else _SASS_PIPES
    stem = name if amd else name.partition(".")[0]
    found = [
        (len(prefix), pipe)
        for pipe, prefixes in table.items()
        for prefix in prefixes
        if stem.startswith(prefix)
    ]
    if found:
        return max(found)[1]
    return "uniform" if not amd and stem.startswith("U") else "other"


def by_pipe(instructions: Iterable[Instruction], *, amd: bool) -> Counter[str]:
    """How many instructions each pipe gets from one warp."""
    return Counter(pipe_of(one, amd=amd) for one in instructions)


def mma_flops(instructions: Iterable[Instruction], *, amd: bool) -> float | None:
    """Matrix FLOPs that one warp's instructions stand for; None if a mnemonic carries no shape.

    A wgmma is issued by four warps together: a quarter of it counts for each.
    """
    total = 0.0
    for one in instructions:
        if pipe_of(one, amd=amd) != "mma":
            continue
        flops = _flops(one.mnemonic)
        if flops is None:
            return None
        total += flops
    return total


def _flops(mnemonic: str) -> float | None:
    group = _HGMMA.match(mnemonic)
    if group:
        return 2 * 64 * int(group.group(1)) * int(group.group(2)) / 4
    if mnemonic.startswith("HMMA.16816"):
        return 2 * 16 * 8 * 16
    if mnemonic.startswith(("HMMA.1688", "HMMA.1684")):
        return 2 * 16 * 8 * int(mnemonic[8])
    wave = _MFMA.match(mnemonic)
    if wave:
        return 2 * int(wave.group(1)) * int(wave.group(2)) * int(wave.group(3))
    return None


def exponentials(instructions: Iterable[Instruction], *, amd: bool) -> int:
    """Exponential instructions of one warp."""
    start = "v_exp_f32" if amd else "MUFU.EX2"
    return sum(one.mnemonic.startswith(start) for one in instructions)


def global_accesses(instructions: Iterable[Instruction], *, amd: bool) -> tuple[Access, ...]:
    """Loads and stores of global memory by width, widest first; bulk copies (TMA) are left out."""
    widths: Counter[int] = Counter()
    for one in instructions:
        width = _width(one.mnemonic, amd)
        if width:
            widths[width] += 1
    return tuple(Access(width, widths[width]) for width in sorted(widths, reverse=True))


def _width(mnemonic: str, amd: bool) -> int | None:
    if amd:
        if not mnemonic.startswith(("global_load", "global_store", "buffer_load", "buffer_store")):
            return None
        return next((size for text, size in _AMD_WIDTHS if text in mnemonic), None)
    stem, *parts = mnemonic.split(".")
    if stem not in ("LDG", "STG", "LDGSTS"):
        return None
    return next((_WIDTHS[part] for part in parts if part in _WIDTHS), 4)


def local_accesses(instructions: Iterable[Instruction], *, amd: bool) -> int:
    """Loads and stores of local memory: what spilling costs."""
    return sum(pipe_of(one, amd=amd) == "local" for one in instructions)

"""Instructions by the pipe that executes them, matrix work, and widths of memory accesses."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

from visgen_kernels.static.loops import Instruction
from visgen_kernels.static.pointers import ELSEWHERE, Pointers

# Longest prefix wins. What is in no list is counted as `other` and shown.
_SASS_PIPES = {
    "mma": (
        "HMMA", "IMMA", "DMMA", "QMMA", "OMMA", "BMMA", "HGMMA", "QGMMA", "IGMMA", "BGMMA",
        "UTCHMMA", "UTCQMMA", "UTCIMMA", "UTCOMMA",
    ),
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
    "ldg": ("LDG", "STG", "LDGSTS", "UTMALDG", "UTMASTG", "UBLKCP", "ATOM", "RED"),
    "local": ("LDL", "STL"),
    "tmem": ("LDTM", "STTM", "UTCATOM", "UTCBAR", "UTCCP"),
    "control": (
        "BRA", "EXIT", "BAR", "WARPSYNC", "BSSY", "BSYNC", "CALL", "RET", "DEPBAR", "LDGDEPBAR",
        "SYNCS", "WARPGROUP", "MEMBAR", "CCTL", "ERRBAR", "FENCE", "YIELD", "NANOSLEEP", "BRX",
        "WARPGROUPSET", "ACQBULK", "BREAK", "KILL", "ARRIVES", "USETMAXREG", "BPT",
    ),
}  # fmt: skip
_AMD_PIPES = {
    "mma": ("v_mfma", "v_smfmac"),
    "mufu": ("v_exp", "v_log", "v_rcp", "v_rsq", "v_sqrt", "v_sin", "v_cos"),
    "alu": ("v_",),
    "lds": ("ds_",),
    "shfl": ("ds_bpermute", "ds_permute", "ds_swizzle"),
    "ldg": ("global_", "buffer_", "flat_"),
    "local": ("scratch_",),
    "control": ("s_branch", "s_cbranch", "s_barrier", "s_waitcnt", "s_endpgm", "s_nop", "s_sleep"),
    "uniform": ("s_",),
}

_WGMMA = re.compile(r"[A-Z]GMMA\.64x(\d+)x(\d+)")
_MMA = re.compile(r"[A-Z]MMA\.(\d+)(?:\.|$)")
_MMA_SHAPES = {
    "16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4), "16832": (16, 8, 32),
    "16864": (16, 8, 64), "8816": (8, 8, 16), "8832": (8, 8, 32), "884": (8, 8, 4),
}  # fmt: skip
_MFMA = re.compile(r"v_mfma_[a-z0-9]+_(\d+)x(\d+)x(\d+)_?(?:(\d+)b_)?")
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1, "16": 2, "8": 1, "256": 32}
_AMD_WIDTHS = (
    ("dwordx4", 16), ("dwordx3", 12), ("dwordx2", 8), ("dword", 4), ("short", 2), ("ushort", 2),
    ("byte", 1), ("ubyte", 1), ("b128", 16), ("b96", 12), ("b64", 8), ("b32", 4), ("b16", 2),
    ("u16", 2), ("d16", 2),
)  # fmt: skip
_BULK = ("UTMALDG", "UTMASTG", "UTMAREDG", "UBLKCP", "UBLKRED")
_ATOMIC = ("ATOM", "ATOMG", "RED", "REDG", "UTMAREDG", "UBLKRED")
_AMD_ATOMIC = ("global_atomic", "buffer_atomic", "flat_atomic")


@dataclass(frozen=True)
class Access:
    """Global memory instructions of one width: bytes of one lane, and how many there are."""

    width: int
    count: int


@dataclass(frozen=True)
class Moved:
    """Loads, or stores, of global memory by width; bulk copies (TMA) are left out.

    Attributes:
        tensors: Through the pointers that are asked about.
        others: Through others.
        unattributed: Through one or the other; the code does not say.
    """

    tensors: tuple[Access, ...]
    others: tuple[Access, ...] = ()
    unattributed: tuple[Access, ...] = ()

    @property
    def bytes(self) -> int:
        """That one lane's instructions move, all pointers together."""
        every = (*self.tensors, *self.others, *self.unattributed)
        return sum(access.width * access.count for access in every)

    def wide_share(self, width: int) -> float | None:
        """Of the tensors' bytes, the share in accesses of at least `width` bytes; None: unknown."""
        return None if self.unattributed else wide_share(self.tensors, width)


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
    group = _WGMMA.match(mnemonic)
    if group:
        return 2 * 64 * int(group.group(1)) * int(group.group(2)) / 4
    warp = _MMA.match(mnemonic)
    if warp:
        shape = _MMA_SHAPES.get(warp.group(1))
        return None if shape is None else 2 * prod(shape)
    wave = _MFMA.match(mnemonic)
    if wave:
        m, n, k, blocks = wave.groups(default="1")
        return 2 * int(m) * int(n) * int(k) * int(blocks)
    return None


def matrix_instructions(instructions: Iterable[Instruction], *, amd: bool) -> Counter[str]:
    """Matrix instructions of one warp by mnemonic, as far as it tells the shape and the types."""
    return Counter(one.mnemonic for one in instructions if pipe_of(one, amd=amd) == "mma")


def exponentials(instructions: Iterable[Instruction], *, amd: bool) -> int:
    """Exponential instructions of one warp."""
    start = "v_exp_f32" if amd else "MUFU.EX2"
    return sum(one.mnemonic.startswith(start) for one in instructions)


def global_accesses(instructions: Iterable[Instruction], *, amd: bool) -> tuple[Access, ...]:
    """Loads and stores of global memory by width, widest first; no bulk copies (TMA)."""
    widths: Counter[int] = Counter()
    for one in instructions:
        width = _width(one.mnemonic, amd)
        if width:
            widths[width] += 1
    return tuple(Access(width, widths[width]) for width in sorted(widths, reverse=True))


def moved(
    instructions: Iterable[Instruction],
    *,
    amd: bool,
    store: bool,
    pointers: Pointers | None = None,
    tensors: frozenset[str] | None = None,
) -> Moved:
    """Loads, or stores, apart by the pointers they go through; `tensors` None asks about all."""
    word = "_store" if amd else "STG"
    found: dict[bool | None, list[Instruction]] = {True: [], False: [], None: []}
    for one in instructions:
        if _width(one.mnemonic, amd) and (word in one.mnemonic) == store:
            found[_goes_through(one, store, pointers, tensors)].append(one)
    asked, other, unknown = (global_accesses(found[key], amd=amd) for key in (True, False, None))
    return Moved(asked, other, unknown)


def _goes_through(
    instruction: Instruction,
    store: bool,
    pointers: Pointers | None,
    tensors: frozenset[str] | None,
) -> bool | None:
    """Whether an access goes through one of the tensors; None if that is unknown."""
    if pointers is None or tensors is None:
        return True
    names = pointers.behind(instruction, store=store)
    if names <= tensors:
        return True
    return None if ELSEWHERE in names or names & tensors else False


def wide_share(accesses: Iterable[Access], width: int) -> float | None:
    """Of the bytes that these accesses move, the share in accesses of at least `width` bytes.

    None if there are no accesses.
    """
    sizes = [(access.width, access.width * access.count) for access in accesses]
    total = sum(moved for _, moved in sizes)
    return sum(moved for size, moved in sizes if size >= width) / total if total else None


def bulk_copies(instructions: Iterable[Instruction], *, amd: bool) -> int:
    """Copies by the tensor memory accelerator: their instruction does not say how many bytes."""
    return 0 if amd else sum(_stem(one) in _BULK for one in instructions)


def atomics(instructions: Iterable[Instruction], *, amd: bool) -> int:
    """Atomic operations on global memory: with none of them, sums have a fixed order."""
    if amd:
        return sum(one.mnemonic.startswith(_AMD_ATOMIC) for one in instructions)
    return sum(_stem(one) in _ATOMIC for one in instructions)


def shared_bytes(instructions: Iterable[Instruction], *, amd: bool) -> int:
    """Bytes of shared memory that one lane's instructions read and write, on average over lanes.

    What matrix instructions read from there themselves is not counted.
    """
    total = 0
    for one in instructions:
        if pipe_of(one, amd=amd) == "lds":
            total += _amd_shared(one.mnemonic) if amd else _sass_shared(one.mnemonic)
    return total


def _sass_shared(mnemonic: str) -> int:
    stem, *parts = mnemonic.split(".")
    if stem in ("LDSM", "STSM"):  # 8 x 8 tiles of 16 bits, 4 bytes a lane each
        return 4 * next((int(part) for part in parts if part in ("2", "4")), 1)
    return next((_WIDTHS[part] for part in parts if part in _WIDTHS), 4)


def _amd_shared(mnemonic: str) -> int:
    width = next((size for text, size in _AMD_WIDTHS if text in mnemonic), 4)
    return 2 * width if "read2" in mnemonic or "write2" in mnemonic else width


def _stem(instruction: Instruction) -> str:
    return instruction.mnemonic.partition(".")[0]


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

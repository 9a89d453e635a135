"""Machine code as a graph: instructions, basic blocks, natural loops.

Works on SASS (`nvdisasm -c`) and on AMD assembly alike. A loop is natural: a back edge to a block
that dominates it, and all that reaches the edge without passing that block. So waits that the
compiler moved out of line belong to the loop that jumps to them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_SASS = re.compile(r"^\s*/\*[0-9a-f]+\*/\s+(.*?)\s*;")
_SASS_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_SASS_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
_SASS_CONDITION = re.compile(r"^@!?U?P[0-9]|^\S+\s+(!?U?P[0-9]|~?UR)|^(@\S+\s+)?BRA\.(DIV|CONV)")
_SASS_PLACE = re.compile(r'^\s*//## File "\.nv_debug_ptx_txt", line (\d+)')
_AMD_LABEL = re.compile(r"^(\.LBB\d+_\d+):")
_AMD_FILE = re.compile(r'^\t\.file\t(\d+) "([^"]*)"(?: "([^"]*)")?')
_AMD_PLACE = re.compile(r"^\t\.loc\t(\d+) (\d+) (\d+)")
_AMD_TARGET = re.compile(r"(\.LBB\d+_\d+)")


@dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
        mnemonic: Without predicate.
        text: All of it.
        place: Of its source, `file:line:column` (AMD), or `ptx:line` (NVIDIA: a line of the PTX
            that it was made from); "" if the code does not say.
    """

    mnemonic: str
    text: str
    place: str = ""


@dataclass(frozen=True)
class Loop:
    """An innermost or outer loop: its blocks in order, and the instructions of one pass."""

    header: int
    blocks: frozenset[int]
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class Program:
    """All instructions of a kernel, and its loops, outer ones before those they hold."""

    instructions: tuple[Instruction, ...]
    loops: tuple[Loop, ...]

    def innermost(self, holding: Callable[[Instruction], bool]) -> tuple[Loop, ...]:
        """Loops with such an instruction that hold no smaller loop with one, in the code's order.

        So a spin on a barrier inside the main loop does not pass for the main loop.
        """
        found = [loop for loop in self.loops if any(map(holding, loop.instructions))]
        return tuple(a for a in found if not any(b.blocks < a.blocks for b in found))


def read_program(code: str, *, amd: bool) -> Program:
    """Parse a kernel's text."""
    instructions, labels = _parse(code, amd)
    starts = _leaders(instructions, labels, amd)
    successors = _successors(instructions, labels, starts, amd)
    loops = _natural_loops(successors)
    ends = [*starts[1:], len(instructions)]
    found = []
    for header, blocks in sorted(loops.items()):
        body = [i for b in sorted(blocks) for i in instructions[starts[b] : ends[b]]]
        found.append(Loop(header, frozenset(blocks), tuple(body)))
    return Program(tuple(instructions), tuple(found))


def _parse(code: str, amd: bool) -> tuple[list[Instruction], dict[str, int]]:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    sources = _Sources(amd)
    for line in code.splitlines():
        if sources.moved(line):
            continue
        label = (_AMD_LABEL if amd else _SASS_LABEL).match(line)
        if label:
            labels[label.group(1)] = len(instructions)
            continue
        text = _amd_text(line) if amd else _sass_text(line)
        if text:
            words = text.split()
            at = 1 if words[0].startswith("@") else 0
            instructions.append(Instruction(words[at], text, sources.place))
        if amd and text.startswith("s_endpgm"):
            break  # what follows is data and metadata
    while instructions and instructions[-1].mnemonic == "NOP":  # fills up the last line of code
        instructions.pop()
    return instructions, labels


class _Sources:
    """Where the instructions that follow come from, as the text announces it."""

    def __init__(self, amd: bool) -> None:
        self.amd, self.place = amd, ""
        self._files: dict[str, str] = {}

    def moved(self, line: str) -> bool:
        """Whether a line is such an announcement."""
        if not self.amd:
            found = _SASS_PLACE.match(line)
            self.place = f"ptx:{found.group(1)}" if found else self.place
            return bool(found)
        file, found = _AMD_FILE.match(line), _AMD_PLACE.match(line)
        if file:
            number, folder, name = file.groups()
            self._files[number] = f"{folder}/{name}" if name else folder
        if found:
            number, *place = found.groups()
            known = number in self._files and place[0] != "0"
            self.place = ":".join((self._files[number], *place)) if known else ""
        return bool(file or found)


def _sass_text(line: str) -> str:
    found = _SASS.match(line)
    return found.group(1) if found else ""


def _amd_text(line: str) -> str:
    if not line.startswith("\t") or line.startswith("\t."):
        return ""
    return line.partition(";")[0].partition("//")[0].strip()


def _target(instruction: Instruction, amd: bool) -> str | None:
    """The label an instruction may jump to, inside the kernel."""
    if amd:
        if not instruction.mnemonic.startswith(("s_branch", "s_cbranch")):
            return None
        found = _AMD_TARGET.search(instruction.text)
    else:
        if not instruction.mnemonic.startswith("BRA"):
            return None
        found = _SASS_TARGET.search(instruction.text)
    return found.group(1) if found else None


def _falls_through(instruction: Instruction, amd: bool) -> bool:
    if amd:
        return not instruction.mnemonic.startswith(("s_branch", "s_endpgm", "s_setpc"))
    if not instruction.mnemonic.startswith(("EXIT", "BRA", "BRX", "RET")):
        return True
    # Under a predicate (before the mnemonic, or its first operand) it may also go on.
    return bool(_SASS_CONDITION.search(instruction.text))


def _leaders(instructions: Sequence[Instruction], labels: dict[str, int], amd: bool) -> list[int]:
    leaders = {0, *labels.values()}
    for place, instruction in enumerate(instructions):
        if _target(instruction, amd) or not _falls_through(instruction, amd):
            leaders.add(place + 1)
    return sorted(place for place in leaders if place < len(instructions))


def _successors(
    instructions: Sequence[Instruction], labels: dict[str, int], starts: Sequence[int], amd: bool
) -> list[list[int]]:
    block_of = {start: block for block, start in enumerate(starts)}
    ends = [*starts[1:], len(instructions)]
    following: list[list[int]] = []
    for block, end in enumerate(ends):
        last = instructions[end - 1]
        target = _target(last, amd)
        next_blocks = []
        if target in labels and labels[target] in block_of:
            next_blocks.append(block_of[labels[target]])
        if _falls_through(last, amd) and block + 1 < len(ends):
            next_blocks.append(block + 1)
        following.append(next_blocks)
    return following


def _natural_loops(successors: Sequence[Sequence[int]]) -> dict[int, set[int]]:
    """Header -> blocks of its loop; back edges to one header make one loop."""
    predecessors: list[list[int]] = [[] for _ in successors]
    for block, following in enumerate(successors):
        for other in following:
            predecessors[other].append(block)
    dominators = _dominators(predecessors)
    loops: dict[int, set[int]] = {}
    for block, following in enumerate(successors):
        for header in following:
            if header not in dominators[block]:
                continue
            body, waiting = loops.setdefault(header, {header}), [block]
            while waiting:
                one = waiting.pop()
                if one not in body:
                    body.add(one)
                    waiting += predecessors[one]
    return loops


def _dominators(predecessors: Sequence[Sequence[int]]) -> list[set[int]]:
    """Blocks through which every way from block 0 leads; unreachable blocks have none but all."""
    every = set(range(len(predecessors)))
    dominators = [{0}, *(set(every) for _ in predecessors[1:])]
    changed = True
    while changed:
        changed = False
        for block in range(1, len(predecessors)):
            ways = [dominators[p] for p in predecessors[block]]
            new = {block} | (set.intersection(*ways) if ways else every)
            if new != dominators[block]:
                dominators[block], changed = new, True
    return dominators

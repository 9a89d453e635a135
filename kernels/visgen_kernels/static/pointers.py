"""Which arguments of a kernel its loads and stores go through.

Machine code names no tensor. But Triton's own code of a kernel (TTGIR) holds every load and store
with its pointer, which can be followed back to the argument it was computed from, and with its
place in the source, and the compilers keep places: AMD's assembly says it of every instruction, and
SASS says which line of PTX an instruction was made from. What shares a place (a function that loads
several tensors) shares its answer: all arguments that are meant there. An instruction without a
place may mean any argument that the kernel accesses in this way. So an answer may be wide, but it
is never a guess.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from visgen_kernels.static.loops import Instruction

# A pointer that was computed from no argument: one read from memory, or cast from an integer.
ELSEWHERE = "?"

_NAME = r"%[\w.$-]+(?:#\d+)?"
_VALUE = re.compile(_NAME)
_RESULT = re.compile(rf"^\s*({_NAME})(?::(\d+))? = ([\w.]+)")
_STORE = re.compile(r"^\s*(?:amdg\.buffer_store|tt\.store)\b")
# What gives the pointers it is given, moved or in another shape.
_SAME = (
    "tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "tt.trans",
    "tt.bitcast", "ttg.convert_layout",
)  # fmt: skip
_LOAD_OPS = ("tt.load", "ttg.async_copy_global_to_local", "amdg.buffer_load")
_BUFFER = re.compile(rf"({_NAME})\[")
_ARGUMENT = re.compile(r"%([\w.$-]+): !tt\.ptr<(\w+)")
_ELEMENT = re.compile(r"!tt\.ptr<(\w+)")
_CARRIED = re.compile(rf"({_NAME}) = ({_NAME})")
_LOC = re.compile(r"loc\((#loc\d*)\)\s*$")
_ALIAS = re.compile(r"^(#loc\d*) = loc\((.*)\)$")
_SOURCE = re.compile(r'^"([^"]+)":(\d+:\d+)')
_PTX_FILE = re.compile(r'^\s*\.file\s+(\d+) "([^"]+)"')
_PTX_LOC = re.compile(r"^\s*\.loc\s+(\d+) (\d+) (\d+)")
_PTX_ACCESS = re.compile(
    r"\b(ld\.(?!param|shared|const|local)|st\.(?!shared|local)|cp\.async\.c[ag]\.)"
)
_INNER = re.compile(r'^(?:callsite\(|"[^"]*"\()(#loc\d*)')


@dataclass(frozen=True)
class Pointers:
    """Names of arguments (`t.q.base`) behind the loads and stores of each place.

    Attributes:
        loads: By place, as `Instruction` writes it.
        stores: By place.
    """

    loads: Mapping[str, frozenset[str]] = field(default_factory=dict)
    stores: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def behind(self, instruction: Instruction, *, store: bool) -> frozenset[str]:
        """The arguments that a load or store may go through."""
        known = self.stores if store else self.loads
        if instruction.place in known:
            return known[instruction.place]
        return frozenset[str]().union(*known.values()) or frozenset({ELSEWHERE})


def read_pointers(ttgir: str, ptx: str = "") -> Pointers:
    """Follow every pointer of a kernel back to its argument; `ptx` for instructions of NVIDIA."""
    pointers = _read_ttgir(ttgir)
    if not ptx:
        return pointers
    made_at = _places_of_ptx(ptx)
    return Pointers(
        *(
            {**known, **{line: known[place] for line, place in made_at.items() if place in known}}
            for known in (pointers.loads, pointers.stores)
        )
    )


def _places_of_ptx(ptx: str) -> dict[str, str]:
    """Lines of PTX that access global memory, `ptx:line` -> place in the source.

    Triton writes accesses as blocks of inline assembly, and LLVM numbers the lines of such a block
    on from that of the block. So the place is that of the block's first line.
    """
    lines = ptx.splitlines()
    files = _pairs(_PTX_FILE, lines)
    found: dict[str, str] = {}
    place, block, fresh = "", False, False
    for number, line in enumerate(lines, 1):
        loc = _PTX_LOC.match(line)
        if "// begin inline asm" in line:
            block = fresh = True
        elif "// end inline asm" in line:
            block = False
        elif loc and (not block or fresh):
            file, *rest = loc.groups()
            place = ":".join((files.get(file, ""), *rest))
            fresh = False
        elif _PTX_ACCESS.search(line):
            found[f"ptx:{number}"] = place
    return found


def _read_ttgir(ttgir: str) -> Pointers:
    lines = ttgir.splitlines()
    places = _places(lines)
    carried: dict[tuple[int, int], frozenset[str]] = {}
    while True:  # what a loop hands to its next pass is known only at its end
        walk = _Walk(places, dict(carried))
        for number, line in enumerate(lines):
            walk.read(number, line)
        if walk.carried == carried:
            return Pointers(_joined(walk.loads), _joined(walk.stores))
        carried = walk.carried


def _pairs(pattern: re.Pattern[str], lines: Iterable[str]) -> dict[str, str]:
    """Both groups of the lines that match."""
    matches = (match for line in lines if (match := pattern.match(line)))
    return {match.group(1): match.group(2) for match in matches}


def _joined(found: Iterable[tuple[str, frozenset[str]]]) -> dict[str, frozenset[str]]:
    sets: dict[str, frozenset[str]] = defaultdict(frozenset)
    for place, names in found:
        sets[place] |= names
    return dict(sets)


def _places(lines: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Alias of a location -> places; of inlined code, where it was written."""
    aliases = _pairs(_ALIAS, lines)
    found: dict[str, tuple[str, ...]] = {}

    def resolve(alias: str) -> tuple[str, ...]:
        if alias not in found:
            text = aliases.get(alias, "")
            source, inner = _SOURCE.match(text), _INNER.match(text)
            if source:
                found[alias] = (f"{source.group(1)}:{source.group(2)}",)
            elif inner:
                found[alias] = resolve(inner.group(1))
            elif text.startswith("fused"):
                parts = re.findall(r"#loc\d*", text)
                found[alias] = tuple(place for part in parts for place in resolve(part))
            else:
                found[alias] = ()
        return found[alias]

    return {alias: resolve(alias) for alias in aliases}


@dataclass
class _Region:
    """An `scf` operation that holds code: its results, and the values it carries around a loop."""

    number: int
    result: str
    length: int
    carries: bool
    found: dict[int, frozenset[str]]


class _Walk:
    """One pass over the text. Values are defined above their use, and later ones hide earlier."""

    def __init__(
        self,
        places: Mapping[str, tuple[str, ...]],
        carried: dict[tuple[int, int], frozenset[str]],
    ) -> None:
        self.places, self.carried = places, carried
        self.roots: dict[str, frozenset[str]] = {}
        self.arguments: dict[str, frozenset[str]] = {}  # by element type
        self.regions: list[_Region | None] = []
        self.loads: list[tuple[str, frozenset[str]]] = []
        self.stores: list[tuple[str, frozenset[str]]] = []

    def read(self, number: int, line: str) -> None:
        text = line.strip()
        if text.startswith("tt.func"):
            self._arguments(text)
        result = _RESULT.match(line)
        operation = result.group(3) if result else text.partition(" ")[0]
        self._forget(text, result)
        if operation.startswith(_LOAD_OPS) or _STORE.match(line):
            self._access(line, store=not operation.startswith(_LOAD_OPS))
        elif operation == "scf.yield":
            self._yield(text)
        elif result and "!tt.ptr<" in line and not operation.startswith("scf."):
            self.roots[result.group(1)] = self._followed(operation, line)
        if text.startswith("}") and self.regions:
            self._close(text)
        if re.search(r"\{(?: loc\(.*\))?$", text):
            self._open(number, text, result, operation)

    def _arguments(self, text: str) -> None:
        by_element: dict[str, set[str]] = defaultdict(set)
        own = text.startswith("tt.func public")  # others are called, with pointers of any origin
        for name, element in _ARGUMENT.findall(text):
            self.roots[f"%{name}"] = frozenset({name if own else ELSEWHERE})
            by_element[element].add(name)
        if own:
            self.arguments = {element: frozenset(names) for element, names in by_element.items()}

    def _forget(self, text: str, result: re.Match[str] | None) -> None:
        """Names that begin here had another meaning in a region that has ended."""
        if result:
            name, length = result.group(1), int(result.group(2) or 1)
            for value in (name, *(f"{name}#{place}" for place in range(length))):
                self.roots.pop(value, None)
        if text.startswith("^"):
            begun = _VALUE.findall(text)
        elif "scf.for" in text or "scf.while" in text:
            begun = [inner for inner, _ in _CARRIED.findall(text)]
        else:
            return
        for value in begun:
            self.roots.pop(value, None)

    def _of(self, value: str, line: str) -> frozenset[str]:
        """Roots of a value; where they are not known, all arguments of the same element type."""
        if value in self.roots:
            return self.roots[value]
        element = _ELEMENT.search(line)
        return self.arguments.get(element.group(1) if element else "", frozenset({ELSEWHERE}))

    def _followed(self, operation: str, line: str) -> frozenset[str]:
        if operation in ("tt.int_to_ptr", "tt.load"):
            return frozenset({ELSEWHERE})
        operands = _VALUE.findall(line.partition("=")[2])
        if operation == "arith.select":
            return self._of(operands[1], line) | self._of(operands[2], line)
        return self._of(operands[0] if operation in _SAME else "", line)

    def _access(self, line: str, *, store: bool) -> None:
        body = line.partition("=")[2] if not store else line
        buffer = _BUFFER.search(body) if "amdg." in line else None
        pointer = buffer.group(1) if buffer else _VALUE.findall(body)[0]
        names, loc = self._of(pointer, line), _LOC.search(line)
        places = self.places.get(loc.group(1), ()) if loc else ()
        found = self.stores if store else self.loads
        found += [(place, names) for place in places or ("",)]

    def _open(self, number: int, text: str, result: re.Match[str] | None, operation: str) -> None:
        if text.startswith("} else"):
            return  # `_close` kept the region
        if not operation.startswith("scf."):
            self.regions.append(None)
            return
        name, length = (result.group(1), int(result.group(2) or 1)) if result else ("", 0)
        region = _Region(number, name, length, operation == "scf.for", {})
        if region.carries:
            _, _, after = text.partition("iter_args(")
            for place, (inner, start) in enumerate(_CARRIED.findall(after.partition(") ->")[0])):
                if start in self.roots:
                    names = self.roots[start] | self.carried.get((number, place), frozenset())
                    self.roots[inner] = region.found[place] = names
        self.regions.append(region)

    def _yield(self, text: str) -> None:
        region = self.regions[-1] if self.regions else None
        if region is None:
            return
        values = _VALUE.findall(text.partition(" : ")[0])
        for place, value in enumerate(values):
            if value in self.roots:
                region.found[place] = region.found.get(place, frozenset()) | self.roots[value]
                if region.carries:
                    self.carried[region.number, place] = region.found[place]

    def _close(self, text: str) -> None:
        if text.startswith("} else"):
            return
        region = self.regions.pop()
        if region is None:
            return
        for place, names in region.found.items():
            self.roots[region.result if region.length == 1 else f"{region.result}#{place}"] = names

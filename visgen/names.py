"""What somebody may have meant who typed a name that does not exist.

Names are compared without case and without the signs between their words. A name that begins with
what was typed, or has it as a word, comes before one that only looks like it. A name that does not
even look like it is no suggestion; whoever asks then lists what there is.
"""

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

MOST = 3
LEAST_LIKENESS = (
    0.7  # of difflib's ratio: "smaples" is 0.86 like "samples", "noise" 0.4 like "real"
)
_SHORTEST = 3  # signs that a beginning or a word must have to count as one


def close(given: str, known: Iterable[str]) -> tuple[str, ...]:
    """The known names that may have been meant, best first: at most three, none if none is near."""
    plain = {name: _plain(name) for name in dict.fromkeys(known)}
    wanted = _plain(given)
    for found in (
        [name for name, text in plain.items() if text == wanted],
        [name for name, text in plain.items() if _begins(text, wanted)],
        [name for name in plain if len(wanted) >= _SHORTEST and wanted in _words(name)],
        [name for name, text in plain.items() if _is_part(text, given)],
    ):
        if found:
            return tuple(found[:MOST])
    likeness = {name: _likeness(wanted, name) for name in plain}
    near = [name for name, value in likeness.items() if value >= LEAST_LIKENESS]
    best = max(likeness.values(), default=0.0)
    # Beside a clear winner the others would only distract.
    near = [name for name in near if likeness[name] > best - 0.05]
    return tuple(sorted(near, key=lambda name: -likeness[name])[:MOST])


def hint(given: str, known: Iterable[str]) -> str:
    """`; nearest: "a"`, or of several; empty if no name is near."""
    near = [f'"{name}"' for name in close(given, known)]
    return f"; nearest: {', '.join(near)}" if near else ""


def hint_or_list(given: str, known: Iterable[str]) -> str:
    """As `hint`; where no name is near, `; there are a, b, c`."""
    known = list(dict.fromkeys(known))
    return hint(given, known) or f"; there are {', '.join(known) or 'none'}"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name.lower())


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[^a-z0-9]+", name.lower()) if word]


def _begins(text: str, wanted: str) -> bool:
    return len(wanted) >= _SHORTEST and text.startswith(wanted)


def _is_part(text: str, given: str) -> bool:
    """Whether a known name is a word, or the beginning, of what was typed."""
    long_enough = len(text) >= _SHORTEST
    return long_enough and (text in _words(given) or _plain(given).startswith(text))


def _likeness(wanted: str, name: str) -> float:
    """Of the whole names, or of what was typed with one word of the name, which counts less."""
    whole = SequenceMatcher(None, wanted, _plain(name)).ratio()
    words = [SequenceMatcher(None, wanted, word).ratio() for word in _words(name) if len(word) > 3]
    return max(whole, 0.9 * max(words, default=0.0))

"""Films of clips as data URIs: animated WebP files inside the result folder, up to a size.

An animated picture plays without a script and without a request. Real clips stand once for all
samples of their data, split and size.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from visgen_results.clips import FILM, REAL_FILM, REAL_SHEET, SHEET, Clips
from visgen_results.naming import is_clips
from visgen_results.reading import Results
from visgen_results.report.pictures import (
    LARGEST_PICTURE,
    Picture,
    as_uri,
    data_uri,
    read_inside,
)

LARGEST_TOGETHER = 32 * 2**20  # films and strips of one page, as they are in the folder


@dataclass(frozen=True)
class Shown:
    """A film, and the strip of frames that belongs under it."""

    film: Picture
    strip: Picture
    caption: str


@dataclass(frozen=True)
class Films:
    """Samples whose real clips are the same ones."""

    setting: str
    real: Shown
    samples: list[Shown] = field(default_factory=list)


class Budget:
    """What a page may still hold of films and strips, in bytes."""

    def __init__(self, most: int = LARGEST_TOGETHER) -> None:
        self.most, self.used = most, 0

    def take(self, picture: Picture) -> Picture:
        """The picture if it still fits; else one that says why it is not there."""
        if self.used + len(picture.uri) > self.most:
            reason = f"the page holds {self.most / 2**20:.0f} MiB of films and strips already"
            return Picture(picture.label, "", f"{picture.path}: {reason}", picture.path)
        self.used += len(picture.uri)
        return picture

    @property
    def said(self) -> str:
        """How much of the page they are, and how much they may be."""
        return (
            f"Films and strips are {self.used / 2**20:.1f} MiB of this page; one of more than "
            f"{LARGEST_PICTURE // 2**20} MiB is not shown, nor any beyond {self.most // 2**20} MiB "
            "together."
        )


def films(results: Results, dataset: str, clips: Sequence[Clips], budget: Budget) -> list[Films]:
    """The films of one data set, one group for each kind of real clip."""
    groups: dict[tuple[object, ...], list[Clips]] = {}
    for one in clips:
        run = one.run
        if is_clips(run) and (run["dataset"] or "") == dataset:
            key = (run["split"], run["resolution"], run["data_fingerprint"])
            groups.setdefault(key, []).append(one)
    found = []
    for (split, resolution, _), members in groups.items():
        name = ", ".join(str(part) for part in (dataset, split, resolution) if part)
        real = _real(results.root, members, name, budget)
        own = Films(f"{split or 'no'} split, {resolution or 'size not recorded'}", real)
        for one in members:
            place = Path(one.run["artifacts_path"])
            own.samples.append(
                Shown(
                    budget.take(film_of(results.root, place / FILM, one.caption)),
                    budget.take(_strip(results.root, place / SHEET, one.caption)),
                    one.caption,
                )
            )
        found.append(own)
    return found


def _real(root: Path, members: Sequence[Clips], name: str, budget: Budget) -> Shown:
    """The real clips of the first cell that left them whole."""
    caption = f"real clips ({name})"
    places = [Path(one.run["artifacts_path"]) for one in members]
    played = [film_of(root, place / REAL_FILM, caption) for place in places]
    strips = [_strip(root, place / REAL_SHEET, caption) for place in places]
    film = next((one for one in played if one.uri), played[0])
    strip = next((one for one in strips if one.uri), strips[0])
    return Shown(budget.take(film), budget.take(strip), caption)


def film_of(root: Path, inside: Path, label: str) -> Picture:
    """A WebP film below `root`; without an address, but with the reason, if it has a fault."""
    try:
        content = read_inside(root, inside)
        duration_ms = webp_duration(content, str(inside))
    except ValueError as error:
        return Picture(label, "", str(error), str(inside))
    said = f"{duration_ms / 1000:g} s, again and again" if duration_ms else "nothing moves"
    return Picture(f"{label}; {said}", as_uri("image/webp", content), "", str(inside))


def _strip(root: Path, inside: Path, label: str) -> Picture:
    try:
        return Picture(label, data_uri(root, inside), "", str(inside))
    except ValueError as error:
        return Picture(label, "", str(error), str(inside))


def webp_duration(content: bytes, name: str) -> int:
    """How long a WebP film plays before it starts again, in ms; 0 for one that stands still.

    An encoder makes one frame of equal ones, so their number says nothing of the clip.

    Raises `ValueError` if it is no such file, or is cut short.
    """
    if content[:4] != b"RIFF" or content[8:12] != b"WEBP":
        raise ValueError(f"{name} is no WebP file")
    end = struct.unpack_from("<I", content, 4)[0] + 8
    if end > len(content):
        raise ValueError(f"{name} is damaged: it ends after {len(content)} of {end} bytes")
    place, pictures, duration = 12, 0, 0
    while place + 8 <= end:
        kind, (length,) = content[place : place + 4], struct.unpack_from("<I", content, place + 4)
        if place + 8 + length > end:
            raise ValueError(f"{name} is damaged: a part of it reaches beyond its end")
        pictures += kind in (b"VP8 ", b"VP8L", b"ANMF")
        if kind == b"ANMF" and length >= 16:
            duration += int.from_bytes(content[place + 20 : place + 23], "little")
        place += 8 + length + length % 2
    if not pictures:
        raise ValueError(f"{name} is damaged: it holds no picture")
    return duration

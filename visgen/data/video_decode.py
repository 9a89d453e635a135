"""From one video file to numbered frames, by PyAV's software decoders.

- Frames are numbered in the order they are shown, from 0; frames that an edit list hides are none.
- A frame is told from its neighbours by its time stamp: reading seeks to the key frame before the
  first frame that is wanted and then takes exactly the stamps found when the file was inspected.
  Files whose stamps cannot tell frames apart are read from their beginning and counted, and so is
  every MPEG stream: its few stamps are filled in between by guesses, which a seek changes.
- A rotation that the file states in quarter turns is applied; pixels that are not square are taken
  as square, transparency is dropped.
- Only the containers below are tried, whatever the name says: others, such as play lists, name
  further files and addresses, which would then be read.
- Decoding has one thread a file; whoever reads many files runs them beside each other.
"""

from array import array
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, pairwise
from typing import BinaryIO

import av
import av.container
import av.error
import numpy as np
import torch
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from torch import Tensor

from visgen.data.clip_frames import MOST_FRAMES, MOST_SIDE, BrokenVideo, check_sides

SUFFIXES = (".mp4", ".avi", ".webm", ".mov", ".mkv", ".mpg")
_OPTIONS = {
    "format_whitelist": "mov,mp4,avi,matroska,webm,mpeg,mpegvideo,mpegts",
    "max_pixels": str(MOST_SIDE * MOST_SIDE),
    "threads": "1",
}
_SEEKABLE = {"mov", "matroska", "avi"}
_STEPS_BACK = (0, 16, 128)  # frames before the wanted one to seek to, until a key frame is there


@dataclass(frozen=True)
class FrameTable:
    """What inspecting a file found.

    Attributes:
        length: Frames.
        times: Their stamps in ticks, increasing; None where frames can only be counted.
        keys: Stamp and place in the file of every key frame.
        rate: Frames per second, None if nothing is known of it.
        varying: The shortest and the longest gap, in words, where frames are not equally far
            apart.
        grey: Whether the file stores one channel.
    """

    length: int
    times: Sequence[int] | None
    keys: frozenset[tuple[int | None, int | None]]
    rate: float | None
    varying: str | None
    grey: bool


def inspect_video(file: BinaryIO) -> FrameTable:
    """Count and time the frames of an open file.

    The count that an MP4 or MOV declares is taken if as many different stamps are in it and its
    first frame can be decoded and has the first of them. Every other file is decoded once:
    there packets need not be frames (hidden frames of VP8, packed ones of MPEG-4).

    Raises:
        BrokenVideo: not a video, no picture in it, damaged, or cut off.
    """
    try:
        return _inspect(file)
    except BrokenVideo:
        raise
    except Exception as error:  # decoders raise anything on damaged bytes
        raise BrokenVideo(_reason(error)) from error


def read_video(file: BinaryIO, table: FrameTable, wanted: range) -> Iterator[Tensor]:
    """The frames of these numbers (increasing): uint8 (3, h, w) each, 0..255.

    Raises:
        BrokenVideo: a frame cannot be decoded, or is not where it was.
    """
    try:
        yield from map(_pixels, _wanted(file, table, wanted))
    except BrokenVideo:
        raise
    except Exception as error:
        raise BrokenVideo(_reason(error)) from error


@contextmanager
def _opened(file: BinaryIO) -> Iterator[tuple[av.container.InputContainer, VideoStream]]:
    """The container and its first video stream that is not a cover picture."""
    file.seek(0)
    with av.open(
        file, "r", options=_OPTIONS, buffer_size=1 << 16, metadata_errors="replace"
    ) as container:
        for stream in container.streams.video:
            if not stream.disposition & Disposition.attached_pic:
                if stream.codec_context is None:
                    raise BrokenVideo("there is no decoder for its video")
                stream.codec_context.thread_count = 1
                stream.codec_context.options = {"max_pixels": _OPTIONS["max_pixels"]}
                yield container, stream
                return
        kinds = sorted({stream.type for stream in container.streams})
        raise BrokenVideo(f"it holds no video, only {', '.join(kinds) or 'nothing'}")


def _inspect(file: BinaryIO) -> FrameTable:
    with _opened(file) as (container, stream):
        check_sides(stream.codec_context.height, stream.codec_context.width)
        packets = _packets(container, stream)
        _check_end(container, stream, packets.end)
        grey = (stream.codec_context.pix_fmt or "").startswith(("gray", "mono", "ya"))
        formats = set(container.format.name.split(","))
        declared = stream.frames
        rate, tick = stream.guessed_rate or stream.average_rate, stream.time_base
    shown = {stamp for stamp in packets.stamps if stamp is not None}
    times = sorted(shown)
    trusted = "mov" in formats and declared == packets.count and len(times) == len(packets.stamps)
    if not trusted or _decoded_times(file, 1) != times[:1]:
        times = _decoded_times(file, None)
        # A few frames less are usual: some files declare packets without a picture.
        if len(times) < 0.95 * min(declared, len(packets.stamps)) - 1:
            raise BrokenVideo(f"it declares {declared} frames, and {len(times)} can be decoded")
    if not times:
        raise BrokenVideo("no frame of it can be decoded")
    # PyAV gives frames without a stamp their running number, which means nothing after a seek.
    if not _increasing(times) or not shown.issuperset(times):
        known = float(rate) if rate else None
        return FrameTable(len(times), None, frozenset(), known, None, grey)
    table = _table(times, packets.keys, rate, tick, grey)
    return table if formats & _SEEKABLE else replace(table, times=None)


@dataclass
class _Packets:
    """Packets of a stream: how many, the stamps of those shown, and where the last one ends."""

    count: int = 0
    stamps: list[int | None] = field(default_factory=list)
    keys: set[tuple[int | None, int | None]] = field(default_factory=set)
    end: int | None = None


def _packets(container: av.container.InputContainer, stream: VideoStream) -> _Packets:
    found = _Packets()
    for packet in container.demux(stream):
        if not packet.size:
            continue
        found.count += 1
        if found.count > MOST_FRAMES:
            raise BrokenVideo(f"it has more than {MOST_FRAMES} frames; cut it into shorter files")
        if packet.is_corrupt:
            raise BrokenVideo(f"packet {found.count} is damaged or cut off")
        if packet.pts is not None:
            end = packet.pts + (packet.duration or 0)
            found.end = end if found.end is None else max(found.end, end)
        if packet.is_keyframe:
            found.keys.add((packet.pts, packet.pos))
        if not packet.is_discard:
            found.stamps.append(packet.pts)
    return found


def _check_end(
    container: av.container.InputContainer, stream: VideoStream, end: int | None
) -> None:
    """Matroska ends quietly where a file is cut off; only the declared duration tells."""
    declared = None
    if stream.duration is not None and stream.time_base is not None:
        declared = float(stream.duration * stream.time_base)
    elif len(container.streams) == 1 and container.duration is not None:
        declared = container.duration / av.time_base
    if declared is None or end is None or stream.time_base is None:
        return
    found = float((end - (stream.start_time or 0)) * stream.time_base)
    rate = stream.guessed_rate or stream.average_rate
    # Muxers round, and some leave out the last frame's duration.
    if found < declared - max(3 / float(rate) if rate else 0.5, 0.05 * declared):
        raise BrokenVideo(
            f"it declares {declared:.2f} s and ends after {found:.2f} s; it seems to be cut off"
        )


def _decoded_times(file: BinaryIO, most: int | None) -> list[int]:
    """Stamps of the first `most` frames (None: of all), in the order they are shown."""
    times: list[int] = []
    with _opened(file) as (container, stream):
        for frame in container.decode(stream):
            if frame.is_corrupt:
                raise BrokenVideo(f"frame {len(times)} is damaged")
            check_sides(frame.height, frame.width)
            times.append(-1 if frame.pts is None else frame.pts)
            if len(times) == most:
                break
            if len(times) > MOST_FRAMES:
                raise BrokenVideo(f"it has more than {MOST_FRAMES} frames")
    return times


def _increasing(times: Sequence[int]) -> bool:
    return all(a < b for a, b in pairwise(times))


def _table(
    times: list[int],
    keys: set[tuple[int | None, int | None]],
    declared: Fraction | None,
    tick: Fraction | None,
    grey: bool,
) -> FrameTable:
    gaps = [b - a for a, b in pairwise(times)]
    rate, varying = declared, None
    if gaps and tick:
        measured = len(gaps) / ((times[-1] - times[0]) * tick)
        # Stamps are rounded to ticks: the declared rate is the finer one where both agree.
        if not declared or abs(measured / declared - 1) > 0.01:
            rate = measured
        short, long = min(gaps), max(gaps)
        if long - short > 1 or 2 * long > 3 * short:
            varying = (
                f"frames are {float(1000 * short * tick):.1f} to "
                f"{float(1000 * long * tick):.1f} ms apart"
            )
    even = gaps and min(gaps) == max(gaps)
    return FrameTable(
        length=len(times),
        times=range(times[0], times[-1] + 1, gaps[0]) if even else array("q", times),
        keys=frozenset(keys),
        rate=float(rate) if rate else None,
        varying=varying,
        grey=grey,
    )


def _wanted(file: BinaryIO, table: FrameTable, wanted: range) -> Iterator[VideoFrame]:
    if table.times is None:
        with _opened(file) as (container, stream):
            for number, frame in enumerate(container.decode(stream)):
                if number in wanted:
                    yield frame
                if number >= wanted[-1]:
                    return
        raise BrokenVideo(f"frame {wanted[-1]} cannot be decoded")
    for back in (*_STEPS_BACK, None):
        origin = None if back is None or back >= wanted.start else wanted.start - back
        with _opened(file) as (container, stream):
            target = table.times[wanted.start]
            if origin is None:
                decoded = container.decode(stream)
            else:
                decoded = _sought(container, stream, table, target, table.times[origin])
            first = next((f for f in decoded if (f.pts or 0) >= target), None)
            if first is not None and first.pts == target:
                yield first
                yield from _following(decoded, table.times, wanted[1:])
                return
        if origin is None:
            break
    raise BrokenVideo(f"frame {wanted.start} cannot be decoded")


def _sought(
    container: av.container.InputContainer,
    stream: VideoStream,
    table: FrameTable,
    target: int,
    origin: int,
) -> Iterator[VideoFrame]:
    """Decode from the key frame before the stamp `origin` on.

    Gives nothing if the seek ends behind the target: then a key frame further back is needed. A
    frame shown before the key frame it is stored behind refers to pictures that a seek skips.
    """
    container.seek(origin, stream=stream, backward=True)
    packets = container.demux(stream)
    key = next((p for p in packets if (p.pts, p.pos) in table.keys), None)
    if key is None or key.pts is None or key.pts > target:
        return
    for packet in chain([key], packets):
        yield from _frames(packet)


def _frames(packet: Packet) -> Iterator[VideoFrame]:
    for frame in packet.decode():
        if isinstance(frame, VideoFrame):
            yield frame


def _following(
    decoded: Iterator[VideoFrame], times: Sequence[int], wanted: range
) -> Iterator[VideoFrame]:
    for number in wanted:
        frame = next((f for f in decoded if (f.pts or 0) >= times[number]), None)
        if frame is None or frame.pts != times[number]:
            raise BrokenVideo(f"frame {number} cannot be decoded")
        yield frame


def _pixels(frame: VideoFrame) -> Tensor:
    if frame.is_corrupt:
        raise BrokenVideo(f"the frame at {frame.time} s is damaged")
    check_sides(frame.height, frame.width)
    pixels = frame.to_ndarray(format="rgb24", threads=1)
    if turns := round(frame.rotation / 90) % 4:
        pixels = np.rot90(pixels, turns)
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.FFmpegError):
        return f"{type(error).__name__}: {error.strerror}"
    return f"{type(error).__name__}: {error}"

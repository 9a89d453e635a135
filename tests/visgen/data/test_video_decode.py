"""Frames of real encoders' files: counted, timed, and found again after a seek."""

import io
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from torch import Tensor

from visgen.data import clip_frames
from visgen.data.clip_frames import BrokenVideo
from visgen.data.video_decode import FrameTable, inspect_video, read_video

Writer = Callable[..., Path]
B_FRAMES = {"bf": "3", "b_strategy": "0", "preset": "veryfast"}
KINDS = {
    "h264-b-frames.mp4": ("libx264", {"options": B_FRAMES}),
    "open-gop.mp4": (
        "libx264",
        {"options": {**B_FRAMES, "x264-params": "open-gop=1:keyint=10:scenecut=0"}},
    ),
    "h264.mkv": ("libx264", {"options": B_FRAMES}),
    "refresh.mp4": ("libx264", {"options": {"x264-params": "intra-refresh=1:keyint=10"}}),
    "fragmented.mp4": (
        "libx264",
        {"options": B_FRAMES, "container_options": {"movflags": "frag_keyframe+empty_moov"}},
    ),
    "mpeg4.avi": ("mpeg4", {}),
    "mpeg4-b-frames.avi": ("mpeg4", {"options": {"bf": "2"}}),
    "h264.avi": ("libx264", {"options": B_FRAMES}),
    "vp9.webm": ("libvpx-vp9", {"options": {"deadline": "realtime", "cpu-used": "8"}}),
    "hidden-frames.webm": ("libvpx", {"options": {"auto-alt-ref": "1", "lag-in-frames": "16"}}),
    "mpeg2.mpg": ("mpeg2video", {"options": {"bf": "2"}}),
    "mpeg4.mov": ("mpeg4", {"options": {"bf": "2"}}),
}
COUNTED = {"h264.avi", "mpeg2.mpg"}  # their stamps cannot tell frames apart


def decode_all(path: Path) -> list[Tensor]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames]


def inspect(path: Path) -> FrameTable:
    with path.open("rb") as file:
        return inspect_video(file)


@pytest.mark.parametrize("name", KINDS)
def test_a_clip_is_a_slice_of_the_whole_video(
    tmp_path: Path, write_video: Writer, name: str
) -> None:
    codec, options = KINDS[name]
    path = write_video(tmp_path / name, codec, frames=40, **options)
    whole, table = decode_all(path), inspect(path)
    assert table.length == len(whole) == 40
    assert (table.rate, table.varying, table.grey) == (25.0, None, False)
    assert (table.times is None) == (name in COUNTED)
    with path.open("rb") as file:
        for start in range(0, 36):
            wanted = range(start, start + 5, 2)
            clip = list(read_video(file, table, wanted))
            assert len(clip) == 3
            for frame, number in zip(clip, wanted, strict=True):
                assert torch.equal(frame, whole[number]), number


class Watched(io.BytesIO):
    """Counts the bytes that are read of it."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        block = super().read(size)
        self.taken += len(block)
        return block


@pytest.mark.parametrize("name", ["late.mp4", "late.avi", "late.mkv"])
def test_reading_the_end_does_not_read_the_whole_file(
    tmp_path: Path, write_video: Writer, name: str
) -> None:
    noise = np.random.RandomState(0).randint(0, 256, (120, 128, 128, 3), dtype=np.uint8)
    path = write_video(
        tmp_path / name, "mjpeg", frames=list(noise), size=(128, 128), pixels="yuvj444p"
    )
    file = Watched(path.read_bytes())
    table = inspect_video(file)
    file.taken = 0
    assert len(list(read_video(file, table, range(117, 120)))) == 3
    assert file.taken < 0.5 * len(file.getvalue())


def test_variable_frame_rate_is_named_with_its_extremes(
    tmp_path: Path, write_video: Writer
) -> None:
    times = [40 * i + 60 * (i // 5) for i in range(20)]
    path = write_video(tmp_path / "vfr.mp4", "libx264", frames=20, milliseconds=times)
    table, whole = inspect(path), decode_all(path)
    assert table.varying == "frames are 40.0 to 100.0 ms apart"
    assert table.rate == pytest.approx(19 / 0.940, rel=1e-3)
    with path.open("rb") as file:
        clip = list(read_video(file, table, range(4, 9)))
    assert all(torch.equal(a, b) for a, b in zip(clip, whole[4:9], strict=True))


def test_stamps_rounded_to_milliseconds_are_no_variable_rate(
    tmp_path: Path, write_video: Writer
) -> None:
    table = inspect(write_video(tmp_path / "a.mkv", "mpeg4", rate=30))
    assert (table.rate, table.varying) == (30.0, None)


def test_frames_that_an_edit_list_hides_are_none(tmp_path: Path, write_video: Writer) -> None:
    whole = write_video(tmp_path / "whole.mp4", "libx264", frames=30, options=B_FRAMES)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w") as cut:
        stream = source.streams.video[0]
        copy = cut.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts = packet.pts - 5 * 512, packet.dts - 5 * 512
                packet.stream = copy
                cut.mux(packet)
    table, shown = inspect(tmp_path / "cut.mp4"), decode_all(whole)[5:]
    assert table.length == 25
    with (tmp_path / "cut.mp4").open("rb") as file:
        for start in (0, 3, 20):
            clip = list(read_video(file, table, range(start, start + 5)))
            assert all(torch.equal(a, b) for a, b in zip(clip, shown[start:], strict=False))


def test_fewer_frames_than_declared_are_damage(tmp_path: Path, write_video: Writer) -> None:
    path = write_video(tmp_path / "a.avi", "mpeg4", frames=40)
    content = path.read_bytes()
    for number in range(10, 20):  # packets of a codec's padding hold no picture
        start = _packet(path, number)
        content = content[: start + 4] + bytes(8) + content[start + 12 :]
    path.write_bytes(content)
    with pytest.raises(BrokenVideo, match=r"declares 40 frames, and \d+ can|damaged|Invalid"):
        inspect(path)


def _packet(path: Path, number: int) -> int:
    with av.open(str(path)) as container:
        places = [p.pos for p in container.demux(video=0) if p.size and p.pos is not None]
    return places[number] + 4  # behind the chunk's name


def test_one_frame_and_grey_files_are_told(tmp_path: Path, write_video: Writer) -> None:
    assert inspect(write_video(tmp_path / "one.mp4", "libx264", frames=1)).length == 1
    grey = inspect(write_video(tmp_path / "grey.mkv", "ffv1", frames=3, pixels="gray"))
    assert (grey.length, grey.grey) == (3, True)


def test_a_video_turned_by_a_quarter_stands_upright(tmp_path: Path, write_video: Writer) -> None:
    picture = np.zeros((48, 64, 3), dtype=np.uint8)
    picture[:, :16] = 255  # the left edge is white
    path = write_video(tmp_path / "a.mp4", "libx264", frames=[picture] * 3, rotation=90)
    table = inspect(path)
    with path.open("rb") as file:
        (frame,) = read_video(file, table, range(1))
    # Turned by 90 degrees against the clock, the left edge comes to lie at the bottom.
    assert frame.shape == (3, 64, 48)
    assert frame[:, 60].min() > 200
    assert frame[:, :40].max() < 50


def _text(path: Path, write: Writer) -> None:
    path.write_text("not a video")


def _play_list(path: Path, write: Writer) -> None:
    write(path.with_name("part.mp4"), frames=5)
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\npart.mp4\n#EXT-X-ENDLIST\n")


def _cut_off_before_its_index(path: Path, write: Writer) -> None:
    write(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _cut_off_behind_its_index(path: Path, write: Writer) -> None:
    write(path, container_options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.8)])


def _cut_off_matroska(path: Path, write: Writer) -> None:
    made = write(path.with_suffix(".webm"), "libvpx-vp9", options={"deadline": "realtime"})
    path.write_bytes(made.read_bytes()[: int(made.stat().st_size * 0.6)])


def _sound_alone(path: Path, write: Writer) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        assert isinstance(stream, av.AudioStream)
        samples = np.zeros((1, 8000), dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 8000, 0, Fraction(1, 8000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _without_first_picture(path: Path, write: Writer) -> None:
    write(path, "libx264", container_options={"movflags": "faststart"})
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start : start + 4000] = bytes(len(content[start : start + 4000]))
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_text, "InvalidDataError"),
        (_play_list, "InvalidDataError"),
        (_cut_off_before_its_index, "InvalidDataError"),
        (_cut_off_behind_its_index, "damaged or cut off"),
        (_cut_off_matroska, r"declares 1\.20 s and ends after .* seems to be cut off"),
        (_sound_alone, "holds no video, only audio"),
        (_without_first_picture, "Invalid|damaged|decoded"),
    ],
)
def test_every_kind_of_broken_file_has_its_reason(
    tmp_path: Path, write_video: Writer, make: Callable[[Path, Writer], None], reason: str
) -> None:
    make(tmp_path / "broken.mp4", write_video)
    with pytest.raises(BrokenVideo, match=reason):
        inspect(tmp_path / "broken.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv", "a.mpg"])
def test_damaged_bytes_are_a_reason_and_nothing_worse(
    tmp_path: Path, write_video: Writer, name: str
) -> None:
    codec = "mpeg2video" if name == "a.mpg" else "mpeg4"
    content = write_video(tmp_path / name, codec).read_bytes()
    random, refused = np.random.RandomState(0), 0
    for _ in range(40):
        damaged = bytearray(content)
        at = random.randint(len(damaged) - 40)
        damaged[at : at + 40] = random.bytes(40)
        file = io.BytesIO(damaged)
        try:
            table = inspect_video(file)
            assert len(list(read_video(file, table, range(table.length)))) == table.length
        except BrokenVideo:
            refused += 1
    assert refused > 0


def test_frames_larger_than_the_limit_are_refused(
    tmp_path: Path, write_video: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_frames, "MOST_SIDE", 60)
    with pytest.raises(BrokenVideo, match="its frames are 64x48; sides of 1 to 60"):
        inspect(write_video(tmp_path / "large.mp4"))


def test_a_file_that_is_another_when_read_is_noticed(tmp_path: Path, write_video: Writer) -> None:
    long = write_video(tmp_path / "long.mp4", frames=30)
    short = write_video(tmp_path / "short.mp4", frames=10)
    table = inspect(long)
    with (
        short.open("rb") as file,
        pytest.raises(BrokenVideo, match="frame 20 cannot be decoded"),
    ):
        list(read_video(file, table, range(20, 22)))

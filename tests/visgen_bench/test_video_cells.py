"""Cells of clips: trained in stages, scored under conditions, timed, refused with the reason."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from visgen.data.video_hdf5_writing import write_video_hdf5
from visgen.data.video_opening import open_videos
from visgen.data.videos import Clip
from visgen_bench.cell import QualityCell
from visgen_bench.cells.clips import ModelClips, RealClips
from visgen_bench.cells.film import film, frames_sheet, save_clips
from visgen_bench.cells.grid import BACKGROUND, GAP
from visgen_bench.cells.quality import run_quality
from visgen_bench.cells.video_quality import code_statistics, per_sample_of
from visgen_bench.context import Context, Records
from visgen_bench.metrics.errors import FactsMissing
from visgen_bench.metrics.per_sample import SampleFacts
from visgen_bench.suite import SuiteError
from visgen_results.rows import to_rows
from visgen_results.store import Store

# As the shipped tiny preset, with less of everything.
SMALL = """
from dataclasses import replace
from visgen.models.videogpt import PRESETS as ALL, VideoGPTConfig

def small(name, **changes):
    whole = ALL[name]
    vqvae = replace(whole.vqvae, size=(16, 16), downsample=(4, 4, 4), width=12,
                    inner_width=6, code_dim=8, codes=16,
                    axial=name.startswith("videogpt-agent"),
                    cubes=not name.startswith("videogpt-agent"))
    prior = replace(whole.prior, grid=vqvae.grid, code_dim=8, codes=16, width=24, layers=1,
                    frame_size=16, frame_channels=12, frame_widths=(4, 4, 8), cross_values=12,
                    neighbour_heads=False,
                    **changes)
    return VideoGPTConfig(vqvae=vqvae, prior=prior)

PRESETS = {
    "small-digits": small("videogpt-digits-tiny"),
    "small-agent": small("videogpt-agent-tiny"),
}
"""

STAGES = """
[[cell]]
kind = "quality"
model = "small-digits"
data = "videos:FILE"
weights = "train:small-digits"
samples = 4
reference = 4
condition = "class+frames"
metrics = ["psnr", "nats_per_code", "psnr_reconstruction"]
sampling = { top_k = 8 }

[[cell]]
kind = "train"
model = "small-digits"
data = "videos:FILE"
weights = "train:small-digits"
log_every = 1
recipe = { objective = "prior", steps = 2, batch = 4 }

[[cell]]
kind = "train"
model = "small-digits"
data = "videos:FILE"
log_every = 1
recipe = { objective = "vqvae", steps = 2, batch = 4 }
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.py"
    file.write_text(SMALL)
    return file


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """A few moving digits with their classes, as a user's HDF5 file."""
    data = open_videos("moving-digits:1", Clip(frames=16, size=(16, 16)))
    few = {"train": data.split("train")[:20], "test": data.split("test")[:6]}
    file = tmp_path / "digits.hdf5"
    write_video_hdf5(file, dataclasses.replace(data, splits=few), splits=["train", "test"])
    return file


def rows(out: Path, table: str) -> list[dict[str, Any]]:
    return sorted(to_rows(Store(out).read(table)), key=lambda row: row["run_id"])


def test_stages_run_in_order_and_one_file_has_all_parts(bench, small: Path, digits: Path) -> None:
    bench.run(STAGES.replace("FILE", str(digits)), include=(small,), in_process=True)
    runs = rows(bench.out, "runs")
    assert [run["status"] for run in runs] == ["ok"] * 3
    assert [run["kind"] for run in runs] == ["train", "train", "quality"]
    first, second, scored = runs
    from visgen.checkpoints import read

    path = bench.out / second["artifacts_path"] / "weights.safetensors"
    tensors, metadata = read(path)
    assert {key.partition(".")[0] for key in tensors} == {"vqvae", "prior"}
    assert metadata["begun_from"] == first["weights_sha256"]
    begun, _ = read(bench.out / first["artifacts_path"] / "weights.safetensors")
    assert all(torch.equal(tensors[key], value) for key, value in begun.items())
    assert scored["weights_sha256"] == second["weights_sha256"]
    assert scored["resolution"] == "16x3x16x16"
    assert scored["frames"] == 16
    assert scored["variant"] == "class+frames:1 top_k=8"
    found = {row["metric"]: row for row in rows(bench.out, "metrics")}
    assert found["psnr"]["n"] == 4
    assert 0 < found["nats_per_code"]["value"] < 10
    assert 0 < found["code_usage"]["value"] <= 1
    assert found["variance_left"]["value"] > 0
    entropy, share = found["code_entropy"]["value"], found["code_share"]
    if entropy >= 0.05:
        assert share["value"] == pytest.approx(found["nats_per_code"]["value"] / entropy)
    else:  # two steps of training: almost everything is one code
        assert share["value"] is None
        assert "is one code" in share["reason"]
    curve = [r for r in rows(bench.out, "measurements") if r["metric"] == "psnr"]
    assert sorted(row["iter"] for row in curve) == list(range(1, 16))  # frame 0 was given
    losses = [r for r in rows(bench.out, "measurements") if r["metric"] == "loss"]
    assert {row["phase"] for row in losses} == {"vqvae", "prior"}


def test_what_cannot_be_asked_for_is_refused_before_anything_runs(bench, small: Path) -> None:
    cell = '[[cell]]\nkind = "quality"\nweights = "untrained"\nmetrics = ["flicker"]\n'
    agent = f'{cell}model = "small-agent"\ndata = "grid-agent"\n'
    for text, said in (
        (agent + 'condition = "class"', "it takes frames, actions"),
        (agent + 'condition = "clas"', '"class"'),
        (agent + "sampling = { topk = 3 }", 'no choice "topk"; nearest: "top_k"'),
        (agent + "sampling = { top_p = 3.0 }", "top_p=3.0"),
        (agent + 'clip = "8x8x8"', "makes clips of 16x16x16"),
        (agent.replace("flicker", "fd_lite0"), "fd_lite0 looks at pictures"),
        (agent.replace("grid-agent", "digits:8"), "holds pictures"),
        (agent.replace("grid-agent", "grid-agen"), 'nearest: "grid-agent"'),
        (
            cell + 'model = "copy-last-frame"\ndata = "grid-agent"\nclip = "8x16x16"',
            "without frames",
        ),
        (
            cell.replace('"untrained"', '"fit"') + 'model = "mean-clip"\ndata = "grid-agent"',
            "clip is missing",
        ),
        (
            cell.replace("flicker", "fvd_lite0_frames")
            + 'model = "dcgan-digits8-tiny"\ndata = "digits:8"',
            "looks at clips",
        ),
        (
            '[[cell]]\nkind = "train"\nmodel = "small-agent"\ndata = "grid-agent"\n'
            'recipe = { objective = "prior", steps = 1, batch = 1 }',
            "a prior learns the codes of a trained VQ-VAE",
        ),
        (
            '[[cell]]\nkind = "train"\nmodel = "small-agent"\ndata = "grid-agent"\n'
            'recipe = { objective = "hinge", steps = 1, batch = 1 }',
            "allowed: vqvae, prior",
        ),
        (
            '[[cell]]\nkind = "train"\nmodel = "small-agent"\ndata = "grid-agent"\n'
            'recipe = { objective = "vqvay", steps = 1, batch = 1 }',
            'nearest: "vqvae"',
        ),
        (
            cell.replace("untrained", "fit")
            + 'model = "mean-clip"\ndata = "camera-moves"\nclip = "4x16x16"\ncondition = "text"',
            "it takes none",
        ),
    ):
        with pytest.raises(SuiteError) as error:
            bench.plan(text, include=(small,))
        assert said in str(error.value), text


def test_samples_stand_beside_the_real_clips_whose_condition_they_have() -> None:
    data = open_videos("moving-shapes", Clip(frames=4, size=(16, 16)))
    real = RealClips(data, "test", most=3)
    samples = torch.tensor([0, 4, 2])
    clips, chosen = real.at(samples), data.split("test")[torch.tensor([0, 1, 2])]
    assert torch.equal(clips, data.videos(chosen))
    both = real.condition(("class", "text"), 0, samples)
    label, text = both.several  # type: ignore[union-attr]
    assert torch.equal(label.labels, data.labels(chosen))  # type: ignore[union-attr]
    assert list(text.sentences) == data.captions(chosen)  # type: ignore[union-attr]
    frames = real.condition(("frames",), 2, samples)
    assert torch.equal(frames.frames, clips[:, :2])  # type: ignore[union-attr]
    assert real.condition((), 0, samples) is None


class Levels:
    """A codec in closed form: every frame is one of four greys, 32, 96, 160 or 224."""

    clip_size, code_count = (4, 8, 8), 5

    def encode(self, clips: torch.Tensor) -> torch.Tensor:
        return (clips.float().mean((2, 3, 4)) // 64).long()[..., None, None]

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        grey = (codes * 64 + 32).to(torch.uint8)[..., None]
        return grey.expand(*codes.shape[:2], 3, 8, 8)


def test_statistics_of_codes_in_closed_form(tmp_path: Path) -> None:
    """Two clips, eight grey frames: codes 0 0 0 0 1 1 2 2 of 5, every frame 8 levels off."""
    greys = np.array([[40, 24, 40, 24], [88, 104, 152, 168]], dtype=np.uint8)
    clips = np.broadcast_to(greys[..., None, None, None], (2, 4, 8, 8, 3))
    np.save(tmp_path / "greys.npy", clips)
    clip = Clip(frames=4, size=(8, 8))
    data = open_videos(f"videos:{tmp_path / 'greys.npy'}", clip)
    split = next(name for name, places in data.splits.items() if len(places) == 2)
    source = object.__new__(ModelClips)
    source.model, source.device = cast(Any, Levels()), "cpu"
    found = code_statistics(source, RealClips(data, split), samples=2)
    assert found is not None
    assert (found.clips, found.used) == (2, 3 / 5)
    assert found.entropy == pytest.approx(-(0.5 * math.log(0.5) + 0.5 * math.log(0.25)))
    assert found.variance_left == pytest.approx(64 / greys.astype(float).var())


def test_the_judge_reads_reconstructions_beside_what_the_real_clips_show() -> None:
    """A tokenizer that loses nothing is obeyed as real clips are, one that paints all grey never.

    (No source: these functions ask no model.)
    """
    data = open_videos("moving-shapes", Clip(frames=16, size=(32, 32)))
    real = RealClips(data, "test", most=24)
    functions = per_sample_of(cast(Any, None))
    clips, at = real.at(torch.arange(24)), torch.arange(24)
    condition = real.condition(("class", "text"), 0, at)
    grey = torch.full_like(clips, 128)
    for name in ("class_obeyed_reconstruction", "caption_obeyed_reconstruction"):
        lossless = SampleFacts(real=clips, reconstruction=clips, condition=condition)
        assert float(functions[name](grey, lossless).mean()) > 0.95
        blind = SampleFacts(real=clips, reconstruction=grey, condition=condition)
        assert float(functions[name](clips, blind).sum()) == 0
        with pytest.raises(FactsMissing, match="no model that codes clips"):
            functions[name](clips, SampleFacts(real=clips, condition=condition))
    agent = RealClips(open_videos("grid-agent", Clip(frames=16, size=(32, 32))), "test", most=8)
    clips = agent.at(torch.arange(8))
    told = agent.condition(("actions",), 0, torch.arange(8))
    facts = SampleFacts(real=clips, reconstruction=clips, condition=told)
    name = "action_accuracy_reconstruction"
    assert float(functions[name](torch.zeros_like(clips), facts).nanmean()) > 0.98


def test_copying_the_last_frame_of_still_clips_is_perfect(tmp_path: Path) -> None:
    """A closed form: where nothing moves, the prediction is the clip."""
    still = np.repeat(np.arange(12, dtype=np.uint8)[:, None] * 20, 6, axis=1)
    np.save(
        tmp_path / "still.npy", np.broadcast_to(still[..., None, None, None], (12, 6, 16, 16, 3))
    )
    cell = QualityCell(
        model="copy-last-frame",
        weights="fit",
        data=f"videos:{tmp_path / 'still.npy'}",
        split="all",
        clip="6x16x16",
        condition="frames",
        samples=12,
        metrics=("psnr", "ssim", "flicker"),
    )
    sink = Records()
    run_quality(cell, Context(root=tmp_path, spec_key="key", sink=sink, offline=True))
    found = {r["row"]["metric"]: r["row"] for r in sink.records if r.get("table") == "metrics"}
    assert found["psnr"]["value"] == 100.0  # the stated cap of identical frames
    assert found["ssim"]["value"] == pytest.approx(1.0)
    assert found["flicker"]["value"] == 0.0
    assert json.loads(found["psnr"]["metric_opts"])["cap"] == 100.0


def test_a_cell_that_was_interrupted_gives_the_same_rows(tmp_path: Path) -> None:
    def score(folder: Path, limit: int | None) -> dict[str, float]:
        cell = QualityCell(
            model="shuffled-videos",
            weights="fit",
            data="moving-digits:1",
            clip="4x16x16",
            samples=12,
            reference=12,
            chunk=5,
            batch=3,
            metrics=("fvd_lite0_frames", "fd_lite0_frames", "flicker"),
        )
        sink = Records()
        context = Context(root=folder, spec_key="key", sink=sink, offline=True)
        if limit is not None:
            kept, calls = Records.write, []

            class Stop(Exception):
                pass

            def write(self: Records, record: dict[str, Any]) -> None:
                if str(record.get("text", "")).startswith("samples"):
                    calls.append(1)
                    if len(calls) == limit:
                        raise Stop
                kept(self, record)

            sink.write = write.__get__(sink)  # type: ignore[method-assign]
            with pytest.raises(Stop):
                run_quality(cell, context)
            sink = Records()
            context = Context(root=folder, spec_key="key", sink=sink, offline=True)
        run_quality(cell, context)
        rows = [r["row"] for r in sink.records if r.get("table") == "metrics"]
        return {row["metric"]: row["value"] for row in rows}

    assert score(tmp_path / "a", None) == score(tmp_path / "b", 1)


def test_timed_clips_say_what_a_clip_consists_of(bench, small: Path) -> None:
    text = (
        '[[cell]]\nkind = "performance"\nmodel = "small-digits"\n'
        'phase = ["sample", "vqvae_step", "prior_step"]\nbatch = 2\ncondition = "class"\n'
        "warmup_min_s = 0\nmin_iters = 1\nmin_duration_s = 0\nmax_duration_s = 0.1\n"
    )
    bench.run(text, include=(small,), in_process=True)
    assert [run["status"] for run in rows(bench.out, "runs")] == ["ok"] * 3
    found = {(r["metric"], r["phase"]): r for r in rows(bench.out, "metrics")}
    rate = found["throughput", "sample"]
    assert rate["unit"] == "clips/s"
    assert found["frame_rate", "sample"]["value"] == pytest.approx(16 * rate["value"])
    assert found["token_rate", "sample"]["value"] == pytest.approx(4 * 4 * 4 * rate["value"])
    # Floats of 2 clips and 1 layer: keys and values of 64 codes, 24 channels each; those of the
    # 4 x 4 places of a first frame, looked at even where none is given: 24 and 12 channels.
    assert found["mem_cache", "sample"]["value"] == 4 * 2 * (64 * 2 * 24 + 16 * (24 + 12))
    assert found["first_frame", "sample"]["value"] > 0
    for phase in ("sample", "vqvae_step", "prior_step"):
        assert found["flops", phase]["value"] > 0


def test_a_sheet_has_a_clip_a_row_and_a_film_shows_all_side_by_side(tmp_path: Path) -> None:
    clips = [torch.full((3, 3, 48, 48), 10 * i + 5, dtype=torch.uint8) for i in range(3)]
    sheet = frames_sheet(clips)
    assert sheet.shape == (3, 3 * (48 + GAP) + GAP, 3 * (48 + GAP) + GAP)
    assert int(sheet[0, 0, 0]) == BACKGROUND
    for i in range(3):
        assert int(sheet[0, GAP + i * (48 + GAP), GAP]) == 10 * i + 5
    greys = [0, 80, 255, 160]
    moving = torch.tensor(greys, dtype=torch.uint8).view(4, 1, 1, 1).repeat(1, 3, 48, 48)
    assert film([moving])[:, 0, GAP, GAP].tolist() == greys
    save_clips(tmp_path, "samples", [moving])
    with Image.open(tmp_path / "samples.webp") as played:
        pages = [np.asarray(page.convert("RGB")) for page in ImageSequence.Iterator(played)]
    shown = [int(page[GAP + 20, GAP + 20, 0]) for page in pages]
    assert shown == pytest.approx(greys, abs=8)  # the film is compressed
    assert sorted(file.name for file in tmp_path.iterdir()) == ["samples.png", "samples.webp"]

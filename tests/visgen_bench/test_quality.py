"""Quality cells: references first, seeds by index, ranks and chunks that change nothing."""

import itertools
import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from visgen.data import open_data
from visgen.seeds import sample_seeds
from visgen_bench.cell import QualityCell
from visgen_bench.cells import splits
from visgen_bench.cells.grid import save_sheet, sheet
from visgen_bench.cells.quality import run_quality
from visgen_bench.context import Context, Records, Unavailable
from visgen_results.leaderboard import leaderboard
from visgen_results.report import report
from visgen_results.rows import to_rows
from visgen_results.store import Store

CACHE = Path("cache") / "reference"


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of the test digits, computed once for all tests of this file."""
    folder = tmp_path_factory.mktemp("references")
    score(folder, metrics=FD, samples=2)
    return folder / CACHE


@pytest.fixture
def root(tmp_path: Path, references: Path) -> Path:
    """A result folder that has the statistics of the test digits."""
    (tmp_path / CACHE).parent.mkdir(parents=True)
    (tmp_path / CACHE).symlink_to(references)
    return tmp_path


def score(folder: Path, **fields: Any) -> dict[str, dict[str, Any]]:
    """Rows by metric, of a cell that runs in this process."""
    limit, key = fields.pop("limit", None), fields.pop("key", "key")
    given = {"data": "digits:8", "samples": 30, "metrics": ("copy_share",), **fields}
    if "images" not in given:
        given = {"model": "pca20-gaussian", "weights": "fit", **given}
    records = given.pop("sink", None) or Records()
    about = {name: given.pop(name) for name in ("offline", "weights_path") if name in given}
    cell = QualityCell(**given)
    about = {"offline": True, "limit": limit, **about}
    run_quality(cell, Context(root=folder, spec_key=key, sink=records, **about))
    rows = [record["row"] for record in records.records if "row" in record]
    return {row["metric"]: row for row in rows if row["metric"] != "params"}


FD = ("fd_lite0", "kid_lite0", "precision", "digit_classes", "copy_share")


def test_a_row_carries_everything_that_defines_its_number(root: Path) -> None:
    rows = score(root, metrics=FD)
    row = rows["fd_lite0"]
    assert (row["n"], row["n_ref"], row["protocol"]) == (30, 360, "fd_lite0-v1")
    assert len(row["extractor_sha256"]) == 64
    assert row["ref_stats_sha256"]
    assert row["comparable"] is False, "a proxy is never comparable elsewhere"
    assert row["ci_low"] is None, "a bootstrap interval of a Frechet distance would be a lie"
    assert rows["precision"]["ci_low"] < rows["precision"]["value"]
    assert set(rows) == set(FD)


def test_batch_and_chunk_do_not_change_the_numbers(root: Path) -> None:
    whole = score(root, key="a", metrics=FD, batch=30, chunk=500)
    parts = score(root, key="b", metrics=FD, batch=7, chunk=11)
    for metric in FD:
        # float32 convolutions depend on the batch in their last bits (metrics.md, M4)
        assert parts[metric]["value"] == pytest.approx(whole[metric]["value"], rel=1e-5)


def test_real_training_images_are_all_copies_and_near_the_test_images(root: Path) -> None:
    rows = score(root, model="real-images", metrics=("copy_share", "digit_classes"))
    assert rows["copy_share"]["value"] == 1.0
    assert rows["digit_classes"]["value"] >= 9, "thirty draws of ten classes"


def test_the_sheets_show_the_first_samples_and_the_reference(root: Path) -> None:
    score(root, model="real-images", samples=70, batch=9)
    folder = root / "artifacts" / "key"
    data = open_data("digits:8")
    expected = sheet(list(data.images(data.split("test")[:64])))
    assert torch.equal(_read(folder / "reference.png"), expected)
    from visgen.baselines.statistical import PRESETS

    model = PRESETS["real-images"].fit(data.images(data.split("train")), run_seed=0)
    drawn = model.generate(sample_seeds(0, torch.arange(64)))
    assert torch.equal(_read(folder / "samples.png"), sheet(list(drawn)))


def _read(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1)


def test_small_pictures_are_enlarged_pixel_by_pixel(tmp_path: Path) -> None:
    picture = torch.arange(12, dtype=torch.uint8).view(3, 2, 2) * 20
    page = sheet([picture])
    assert page.shape == (3, 48 + 4, 8 * 50 + 2)
    assert (page[:, 2:26, 2:26] == picture[:, :1, :1]).all()
    with pytest.raises(ValueError, match="at least one"):
        sheet([])
    save_sheet(tmp_path / "p.png", [picture] * 65)
    assert [file.name for file in tmp_path.iterdir()] == ["p.png"]


def test_a_limit_caps_the_samples_and_marks_the_rows(root: Path) -> None:
    row = score(root, limit=10)["copy_share"]
    assert (row["n"], row["comparable"]) == (10, False)


def test_metrics_without_weights_are_null_with_the_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("VISGEN_WEIGHTS_DIR", raising=False)
    row = score(tmp_path, metrics=("fid", "copy_share"))["fid"]
    assert row["value"] is None
    assert "VISGEN_WEIGHTS_DIR" in row["reason"]
    with pytest.raises(Unavailable, match="VISGEN_WEIGHTS_DIR"):
        score(tmp_path, metrics=("fid", "kid"))


def test_a_download_that_fails_leaves_the_other_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    monkeypatch.delenv("VISGEN_WEIGHTS_DIR", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        proxy = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, proxy)
        monkeypatch.setenv("no_proxy", "")
        rows = score(tmp_path, metrics=("fid", "copy_share"), offline=False)
    assert rows["fid"]["value"] is None
    assert "cannot be reached" in rows["fid"]["reason"]
    assert rows["copy_share"]["value"] is not None


def test_an_untrained_twin_is_seeded(root: Path) -> None:
    sheets = []
    for key, seed in (("a", 1), ("b", 1), ("c", 2)):
        score(root, key=key, model="dcgan-digits8-tiny", weights="untrained", seed=seed)
        sheets.append((root / "artifacts" / key / "samples.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]


def test_weights_of_another_preset_are_refused_by_name(bench, tmp_path: Path) -> None:
    from visgen.catalogue import find
    from visgen.checkpoints import save_weights
    from visgen.checkpoints.weights import part_states

    path = tmp_path / "w.safetensors"
    save_weights(path, part_states(find("dcgan-digits16-tiny").build().networks()), {})
    text = (
        '[[cell]]\nkind = "quality"\nmodel = "dcgan-digits8-tiny"\ndata = "digits:8"\n'
        f'weights = "file:{path}"\nsamples = 4\nmetrics = ["copy_share"]\n'
    )
    bench.run(text, in_process=True)
    (run,) = to_rows(Store(bench.out).read("runs"))
    assert (run["status"], run["error_type"]) == ("error", "CheckpointError")
    assert "has shape" in run["error_msg"]
    assert run["weights"].startswith("file:")
    assert str(tmp_path) not in run["config_json"]


class FullDisk(Records):
    """Takes what comes before the second chunk of samples."""

    def write(self, record: dict[str, Any]) -> None:
        super().write(record)
        if str(record.get("text")).startswith("samples 0.."):
            raise OSError(28, "No space left on device")


def test_samples_of_other_weights_are_not_gone_on_from(root: Path) -> None:
    from visgen.catalogue import find
    from visgen.checkpoints import save_weights
    from visgen.checkpoints.weights import part_states

    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        paths.append(root / f"{seed}.safetensors")
        save_weights(paths[-1], part_states(find("dcgan-digits8-tiny").build().networks()), {})
    fields = {"model": "dcgan-digits8-tiny", "weights": "train:w", "samples": 8, "chunk": 4}
    fields["metrics"] = ("digit_confident",)
    with pytest.raises(OSError, match="No space"):
        score(root, weights_path=paths[0], sink=FullDisk(), **fields)
    kept = Records()
    score(root, weights_path=paths[0], sink=kept, key="kept", **fields)
    mixed, again = Records(), Records()
    second = score(root, weights_path=paths[1], sink=mixed, **fields)
    assert not [r for r in mixed.records if "resumed" in str(r.get("text"))]
    assert second == score(root, weights_path=paths[1], key="alone", **fields)
    sheets = [root / "artifacts" / key / "samples.png" for key in ("key", "alone", "kept")]
    assert sheets[0].read_bytes() == sheets[1].read_bytes() != sheets[2].read_bytes()
    with pytest.raises(OSError, match="No space"):
        score(root, weights_path=paths[1], sink=FullDisk(), key="third", **fields)
    score(root, weights_path=paths[1], sink=again, key="third", **fields)
    assert [r for r in again.records if "resumed: 4 samples" in str(r.get("text"))]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("[:-1]", r"gave \(29, 3, 8, 8\) torch.uint8 for 30 seeds"),
        (".float()", "torch.float32"),
        (".reshape(-1, 3, 4, 16)", r"must give a tensor uint8 \(30, 3, 8, 8\)"),
        (".numpy()", "must give a tensor uint8"),
    ],
)
def test_what_is_not_one_picture_a_seed_is_refused(root: Path, change: str, says: str) -> None:
    file = root / "mine.py"
    file.write_text(
        "from dataclasses import dataclass\nfrom visgen.baselines.dcgan import DCGAN, DCGANConfig\n"
        "class Mine(DCGAN):\n    def generate(self, seeds, condition=None, sampling=None):\n"
        f"        return super().generate(seeds){change}\n"
        "@dataclass(frozen=True, kw_only=True)\nclass MineConfig(DCGANConfig):\n"
        "    def build(self, attention=None):\n        return Mine(self).eval()\n"
        "PRESETS = {'mine': MineConfig(bottom=2, doublings=2, width=8, latent=8)}\n"
    )
    with pytest.raises(ValueError, match=says):
        score(root, model="mine", weights="untrained", include=str(file))


OWN_MODEL = """
from dataclasses import dataclass
import torch
from torch import nn
from visgen.seeds import integers

class Own(nn.Module):
    image_size = (8, 8)
    def __init__(self):
        super().__init__()
        self.generator, self.calls = nn.Linear(2, 2), 0
    def networks(self):
        return {{"generator": self.generator}}
    def generate(self, seeds, condition=None, sampling=None):
        self.calls += 1
        return ({pictures}).to(torch.uint8)

@dataclass(frozen=True)
class OwnConfig:
    family: str = "own"
    task: str = "image-generation"
    image_size: tuple[int, int] = (8, 8)
    def build(self, attention=None):
        return Own()

PRESETS = {{"own": OwnConfig()}}
"""
SEEDED = 'integers(seeds, "x", 0, 256, (3, 8, 8))'
FIXED = "torch.arange(192).view(1, 3, 8, 8).expand(len(seeds), -1, -1, -1)"
SEED_FAULTS = {"repeated_samples", "redraw_difference"}


@pytest.mark.parametrize(
    ("pictures", "found"),
    [
        (SEEDED, {}),
        # One picture for every seed, now and when drawn again.
        (FIXED, {"repeated_samples": "all 30 samples are one and the same picture; the network"}),
        # Noise of the model's own: other pictures for the same seeds.
        ("torch.rand(len(seeds), 3, 8, 8) * 256", {"redraw_difference": "drawn again"}),
        # What it draws follows from the place in its batch: batches of 10 repeat each other.
        (
            "torch.arange(len(seeds))[:, None, None, None] * 20 + torch.zeros(1, 3, 8, 8)",
            {"repeated_samples": "20 of 30 samples repeat an earlier one (10 are different)"},
        ),
        # One picture a call, another one each time.
        (f"{FIXED} + self.calls", {"repeated_samples": "27 of 30", "redraw_difference": "other"}),
    ],
)
def test_samples_that_do_not_follow_from_their_seeds_are_rows(
    root: Path, pictures: str, found: dict[str, str]
) -> None:
    file = root / "own.py"
    file.write_text(OWN_MODEL.format(pictures=pictures))
    about = {"model": "own", "weights": "untrained", "include": str(file), "batch": 10}
    rows = score(root, **about)
    assert SEED_FAULTS & rows.keys() == found.keys()
    for metric, text in found.items():
        assert rows[metric]["value"] > 0
        assert text in rows[metric]["reason"]
    assert rows["copy_share"]["value"] == 0.0


def test_a_model_that_ignores_its_seeds_is_told_where_people_look(bench, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN_MODEL.format(pictures=FIXED))
    text = (
        '[[cell]]\nkind = "quality"\nmodel = "own"\nweights = "untrained"\ndata = "digits:8"\n'
        'samples = 12\nmetrics = ["copy_share"]\n'
    )
    bench.run(text, include=(tmp_path / "own.py",), in_process=True)
    says = "all 12 samples are one and the same picture"
    assert [line for line in bench.said if says in line]
    shown = leaderboard(bench.out)
    assert says in shown.to_text()
    assert says in shown.to_markdown()
    assert says in report(bench.out, tmp_path / "report.html").read_text()
    (fault,) = shown.to_dict()["faults"]
    assert (fault["metric"], fault["value"], fault["label"]) == (
        "repeated_samples",
        11.0,
        "own untrained",
    )
    assert not [b for b in shown.boards if b.metric.name == "repeated_samples"]


def test_repeats_are_counted_over_an_interruption(root: Path) -> None:
    (root / "own.py").write_text(OWN_MODEL.format(pictures=FIXED))
    about = {"model": "own", "weights": "untrained", "include": str(root / "own.py"), "chunk": 10}
    with pytest.raises(OSError, match="No space"):
        score(root, sink=FullDisk(), **about)
    assert score(root, **about)["repeated_samples"]["value"] == 29.0


def test_pictures_that_a_folder_holds_twice_are_counted(root: Path) -> None:
    one, other = (torch.full((3, 8, 8), level, dtype=torch.uint8) for level in (9, 200))
    write_pictures(root / "mine", [one, other, one])
    row = score(root, images=f"folder:{root / 'mine'}", samples=None)["repeated_samples"]
    assert (row["value"], row["n"]) == (1.0, 3)
    assert row["reason"] == "1 of 3 samples repeat an earlier one (2 are different)"


def test_files_that_cannot_be_used_are_counted_and_named(root: Path) -> None:
    write_pictures(root / "mine", [torch.full((3, 8, 8), 9, dtype=torch.uint8)] * 3)
    (root / "mine" / "bad.png").write_bytes(b"not a picture")
    (root / "mine" / "empty.jpg").write_bytes(b"")
    row = score(root, images=f"folder:{root / 'mine'}", samples=None)["broken_files"]
    assert (row["value"], row["phase"]) == (2.0, "images")
    assert [name for name, _ in json.loads(row["metric_opts"])["files"]] == ["bad.png", "empty.jpg"]
    assert row["reason"].startswith("folder:mine: 2 files cannot be used: bad.png")  # no path
    assert "broken_files" not in score(root, key="whole")


def write_pictures(folder: Path, tensors: list[torch.Tensor]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(tensors):
        array = picture.permute(1, 2, 0).contiguous().numpy()
        Image.fromarray(array).save(folder / f"{number:04}.png")


def test_a_folder_of_the_same_pictures_scores_as_the_model_did(root: Path) -> None:
    data = open_data("digits:8")
    train = data.split("train")[:40]
    write_pictures(root / "mine", list(data.images(train)))
    rows = score(root, images=f"folder:{root / 'mine'}", samples=None, metrics=FD)
    assert rows["fd_lite0"]["n"] == 40
    assert rows["copy_share"]["value"] == 1.0


def test_pictures_of_different_sizes_are_scored_as_they_are(root: Path) -> None:
    noise = torch.Generator().manual_seed(0)
    sizes = [(8, 8), (9, 12), (30, 8), (8, 8)]
    pictures = [
        torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=noise) for size in sizes
    ]
    write_pictures(root / "mine", pictures)
    row = score(root, images=f"folder:{root / 'mine'}", samples=None, metrics=("precision",))[
        "precision"
    ]
    assert row["n"] == 4


def test_one_picture_gives_no_distance_and_says_why(root: Path) -> None:
    write_pictures(root / "mine", [torch.full((3, 8, 8), 9, dtype=torch.uint8)])
    rows = score(root, images=f"folder:{root / 'mine'}", samples=None, metrics=FD[:3])
    for metric in FD[:2]:
        assert rows[metric]["value"] is None
        assert rows[metric]["reason"]


def test_pictures_of_one_colour_have_a_distance(root: Path) -> None:
    write_pictures(root / "mine", [torch.full((3, 8, 8), 9, dtype=torch.uint8)] * 5)
    row = score(root, images=f"folder:{root / 'mine'}", samples=None, metrics=("fd_lite0",))[
        "fd_lite0"
    ]
    assert row["value"] is None or row["value"] > 0


def test_halves_of_a_set_are_disjoint_equal_and_seeded(root: Path) -> None:
    data = open_data("digits:8")
    a, b = splits.indices(data, "half-a"), splits.indices(data, "half-b")
    assert len(a) == len(b) == len(data) // 2
    assert not set(a.tolist()) & set(b.tolist())
    assert torch.equal(a, splits.indices(data, "half-a"))
    assert torch.equal(splits.indices(data, "test"), data.split("test"))


@pytest.mark.slow
def test_two_and_three_ranks_give_what_one_gives(bench) -> None:
    text = """
    [[cell]]
    kind = "quality"
    model = "pca20-gaussian"
    data = "digits:8"
    samples = 41
    batch = 4
    chunk = 16
    threads = 1
    devices = [1, 2, 3]
    metrics = ["fd_lite0", "precision", "digit_classes", "copy_share"]
    """
    summary = bench.run(text)
    assert summary.exit_code == 0
    found: dict[str, dict[int, float]] = {}
    for row in to_rows(Store(bench.out).read("metrics")):
        if row["metric"] != "process_start":
            found.setdefault(row["metric"], {})[row["n_devices"]] = row["value"]
    for metric, values in found.items():
        assert set(values) == {1, 2, 3}
        for ranks in (2, 3):
            assert values[ranks] == pytest.approx(values[1], rel=1e-10), metric
    sheets = [path.read_bytes() for path in bench.out.glob("artifacts/*/samples.png")]
    assert len(sheets) == 3
    assert all(one == other for one, other in itertools.pairwise(sheets))

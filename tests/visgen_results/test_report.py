import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from visgen_results.leaderboard import PROXY_WARNING, leaderboard
from visgen_results.reading import read_results
from visgen_results.report import report
from visgen_results.report.figures import quality_speed
from visgen_results.report.pictures import data_uri

ATTACK = '"><img src=x onerror=alert(1)><script>alert(2)</script></td>'
LITE0 = {
    "n": 1000, "n_ref": 360, "protocol": "fd_lite0-v1", "extractor": "efficientnet-lite0-64",
    "comparable": False,
}  # fmt: skip
VOID = {"meta", "img", "link", "br", "input", "hr"}


class Page(HTMLParser):
    """What a browser would see: elements in balance, texts, addresses, scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.classes: list[str] = []  # of the open elements
        self.frames: list[str] = []  # of every table, the class and focus of what holds it
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.alts: list[str] = []  # of every picture
        self.handlers: list[str] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "table":
            self.frames.append(self.classes[-1])
        if tag not in VOID:
            self.open.append(tag)
            self.classes.append(" ".join(f"{name}={value}" for name, value in attrs))
        for name, value in attrs:
            if name in ("src", "href"):
                self.addresses.append(value or "")
            if tag == "img" and name == "alt":
                self.alts.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.classes.pop()

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] == "script" else self.texts).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


def made(folder: Any, **options: Any) -> Page:
    out = report(folder.root, folder.root / "report.html", **options)
    page = Page(out.read_text("utf-8"))
    assert page.open == []
    return page


def grid(folder: Any, key: str, *names: str) -> str:
    place = folder.root / "artifacts" / key
    place.mkdir(parents=True)
    for name in names:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(place / name)
    return f"artifacts/{key}"


CLIPS: dict[str, Any] = {
    "task": "video-generation", "resolution": "4x3x8x8", "dataset": "moving-digits",
    "weights": "zoo:a", "model": "videogpt-tiny",
}  # fmt: skip


def clips(folder: Any, key: str) -> str:
    """A cell's folder: sheets, and films of four frames."""
    path = grid(folder, key, "samples.png", "reference.png")
    pages = [Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(4)]
    for name in ("samples", "reference"):
        file = folder.root / path / f"{name}.webp"
        pages[0].save(file, save_all=True, append_images=pages[1:], duration=125, loop=0)
    return path


def plots(page: Page) -> list[tuple[list[dict[str, Any]], dict[str, Any]]]:
    """(traces, layout) of every figure."""
    found = []
    for script in page.scripts:
        if "Plotly.newPlot" in script and len(script) < 10**5:
            reader, rest = json.JSONDecoder(), script[script.index("Plotly.newPlot") :]
            traces, end = reader.raw_decode(rest[rest.index("[") :])
            rest = rest[rest.index("[") + end :]
            found.append((traces, reader.raw_decode(rest[rest.index("{") :])[0]))
    return found


def quality(folder: Any, model: str = "transgan-tiny", fd: float = 0.5, **columns: Any) -> str:
    return folder.run({"fd_lite0": fd}, model=model, common=LITE0, **columns)


def speed(folder: Any, model: str = "transgan-tiny", **columns: Any) -> str:
    row = {"metric": "throughput", "value": 50.0, "unit": "img/s", "phase": "sample", "n": 400}
    late = {"metric": "latency", "stat": "p50", "value": 0.02, "phase": "sample", "n": 40}
    size = {"metric": "params", "value": 251234.0, "phase": "generator"}
    return folder.run([row, late, size], kind="performance", model=model, batch_size=1, **columns)


def test_a_full_report_shows_every_part(folder: Any) -> None:
    folder.machine()
    for model in ("transgan-tiny", "dcgan-tiny"):
        path = grid(folder, model, "samples.png", "reference.png")
        quality(folder, model, artifacts_path=path, suite="quick")
        speed(folder, model)
    quality(folder, "real-images", 0.05, family="reference", weights="fit")
    quality(folder, "dcgan-tiny", 2.0, weights="untrained")
    folder.run([{"metric": "gate_copies", "value": 0.0, "metric_opts": {"reason": "6 % > 5 %"}}])
    folder.run(kind="train", dataset="digits:8", series={"d_loss": [1.0, 0.5, 0.4]})
    folder.run(model="stl", status="oom", error_msg="did not fit")
    page = made(folder, title="My models")
    for said in (
        "My models", "Example CPU 3.0 GHz", "visgen-bench run quick --out", PROXY_WARNING,
        "digits:8, test split, 1,000 samples", "real-images", "dcgan-tiny untrained", "reference",
        "copies", "failed", "6 % > 5 %", "FD-lite0 against speed", "real images (digits:8)",
        "sample, batch 1, fp32", "n 40", "251,234", "d_loss", "oom", "did not fit",
        "fd_lite0-v1",
    ):  # fmt: skip
        assert said in page.text, said
    assert page.tags.count("img") == 3  # real images once, then one grid a model
    assert sum("Plotly.newPlot" in script and len(script) < 10**5 for script in page.scripts) == 2


def test_every_table_scrolls_in_a_frame_that_the_keyboard_reaches(folder: Any) -> None:
    quality(folder)
    speed(folder)
    folder.run([{"metric": "gate_copies", "value": 0.0, "metric_opts": {"reason": "6 % > 5 %"}}])
    folder.run(model="stl", status="oom", error_msg="did not fit")
    folder.run([{"metric": "kid", "value": None, "reason": "no weight file"}])
    page = made(folder)
    assert len(page.frames) == page.tags.count("table") >= 8
    assert set(page.frames) == {"class=scroll tabindex=0"}
    style = (folder.root / "report.html").read_text("utf-8").partition("</style>")[0]
    rules = dict(re.findall(r"^([^{}@\n]+) \{([^}]*)\}", style, re.MULTILINE))
    assert "overflow-x: auto" in rules[".scroll"]
    # Nothing in a cell may be cut off: a name cut short is another name.
    assert not [name for name, rule in rules.items() if "ellipsis" in rule]
    hidden = [name for name, rule in rules.items() if re.search(r"overflow(-x)?: hidden", rule)]
    assert hidden == [".plot"]


def test_the_file_makes_no_request(folder: Any) -> None:
    quality(folder, artifacts_path=grid(folder, "a", "samples.png", "reference.png"))
    speed(folder)
    out = report(folder.root, folder.root / "report.html")
    page = Page(out.read_text("utf-8"))
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert "default-src 'none'" in out.read_text("utf-8")
    assert "link" not in page.tags
    assert out.read_text("utf-8").count("plotly.js v") <= 2  # the library once


def test_names_from_results_are_text_everywhere(folder: Any) -> None:
    folder.machine(cpu_model=ATTACK)
    plain = dict.fromkeys(("suite", "visgen_version", "git_commit", "resolution", "task"), ATTACK)
    path = grid(folder, "a", "samples.png")
    quality(folder, ATTACK, dataset=ATTACK, split=ATTACK, artifacts_path=path, **plain)
    speed(folder, ATTACK, device_name=ATTACK)
    options = {"metric_opts": {"reason": ATTACK}}
    folder.run([{"metric": "gate_x" + ATTACK, "value": 1.0} | options], dataset=ATTACK)
    folder.run(kind="train", model=ATTACK, series={ATTACK: [1.0, 2.0]})
    folder.run(model=ATTACK, status="error", error_type=ATTACK, error_msg=ATTACK)
    folder.run([{"metric": "fid", "value": None, "reason": ATTACK}], model=ATTACK)
    page = made(folder, title=ATTACK)
    assert page.handlers == []
    assert page.tags.count("img") == 1
    assert not any(script.startswith("alert") for script in page.scripts)
    assert page.tags.count("script") == 4  # the library, two figures, sorting
    assert page.text.count("<script>alert(2)</script>") > 10


def test_plot_labels_cannot_carry_markup(folder: Any) -> None:
    quality(folder, "<a href='javascript:alert(1)'>x</a>")
    speed(folder, "<a href='javascript:alert(1)'>x</a>")
    page = made(folder)
    (plot,) = (s for s in page.scripts if "Plotly.newPlot" in s and len(s) < 10**5)
    assert "<a" not in plot
    assert "&lt;a href" in plot.replace("\\u0026", "&").replace("\\u003c", "<")


@pytest.mark.parametrize(
    "path", ["../outside", "/etc", "artifacts/link", "artifacts/../../outside"]
)
def test_pictures_outside_the_folder_are_never_read(folder: Any, tmp_path: Path, path: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(outside / "samples.png")
    (folder.root / "artifacts").mkdir(parents=True)
    (folder.root / "artifacts" / "link").symlink_to(outside)
    quality(folder, artifacts_path=path)
    page = made(folder)
    assert "img" not in page.tags
    assert "lies outside the result folder" in page.text


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is not there"),
        (b"<svg onload=alert(1)>", "is no PNG file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(5 * 2**20), "is larger than 4 MiB"),
    ],
)
def test_what_is_no_small_png_is_not_embedded(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "samples.png").write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        data_uri(tmp_path, Path("samples.png"))


def test_only_speed_makes_a_report_without_plots(folder: Any) -> None:
    speed(folder)
    page = made(folder)
    assert "sample, batch 1, fp32" in page.text
    assert page.tags.count("script") == 1
    assert (folder.root / "report.html").stat().st_size < 100_000


def test_only_failures_make_a_report(folder: Any) -> None:
    folder.run(status="skipped", invalid_reason="no weights here")
    page = made(folder)
    assert "no weights here" in page.text
    assert "0 cells measured, 1 without a number" in page.text


def test_only_gates_make_a_report(folder: Any) -> None:
    folder.run([{"metric": "gate_digits", "value": None, "reason": "judge is void"}])
    assert "judge is void" in made(folder).text


def test_an_empty_store_is_an_error_and_writes_nothing(folder: Any, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    with pytest.raises(ValueError, match="holds no results"):
        report(tmp_path, out)
    folder.machine()
    with pytest.raises(ValueError, match="holds no runs"):
        report(folder.root, out)
    assert not out.exists()


def test_broken_files_are_named_in_the_report(folder: Any) -> None:
    quality(folder)
    broken = folder.store.path("metrics", "quality", "torn")
    broken.write_bytes(b"PAR1")
    assert "torn-0.parquet" in made(folder).text


def test_full_disk_leaves_the_old_report(folder: Any, tmp_path: Path) -> None:
    quality(folder)
    speed(folder)
    out = tmp_path / "report.html"
    out.write_text("the old one")
    code = (
        "import resource, sys\n"
        "from visgen_results.report import report\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "report(sys.argv[1], sys.argv[2])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder.root), str(out)],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert "OSError" in done.stderr
    assert out.read_text() == "the old one"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.html"]


def points(folder: Any) -> list[tuple[float, float]]:
    results = read_results(folder.root)
    boards = leaderboard(results).boards
    (first,) = (b for b in boards if b.metric.name == "fd_lite0")
    figure = quality_speed(
        first, [b for b in boards if b.metric.name == "throughput"], results, "x"
    )
    if figure is None:
        return []
    start = figure.fragment.index("[", figure.fragment.index("Plotly.newPlot"))
    traces, _ = json.JSONDecoder().raw_decode(figure.fragment[start:])
    return [(trace["x"][0], trace["y"][0]) for trace in traces]


def test_the_scatter_has_a_point_for_each_model_with_both_numbers(folder: Any) -> None:
    quality(folder, "both", 0.5)
    speed(folder, "both")
    quality(folder, "slowless", 0.6)
    speed(folder, "pictureless")
    quality(folder, "both", 2.0, weights="untrained")
    assert points(folder) == [(50.0, 0.5)]


def test_the_scatter_joins_only_equal_weights_where_both_are_recorded(folder: Any) -> None:
    quality(folder, weights_sha256="aa")
    speed(folder, weights_sha256="bb")
    assert points(folder) == []
    speed(folder, weights_sha256="aa", cell_key="right")
    assert points(folder) == [(50.0, 0.5)]


def test_the_scatter_never_mixes_speeds_of_two_machines(folder: Any) -> None:
    for model, machine in (("a", "m1"), ("b", "m2")):
        quality(folder, model)
        speed(folder, model, machine_id=machine, device_name=machine)
    assert len(points(folder)) == 1


def test_two_folders_of_one_name_are_both_shown(folder: Any) -> None:
    for variant, n in (("11111111", 1000), ("22222222", 500)):
        place = grid(folder, variant, "samples.png")
        columns = {"artifacts_path": place, "variant": variant, "family": "folder"}
        folder.run({"fd_lite0": 1.0}, model="folder:a", common=LITE0 | {"n": n}, **columns)
    text = made(folder).text
    assert text.count("folder:a 11111111") >= 2, "in a table and beneath its picture"
    assert text.count("folder:a 22222222") >= 2


def test_a_report_plays_the_clips_beside_the_real_ones(folder: Any) -> None:
    variant = "class+frames top_k=8"
    folder.run(
        {"psnr": 20.0}, artifacts_path=clips(folder, "a"), variant=variant, common={"n": 24},
        **CLIPS,
    )  # fmt: skip
    page = made(folder)
    kinds = [address.partition(";")[0] for address in page.addresses if address[0] != "#"]
    assert kinds == ["data:image/webp", "data:image/png"] * 2
    own = (
        "videogpt-tiny, weights zoo:a, condition class+frames, sampling top_k=8, n = 24 clips, "
        "seed 0"
    )
    real = "real clips (moving-digits, test, 4x3x8x8)"
    assert page.alts == [
        f"film of real clips: {real}; 0.5 s, again and again",
        f"frames of real clips, one clip a row: {real}",
        f"film of samples: {own}; 0.5 s, again and again",
        f"frames of samples, one clip a row: {own}",
    ]
    assert f"{real} " in page.text
    assert own in page.text
    assert "Films and strips are 0.0 MiB of this page" in page.text
    assert "Samples beside real images" not in page.text
    content = base64.b64decode(page.addresses[-2].partition(",")[2])
    film = Image.open(io.BytesIO(content))
    assert (film.is_animated, film.n_frames) == (True, 4)  # type: ignore[attr-defined]


def test_films_that_are_missing_or_damaged_are_said_and_the_report_is_made(folder: Any) -> None:
    path = clips(folder, "a")
    folder.run({"psnr": 20.0}, artifacts_path=path, **CLIPS)
    film = folder.root / path / "samples.webp"
    film.write_bytes(film.read_bytes()[:-9])
    (folder.root / path / "reference.webp").unlink()
    (folder.root / path / "samples.png").write_bytes(b"")
    page = made(folder)
    assert page.tags.count("img") == 1
    for said in (
        "not shown: artifacts/a/samples.webp is damaged",
        "not shown: artifacts/a/reference.webp is not there",
        "not shown: artifacts/a/samples.png is no PNG file",
    ):
        assert said in page.text


def test_names_of_clips_are_text_in_captions_and_alternative_texts(folder: Any) -> None:
    columns = CLIPS | dict.fromkeys(("model", "weights", "variant", "dataset", "split"), ATTACK)
    numbers: list[dict[str, Any]] = [{"metric": "psnr", "value": 20.0}]
    curve = {"series": {"psnr": [1.0, 2.0]}, "series_phase": "frames"}
    folder.run(numbers, artifacts_path=clips(folder, "a"), **columns, **curve)
    page = made(folder)
    assert page.handlers == []
    assert page.tags.count("img") == 4
    assert page.tags.count("script") == 3  # the library, one figure, sorting
    assert not any(script.startswith("alert") for script in page.scripts)


def test_numbers_a_frame_are_a_chart_with_a_line_for_each_model(folder: Any) -> None:
    frames = {"series_phase": "frames"}
    for seed, values in enumerate(([10.0, 8.0], [12.0, 6.0])):
        folder.run({"psnr": 9.0}, seed=seed, series={"psnr": values}, **CLIPS, **frames)
    other = CLIPS | {"model": "conv-lstm", "variant": "frames"}
    folder.run({"psnr": 9.0}, series={"psnr": [5.0, 4.0], "ssim": [0.5, 0.25]}, **other, **frames)
    page = made(folder)
    psnr, ssim = plots(page)
    assert [(trace["name"], trace["x"], trace["y"]) for trace in psnr[0]] == [
        ("videogpt-tiny", [0, 1], [11.0, 7.0]),
        ("conv-lstm (frames)", [0, 1], [5.0, 4.0]),
    ]
    assert psnr[1]["xaxis"]["title"]["text"] == "frame of the clip (0 is the first)"
    assert psnr[1]["yaxis"]["title"]["text"] == "PSNR [dB], higher is better"
    assert ssim[1]["yaxis"]["title"]["text"] == "SSIM, higher is better"
    assert "Lines under different conditions are not to be ranked." in page.text


def test_charts_hold_clips_of_one_count_and_split(folder: Any) -> None:
    for n, split in ((8, "test"), (16, "test"), (8, "test_comp")):
        columns = CLIPS | {"split": split, "common": {"n": n}, "series_phase": "frames"}
        folder.run({"psnr": 9.0}, series={"psnr": [1.0, 2.0]}, **columns)
    assert [len(traces) for traces, _ in plots(made(folder))] == [1, 1, 1]


def test_training_curves_of_two_stages_are_two_figures_with_their_axes(folder: Any) -> None:
    for stage in ("vqvae", "prior"):
        folder.run(
            kind="train", dataset="moving-digits", series={"loss": [2.0, 1.0]}, series_phase=stage
        )
    found = [layout for _, layout in plots(made(folder))]
    assert [layout["xaxis"]["title"]["text"] for layout in found] == ["step", "step"]
    titles = [layout["yaxis"]["title"]["text"] for layout in found]
    assert titles == ["prior/loss [nat/code]", "vqvae/loss"]


def test_speed_and_quality_of_clips_meet_under_one_condition(folder: Any) -> None:
    fast = {"metric": "throughput", "value": 3.0, "unit": "clips/s", "phase": "sample"}
    folder.run({"psnr": 9.0}, variant="text", **CLIPS)
    folder.run([fast], kind="performance", variant="class", batch_size=4, **CLIPS)
    assert plots(made(folder)) == []
    folder.run([fast], kind="performance", variant="text", batch_size=4, **CLIPS)
    ((_, layout),) = plots(made(folder))
    assert layout["xaxis"]["title"]["text"] == "throughput, clips/s, batch 4"


def test_cells_of_clips_show_their_count_and_the_floor(folder: Any) -> None:
    real = CLIPS | {"model": "real-videos", "family": "reference", "weights": "fit"}
    for columns, value in ((CLIPS, 9.0), (real, 3.0)):
        folder.run({"fvd_lite0_frames": value}, common=LITE0 | {"n": 24}, **columns)
    text = made(folder).text
    assert "FD-lite0 clips* floor 3" in text
    assert text.count("n 24") == 2

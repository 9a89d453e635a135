"""Metrics of other packages, installed as an installer leaves them: a module and its dist-info."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from visgen.baselines.statistical import real_subset
from visgen.data import open_data
from visgen_bench import describe
from visgen_bench.doctor import metrics_here
from visgen_bench.errors import UsageError
from visgen_bench.extractors.opening import Extractors
from visgen_bench.metrics import plugins
from visgen_bench.metrics.errors import ProtocolError
from visgen_bench.metrics.evaluation import names
from visgen_bench.plan import Options, plan
from visgen_bench.presets import load_presets
from visgen_bench.running import run
from visgen_bench.suite import SuiteError, from_text
from visgen_results.leaderboard import leaderboard
from visgen_results.metrics import METRICS
from visgen_results.rows import to_rows
from visgen_results.store import Store

# The squared distance of the means: a formula over one of our networks.
SHIFT = """
import numpy as np
from visgen_bench.metrics.plugins import MetricPlugin
from visgen_results.metrics import MetricInfo

def shift(samples, real, options):
    {body}
    return ((samples.mean(axis=0) - real.mean(axis=0)) ** 2).sum() * options["scale"]

METRIC = MetricPlugin(
    info=MetricInfo("shift_lite0", "shift", "1", False, "squared distance of the means"),
    id="shift_lite0-v1",
    extractor="efficientnet-lite0-64",
    layer="pooled",
    formula=shift,
    options={{"scale": 2.0}},
)
"""
# A network of its own, the picture's mean beside a constant; and our Frechet distance over it.
GREY = """
import torch
from visgen_bench.metrics.plugins import MetricPlugin
from visgen_results.metrics import MetricInfo

class Grey:
    name, sha256, widths = "grey", "0" * 64, {"mean": 2}
    def layers(self, images, names):
        mean = images.float().mean(dim=(1, 2, 3))
        return {"mean": torch.stack([mean, torch.zeros_like(mean)], dim=1)}

def opened(device, *, allow_download):
    assert device == "cpu" and allow_download is False
    return Grey()

METRIC = MetricPlugin(
    info=MetricInfo("fd_grey", "FD-grey", "1", False, "Frechet distance of the mean grey"),
    id="fd_grey-v1", extractor=opened, layer="mean", formula="frechet", options={"ddof": 1},
)
"""
CELL = """
[[cell]]
kind = "quality"
model = "real-images"
data = "digits:8"
samples = 30
metrics = {metrics}
"""


class Site:
    """A folder of installed packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def install(self, name: str, code: str) -> None:
        module = f"plugged_{name}"
        self.modules.append(module)
        (self.folder / f"{module}.py").write_text(code)
        info = self.folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        point = f"[{plugins.GROUP}]\n{name} = {module}:METRIC\n"
        (info / "entry_points.txt").write_text(point)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    made, known = Site(folder), set(METRICS)
    yield made
    for module in made.modules:
        sys.modules.pop(module, None)
    for name in METRICS.keys() - known:
        del METRICS[name]


def scored(out: Path, *metrics: str) -> dict[str, dict]:
    """Rows by metric of real digits scored in this process."""
    text = CELL.format(metrics=json.dumps(metrics))
    options = Options(out=out, in_process=True, offline=True)
    summary = run(plan(from_text(text, "t.toml"), options))
    assert [one.status for one in summary.finished] == ["ok"]
    rows = to_rows(Store(out).read("metrics"))
    return {row["metric"]: row for row in rows if row["metric"] in metrics}


def drawn() -> np.ndarray:
    """The pictures that `real-images` draws, uint8 (30, 3, 8, 8)."""
    data = open_data("digits:8")
    return data.images(real_subset(data.split("train"), 0, 30)).numpy()


def test_a_formula_over_one_of_our_networks(site: Site, tmp_path: Path) -> None:
    site.install("shift_lite0", SHIFT.format(body="assert samples.dtype == np.float32"))
    row = scored(tmp_path / "out", "shift_lite0", "copy_share")["shift_lite0"]
    network = Extractors().open("efficientnet-lite0-64")
    data = open_data("digits:8")
    sides = [data.images(real_subset(data.split("train"), 0, 30)), data.images(data.split("test"))]
    means = [network.layers(side, ("pooled",))["pooled"].double().mean(dim=0) for side in sides]
    expected = 2.0 * float(((means[0] - means[1]) ** 2).sum())
    assert row["value"] == pytest.approx(expected, rel=1e-4)
    assert (row["n"], row["n_ref"], row["protocol"]) == (30, 360, "shift_lite0-v1")
    assert (row["unit"], row["higher_is_better"], row["comparable"]) == ("1", False, False)
    assert (row["extractor"], row["extractor_sha256"]) == (network.name, network.sha256)
    options = json.loads(row["metric_opts"])
    assert (options["scale"], options["interval"]) == (2.0, "none: the plug-in gives none")


def test_a_network_of_its_own_and_a_formula_of_ours(site: Site, tmp_path: Path) -> None:
    site.install("fd_grey", GREY)
    row = scored(tmp_path / "out", "fd_grey")["fd_grey"]
    data = open_data("digits:8")
    own = drawn().mean(axis=(1, 2, 3))
    real = data.images(data.split("test")).numpy().mean(axis=(1, 2, 3))
    # Of two normal distributions of one number: (difference of means)^2 + (difference of sd)^2.
    expected = (own.mean() - real.mean()) ** 2 + (own.std(ddof=1) - real.std(ddof=1)) ** 2
    assert row["value"] == pytest.approx(expected, rel=1e-5)
    assert row["extractor_sha256"] == "0" * 64


def test_a_broken_plug_in_is_an_error_for_whoever_asks_and_for_nobody_else(
    site: Site, tmp_path: Path
) -> None:
    site.install("torn", "import not_there_at_all\n")
    with pytest.raises(SuiteError, match=r"plug-in torn \(plugged_torn:METRIC\) is broken: Module"):
        scored(tmp_path / "out", "torn")
    assert not (tmp_path / "out").exists()
    assert scored(tmp_path / "out", "copy_share")["copy_share"]["value"] == 1.0
    assert "torn" in names()
    assert "torn" not in {row["name"] for row in describe.everything(load_presets())["metrics"]}
    assert "not_there_at_all" in plugins.broken()["torn"]
    assert [c.level for c in metrics_here(True) if "plug-in torn" in c.text] == ["note"]
    with pytest.raises(UsageError, match="plug-in torn"):
        describe.one("torn", load_presets())


def test_a_formula_that_fails_is_a_reason_and_the_others_stand(site: Site, tmp_path: Path) -> None:
    site.install("shift_lite0", SHIFT.format(body="raise KeyError('lost')"))
    rows = scored(tmp_path / "out", "shift_lite0", "copy_share")
    assert rows["shift_lite0"]["value"] is None
    assert rows["shift_lite0"]["reason"] == "plug-in shift_lite0 failed: KeyError: 'lost'"
    assert rows["copy_share"]["value"] == 1.0


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('"mean": 2', '"other": 2'), 'has no layer "mean"; it has other'),
        (("return Grey()", "raise OSError('no such file')"), "cannot open its network: OSError"),
    ],
)
def test_a_network_that_cannot_be_used_is_a_reason(
    site: Site, tmp_path: Path, change: tuple[str, str], says: str
) -> None:
    site.install("fd_grey", GREY.replace(*change))
    rows = scored(tmp_path / "out", "fd_grey", "copy_share")
    assert rows["fd_grey"]["value"] is None
    assert says in rows["fd_grey"]["reason"]
    assert rows["copy_share"]["value"] == 1.0


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("fd_grey", ("METRIC = MetricPlugin", "METRIC = dict"), "gives dict, not a MetricPlugin"),
        ("other", ("", ""), 'its metric is "fd_grey" and its entry point "other"'),
        ("fid_clean", ('"fd_grey", "FD', '"fid_clean", "FD'), "none of fid, kid, isc"),
        ("fd_grey", ("extractor=opened", 'extractor="incept"'), 'no extractor "incept"; there are'),
        ("fd_grey", ("extractor=opened", 'extractor="digit-judge"'), "a network of its own"),
        ("fd_grey", ('"frechet"', '"frechett"'), 'no formula "frechett"'),
        ("fd_grey", ('{"ddof": 1}', "{}"), "needs the options ddof"),
        ("recall_it", ('"fd_grey", "FD', '"psnr", "FD'), 'its metric is "psnr"'),
    ],
)
def test_what_makes_a_plug_in_broken(
    site: Site, name: str, change: tuple[str, str], says: str
) -> None:
    site.install(name, GREY.replace(*change))
    with pytest.raises(ProtocolError, match=f"plug-in {name}") as caught:
        plugins.find(name)
    assert says in str(caught.value)


def test_a_plug_in_does_not_replace_a_metric_of_ours(site: Site) -> None:
    site.install("fd_lite0", GREY.replace('"fd_grey", "FD', '"fd_lite0", "FD'))
    assert plugins.find("fd_lite0") is None
    assert names().count("fd_lite0") == 1


def test_a_mistyped_name_may_be_a_plug_ins(site: Site, tmp_path: Path) -> None:
    site.install("fd_grey", GREY)
    with pytest.raises(SuiteError, match='nearest: "fd_grey"'):
        scored(tmp_path / "out", "fd_gray")
    gate = '[[gate]]\nname = "g"\nmodel = "real-images"\nweights = "fit"\ndata = "digits:8"\n'
    text = CELL.format(metrics='["fd_grey"]') + gate
    assert from_text(f'{text}distance = "fd_grey"\n', "t.toml").gates[0].distance == "fd_grey"


def test_the_plug_ins_file_is_part_of_the_code_of_its_cells(site: Site, tmp_path: Path) -> None:
    site.install("fd_grey", GREY)
    for metric, expected in (("fd_grey", 1), ("copy_share", 0)):
        text = CELL.format(metrics=json.dumps([metric]))
        (cell,) = plan(from_text(text, "t.toml"), Options(out=tmp_path)).cells
        assert cell.resolved.code_files.count(site.folder / "plugged_fd_grey.py") == expected


def test_a_reader_without_the_plug_in_ranks_by_what_the_rows_say(
    site: Site, tmp_path: Path
) -> None:
    site.install("fd_grey", GREY)
    scored(tmp_path / "out", "fd_grey")
    del METRICS["fd_grey"]
    (board,) = leaderboard(tmp_path / "out").boards
    assert (board.metric.name, board.metric.higher_is_better) == ("fd_grey", False)
    assert board.warning  # never beside published numbers


def test_an_installed_plug_in_runs_in_a_worker_of_its_own(site: Site, tmp_path: Path) -> None:
    site.install("fd_grey", GREY)
    (tmp_path / "t.toml").write_text(CELL.format(metrics='["fd_grey"]'))
    path = os.pathsep.join(filter(None, (str(site.folder), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "visgen_bench.cli", "run", "t.toml", "--offline", "--json"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = [r for r in json.loads(done.stdout)["rows"] if r["kind"] == "quality"]
    assert (row["metric"], row["protocol"]) == ("fd_grey", "fd_grey-v1")
    assert row["value"] > 0

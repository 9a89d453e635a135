import gzip
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from visgen.catalogue import find
from visgen_bench.cell import PerformanceCell
from visgen_bench.cells.performance import HEADLINES, classify, measure, run
from visgen_bench.context import Context, Invalid, Records, Unavailable
from visgen_results.rows import to_table

QUICK = {"min_iters": 6, "min_duration_s": 0.05, "warmup_min_s": 0.0, "warmup_max_s": 0.1}
MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Painter:
    """A user's own model: one Linear from a seed to pixels, that holds `mib` MiB while drawing."""

    mib: int = 0
    fails: str = ""
    family: str = "own"
    task: str = "image-generation"
    image_size: tuple[int, int] = (4, 4)

    def build(self, attention: str | None = None) -> "Painting":
        return Painting(self)


class Painting(nn.Module):
    def __init__(self, config: Painter) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.layer = nn.Linear(1, 48)

    def networks(self) -> dict[str, nn.Module]:
        return {"generator": self.layer}

    @torch.no_grad()
    def generate(self, seeds: Tensor, condition: None = None, sampling: None = None) -> Tensor:
        if self.config.fails == "memory":
            torch.empty(2**50)  # a pebibyte: the allocator's own error
        held = torch.ones(self.config.mib * MIB // 4, device=seeds.device)
        if self.config.fails == "meta":
            float(held.sum())
        pixels = self.layer(seeds[:, None].float() % 7).abs() % 256
        if self.config.fails == "fp32" and pixels.dtype == torch.float32 and not pixels.is_meta:
            raise RuntimeError("computed in fp32")
        pictures = pixels.to(torch.uint8).view(-1, 3, 4, 4)
        if self.config.fails == "count":
            return pictures[:1]
        if self.config.fails == "size":
            return pictures.view(-1, 3, 2, 8)
        if self.config.fails == "None":
            return None  # type: ignore[return-value]
        return pictures.float() if self.config.fails == "dtype" else pictures


Rows = list[dict[str, Any]]


def records(
    tmp_path: Path, config: Any = None, *, sink: Records | None = None, **fields: Any
) -> tuple[Rows, Rows]:
    """(metrics rows, measurement records) of a cell measured in this process."""
    cell = PerformanceCell(**{"model": "painter", "batch": 4, **QUICK, **fields})
    sink = sink or Records()
    measure(cell, config or Painter(), Context(root=tmp_path, spec_key="key", sink=sink))
    return split(sink.records)


def split(found: Rows) -> tuple[Rows, Rows]:
    rows = [r["row"] for r in found if r.get("table") == "metrics"]
    return rows, [r["rows"] for r in found if r.get("table") == "measurements"]


def value(rows: Rows, metric: str, stat: str = "value", **where: Any) -> Any:
    found = [
        row["value"]
        for row in rows
        if (row["metric"], row["stat"]) == (metric, stat)
        and all(row.get(k) == v for k, v in where.items())
    ]
    assert len(found) == 1, (metric, stat, where, found)
    return found[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Rows, Rows]:
    return records(tmp_path_factory.mktemp("plain"), min_iters=30, min_duration_s=0.0)


def test_a_cell_reports_every_headline_and_its_rows_fit_the_schema(plain: tuple[Rows, Rows]):
    rows, _ = plain
    reported = {(row["metric"], row["stat"]) for row in rows}
    assert set(HEADLINES) <= reported
    started = {"run_id": "r", "cell_key": "c", "kind": "performance"}
    table = to_table("metrics", [{**started, **row} for row in rows])
    assert table.num_rows == len(rows)


def test_what_a_cpu_does_not_have_is_null_with_its_reason_and_never_zero(plain: tuple[Rows, Rows]):
    rows, _ = plain
    missing = {row["metric"]: row["reason"] for row in rows if row["value"] is None}
    assert "CPU has no device allocator" in missing["mem_alloc_peak"]
    assert "CPU has no device allocator" in missing["mem_reserved_peak"]
    assert "no peak is listed for CPUs" in missing["mfu"]
    assert "no energy counter" in missing["energy_j_per_sample"]
    assert all(row["value"] is not None or row["reason"] for row in rows)


def test_a_time_names_the_switches_and_the_neighbours_it_was_taken_with(plain: tuple[Rows, Rows]):
    rows, _ = plain
    timed = [row for row in rows if row["metric"] in ("latency", "throughput")]
    for row in timed:
        options = json.loads(row["metric_opts"])
        assert options["switches"]["threads"] == torch.get_num_threads()
        tf32 = {"matmul_allow_tf32", "cudnn_allow_tf32", "float32_matmul_precision"}
        assert tf32 <= set(options["switches"])
        assert "cpu_share_of_others" in options
        assert "exclusive" in row


def test_start_up_is_reported_apart_from_latency(plain: tuple[Rows, Rows]):
    rows, _ = plain
    for metric in ("model_build", "to_device", "first_call", "warmup"):
        assert value(rows, metric) > 0
    assert not [row for row in rows if row["metric"] == "compile_time"]
    latency = [row for row in rows if row["metric"] == "latency"]
    assert {row["timing_method"] for row in latency} == {"wall_sync"}
    assert value(rows, "first_call") >= value(rows, "latency", "min")


def test_percentiles_follow_the_sample_count_and_the_raw_samples_are_kept(plain: tuple[Rows, Rows]):
    rows, series = plain
    raw = next(one for one in series if one["metric"] == "latency")
    assert len(raw["value"]) == len(raw["t_offset_s"]) == 30
    middle = sorted(raw["value"])[14:16]
    assert value(rows, "latency", "p50") == pytest.approx(sum(middle) / 2)
    assert value(rows, "latency", "p90") is not None
    assert value(rows, "latency", "p95") is None
    assert value(rows, "latency", "max") == max(raw["value"])
    p95 = next(row for row in rows if (row["metric"], row["stat"]) == ("latency", "p95"))
    assert p95["reason"] == "30 samples; p95 needs 59"
    assert p95["n"] == 30


def test_throughput_is_samples_over_the_windows_wall_time(plain: tuple[Rows, Rows]):
    rows, series = plain
    throughput = next(row for row in rows if row["metric"] == "throughput")
    blocks = next(one for one in series if one["metric"] == "throughput")["value"]
    assert throughput["timing_method"] == "wall_window"
    assert throughput["unit"] == "img/s"
    assert throughput["n"] % (4 * len(blocks)) == 0
    # Blocks are equally many samples, so the whole is their harmonic mean.
    assert throughput["value"] == pytest.approx(len(blocks) / math.fsum(1 / b for b in blocks))


def test_parameters_and_bytes_are_a_row_a_part(tmp_path: Path):
    rows, _ = records(tmp_path, find("dcgan-digits8-tiny"))
    assert value(rows, "params", phase="generator") == 100_899
    assert value(rows, "mem_params", phase="generator") == 4 * 100_899
    assert value(rows, "params", phase="discriminator") == 76_657


def test_memory_held_while_drawing_appears_in_the_host_peak(tmp_path: Path):
    rows, _ = records(tmp_path, Painter(mib=48), min_iters=2)
    row = next(row for row in rows if row["metric"] == "mem_host_peak")
    before = json.loads(row["metric_opts"])["before"]
    assert row["value"] - before == pytest.approx(48 * MIB, rel=0.1)


def test_flops_and_mfu_come_from_the_count_and_the_throughput(tmp_path: Path):
    rows, _ = records(tmp_path, peak_tflops=0.001)
    assert value(rows, "flops") == value(rows, "flops_dense") == 2 * 48
    mfu = value(rows, "mfu")
    assert mfu == pytest.approx(2 * 48 * value(rows, "throughput") / 1e9)
    options = next(json.loads(row["metric_opts"]) for row in rows if row["metric"] == "mfu")
    assert options == {"of": "flops", "peak_flops": 1e9, "peak_source": "peak_tflops"}


def test_bf16_reaches_the_model_as_autocast_and_leaves_the_weights_alone(tmp_path: Path):
    rows, _ = records(tmp_path, Painter(fails="fp32"), dtype="bf16")
    assert value(rows, "mem_params", phase="generator") == 4 * 96
    assert value(rows, "throughput") > 0
    with pytest.raises(RuntimeError, match="fp32"):
        records(tmp_path, Painter(fails="fp32"), dtype="fp32")


def test_a_model_that_cannot_run_on_meta_has_null_flops_and_everything_else(tmp_path: Path):
    rows, _ = records(tmp_path, Painter(fails="meta"))
    assert value(rows, "flops") is None
    assert "not countable on meta" in next(r["reason"] for r in rows if r["metric"] == "flops")
    assert value(rows, "throughput") > 0


@pytest.mark.parametrize(
    ("fails", "says"),
    [
        ("count", r"painter gave \(1, 3, 4, 4\) torch.uint8 for 4 seeds"),
        ("size", r"must give a tensor uint8 \(4, 3, 4, 4\)"),
        ("dtype", "torch.float32"),
        ("None", "gave NoneType for 4 seeds"),
    ],
)
def test_what_is_not_one_picture_a_seed_is_not_timed(tmp_path: Path, fails: str, says: str):
    sink = Records()
    with pytest.raises(ValueError, match=says):
        records(tmp_path, Painter(fails=fails), sink=sink)
    assert not {"latency", "throughput"} & {row["metric"] for row in split(sink.records)[0]}


def test_running_out_of_memory_leaves_null_rows_and_goes_on_to_the_worker(tmp_path: Path):
    sink = Records()
    with pytest.raises(RuntimeError) as caught:
        records(tmp_path, Painter(fails="memory"), sink=sink)
    assert classify(caught.value)[0] == "oom"
    rows, _ = split(sink.records)
    for metric, stat in HEADLINES:
        assert value(rows, metric, stat) is None
    assert all("out of memory" in r["reason"] for r in rows if r["value"] is None)
    assert value(rows, "params", phase="generator") == 96


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), "oom"),
        (Unavailable("no such device"), "skipped"),
        (Invalid("loss is nan"), "invalid"),
        (FloatingPointError("loss is nan"), "invalid"),
        (RuntimeError("shape mismatch"), "error"),
        (ValueError(""), "error"),
    ],
)
def test_errors_are_told_apart(error: Exception, status: str):
    found, reason = classify(error)
    assert found == status
    assert reason
    assert "\n" not in reason


def test_an_impossible_cell_is_refused_before_anything_is_measured(tmp_path: Path):
    sink = Records()
    with pytest.raises(Unavailable, match="channels_last"):
        records(tmp_path, sink=sink, memory_format="channels_last")
    assert sink.records == []
    with pytest.raises(Unavailable, match="trains a discriminator, and painter has none"):
        records(tmp_path, phase="d_step")


@pytest.mark.parametrize("phase", ["d_step", "g_step"])
def test_a_step_has_memory_of_its_parts(tmp_path: Path, phase: str):
    rows, _ = records(tmp_path, find("dcgan-digits8-tiny"), phase=phase)
    parts = [value(rows, "mem_host_peak", phase=part) for part in ("fwd", "bwd", "opt")]
    assert value(rows, "mem_host_peak", phase=phase) == max(parts)
    assert value(rows, "throughput", phase=phase) > 0


def test_profiling_writes_a_trace_and_a_table_after_the_timed_passes(
    tmp_path: Path, plain: tuple[Rows, Rows]
):
    profiled, _ = records(tmp_path, profile=True)
    folder = tmp_path / "artifacts" / "key"
    with gzip.open(folder / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    assert any(event.get("name") == "aten::addmm" for event in events)
    assert "aten::addmm" in (folder / "top_ops.txt").read_text(encoding="utf-8")
    assert {row["metric"] for row in profiled} == {row["metric"] for row in plain[0]}


def test_a_preset_is_found_by_its_name_in_a_users_file(tmp_path: Path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from visgen.baselines.dcgan import DCGANConfig\n"
        "PRESETS = {'mine': DCGANConfig(doublings=1, width=8, latent=4)}\n",
        encoding="utf-8",
    )
    sink = Records()
    cell = PerformanceCell(model="mine", include=str(file), **QUICK)
    run(cell, Context(root=tmp_path, spec_key="key", sink=sink))
    assert value(split(sink.records)[0], "throughput") > 0


@pytest.mark.slow
def test_compiling_is_timed_apart_and_cold(tmp_path: Path):
    rows, _ = records(tmp_path, compile=True)
    assert value(rows, "compile_time") > 0.5 * value(rows, "first_call")
    assert value(rows, "latency", "p50") < 0.1 * value(rows, "compile_time")
    assert list(tmp_path.glob("state/key/inductor-*"))


SECOND_RANK = """
import sys
from datetime import timedelta
from pathlib import Path
import torch.distributed
from visgen_bench.cell import PerformanceCell
from visgen_bench.cells.performance import run
from visgen_bench.context import Context, Records

root, cell = Path(sys.argv[1]), PerformanceCell.model_validate_json(sys.argv[2])
torch.distributed.init_process_group(
    "gloo", init_method=f"file://{root}/meeting", rank=1, world_size=2, timeout=timedelta(minutes=1)
)
sink = Records()
run(cell, Context(root=root, spec_key="key", sink=sink, rank=1, world_size=2))
(root / "written").write_text(str(len(sink.records)))
"""


@pytest.mark.slow
def test_two_ranks_are_one_throughput_with_their_own_rows_beside_it(tmp_path: Path):
    cell = PerformanceCell(model="dcgan-digits8-tiny", batch=4, devices=2, **QUICK)
    command = [sys.executable, "-c", SECOND_RANK, str(tmp_path), cell.model_dump_json()]
    second = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{tmp_path}/meeting",
        rank=0,
        world_size=2,
        timeout=timedelta(minutes=1),
    )
    sink = Records()
    run(cell, Context(root=tmp_path, spec_key="key", sink=sink, rank=0, world_size=2))
    assert second.wait(timeout=60) == 0
    assert (tmp_path / "written").read_text() == "0"
    rows, series = split(sink.records)
    together = value(rows, "throughput", rank=-1)
    alone = [value(rows, "throughput", rank=rank) for rank in (0, 1)]
    assert 0 < together <= 1.001 * sum(alone)
    memory = [value(rows, "mem_host_peak", rank=rank) for rank in (0, 1)]
    assert value(rows, "mem_host_peak", rank=-1) == sum(memory)
    pooled = [one for one in series if one["metric"] == "latency"]
    assert [one["rank"] for one in pooled] == [0, 1]
    n = next(r["n"] for r in rows if (r["metric"], r["stat"], r["rank"]) == ("latency", "p50", -1))
    assert n == sum(len(one["value"]) for one in pooled)

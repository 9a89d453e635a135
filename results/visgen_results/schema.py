"""The four result tables: columns, Arrow types, units and meaning, defined once.

`runs` has one row per attempt of a cell, `metrics` one row per number (long and narrow),
`measurements` every raw series, `machines` the hardware and software a number was taken on.
Types are never inferred from data. A minor change adds nullable columns at the end of a table;
anything else is a new `SCHEMA_VERSION` with its own `v=` folder.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

SCHEMA_VERSION = 1
SCHEMA_NAME = "visgen"

KINDS = ("train", "quality", "performance", "kernel")
STATUSES = ("ok", "oom", "crash", "timeout", "error", "skipped", "cancelled", "invalid")
STATS = ("value", "mean", "p50", "p90", "p95", "p99", "p99.9", "min", "max", "std", "iqr")

TEXT = pa.string()
REAL = pa.float64()
FLAG = pa.bool_()
SMALL = pa.int16()
COUNT = pa.int32()
LARGE = pa.int64()
TIME = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Column:
    """One column: `unit` is empty for text, `1` for pure numbers; `required` forbids null."""

    name: str
    type: pa.DataType
    meaning: str
    unit: str = ""
    required: bool = False
    json: bool = False


_RUN_AXES = (
    Column("suite", TEXT, "suite the cell came from"),
    Column("model", TEXT, "preset name; for a kernel cell the op"),
    Column("family", TEXT, "model family (`transgan`, `dcgan`, `reference`, ...)"),
    Column(
        "variant",
        TEXT,
        "what tells rows of one model apart: content of a folder, recipe of a training step, "
        "direction and mask of a kernel",
    ),
    Column("weights", TEXT, "as asked: `zoo:NAME`, `file:SHA256`, `train:CELL_KEY`, `untrained`"),
    Column("task", TEXT, "task contract, such as `image-generation`; `reference` = no model"),
    Column("dataset", TEXT, "data spec, such as `digits:8`; for a kernel cell the shape's id"),
    Column("split", TEXT, "split of the data that a quality number refers to"),
    Column("resolution", TEXT, "channels x height x width, with frames in front for video"),
    Column("device_type", TEXT, "`cpu`, `cuda`, `rocm`; `static` = predicted, nothing ran"),
    Column("device_name", TEXT, "name of the GPU, on a CPU the CPU's model"),
    Column("dtype", TEXT, "`fp32`, `bf16`, `fp16`, `tf32`"),
    Column("compile_mode", TEXT, "`none`, or the mode given to torch.compile"),
    Column("attention", TEXT, "attention implementation that ran: `chunked`, `sdpa`, ..."),
    Column("memory_format", TEXT, "`contiguous` or `channels_last`"),
    Column("batch_size", COUNT, "samples per call", "1"),
    Column("n_devices", COUNT, "devices that worked on this cell", "1"),
)

RUN_COLUMNS = (
    Column("run_id", TEXT, "time-sortable id of the attempt; primary key", required=True),
    Column("cell_key", TEXT, "content key of the cell on this machine", required=True),
    Column("spec_key", TEXT, "content key of the cell's specification alone"),
    Column("attempt", SMALL, "1 for the first try", "1"),
    Column("status", TEXT, f"one of {', '.join(STATUSES)}", required=True),
    Column("invalid_reason", TEXT, "why the run does not count, or why it was skipped"),
    Column("error_type", TEXT, "class of the error"),
    Column("error_msg", TEXT, "message of the error, cut at 4096 characters"),
    Column("exit_code", SMALL, "exit code of the worker", "1"),
    Column("signal", SMALL, "signal that ended the worker", "1"),
    Column("started_at", TIME, "start of the attempt", "UTC"),
    Column("ended_at", TIME, "end of the attempt", "UTC"),
    Column("duration_s", REAL, "wall time of the attempt", "s"),
    Column("kind", TEXT, f"{', '.join(KINDS)}; lies in the path, not in the file"),
    *_RUN_AXES,
    Column("frames", COUNT, "frames of a clip; null for images", "1"),
    Column("channels", COUNT, "channels of the data", "1"),
    Column("height", COUNT, "rows of a picture", "px"),
    Column("width", COUNT, "columns of a picture", "px"),
    Column("n_nodes", COUNT, "machines that worked on this cell", "1"),
    Column("world_size", COUNT, "ranks that worked on this cell", "1"),
    Column("seed", LARGE, "seed of the run: sampling seed, for `train` the training seed", "1"),
    Column("config_json", TEXT, "resolved configuration, canonical JSON", json=True),
    Column("machine_id", TEXT, "hash of the hardware facts; key into `machines`"),
    Column("env_id", TEXT, "hash of the software facts; key into `machines`"),
    Column("visgen_version", TEXT, "version of this project"),
    Column("git_commit", TEXT, "commit of the working tree"),
    Column("git_dirty", FLAG, "true when the tree differed from that commit"),
    Column("code_hash", TEXT, "hash of the source that decides the number"),
    Column("kernel_hash", TEXT, "hash of the kernels' source"),
    Column("weights_sha256", TEXT, "sha256 of the weights as used"),
    Column("data_fingerprint", TEXT, "hash of the data's content"),
    Column("ref_stats_sha256", TEXT, "hash of the reference statistics as used"),
    Column("extractor_sha256", TEXT, "sha256 of the extractor's weights"),
    Column("log_path", TEXT, "log of the worker, relative to the result folder"),
    Column("artifacts_path", TEXT, "folder with pictures, relative to the result folder"),
    Column("schema_version", COUNT, "version of these tables", "1"),
    Column("threads", COUNT, "CPU threads the run was given", "1"),
)

METRIC_COLUMNS = (
    Column("run_id", TEXT, "attempt the number belongs to", required=True),
    Column("cell_key", TEXT, "cell the number belongs to", required=True),
    Column("kind", TEXT, f"{', '.join(KINDS)}; lies in the path, not in the file"),
    Column("metric", TEXT, "registered name; see the list of metrics", required=True),
    Column("stat", TEXT, f"one of {', '.join(STATS)}", required=True),
    Column("phase", TEXT, "what was measured: `total`, `sample`, `d_step`, `g_step`, ..."),
    Column("rank", COUNT, "rank that measured; -1 = aggregated over ranks", "1"),
    Column("value", REAL, "the number; null = not measured (see `reason`); NaN = computed as NaN"),
    Column("unit", TEXT, "unit of `value`; seconds and bytes only, never ms or MB"),
    Column("n", LARGE, "samples behind the number: images, clips, iterations", "1"),
    Column("ci_low", REAL, "lower end of the 95 % interval", "as value"),
    Column("ci_high", REAL, "upper end of the 95 % interval", "as value"),
    Column("stderr", REAL, "standard error", "as value"),
    Column("ci_method", TEXT, "how the interval was made, or why there is none"),
    Column("higher_is_better", FLAG, "direction; null = neither"),
    Column("metric_version", TEXT, "changes when the definition changes"),
    Column("metric_opts", TEXT, "options of the metric, canonical JSON", json=True),
    Column("timing_method", TEXT, "`wall_sync`, `wall_window`, `events`, `graph`, `profiler`"),
    Column("l2", TEXT, "`cold` (flushed before every call) or `warm`"),
    Column("steady_state", FLAG, "false: warm-up hit its cap before times settled"),
    Column("throttled", FLAG, "true: the device reported a clock limit in the window"),
    Column("exclusive", FLAG, "true: nobody else used the device"),
    *_RUN_AXES,
    Column("seed", LARGE, "copy of runs.seed", "1"),
    Column("status", TEXT, "copy of runs.status"),
    Column("started_at", TIME, "copy of runs.started_at", "UTC"),
    Column("visgen_version", TEXT, "copy of runs.visgen_version"),
    Column("protocol", TEXT, "id that fixes extractor, resize, counts, ddof and split"),
    Column("comparable", FLAG, "false: a proxy or a capped sample; never compare elsewhere"),
    Column("extractor", TEXT, "feature network behind the number"),
    Column("n_ref", LARGE, "reference samples behind the number", "1"),
    Column("predicted", FLAG, "true: a model's figure, nothing was measured"),
    Column("reason", TEXT, "why `value` is null (required then); of a fault's count what is wrong"),
    Column("machine_id", TEXT, "copy of runs.machine_id"),
    Column("env_id", TEXT, "copy of runs.env_id"),
    Column("threads", COUNT, "copy of runs.threads", "1"),
    Column("extractor_sha256", TEXT, "sha256 of the extractor's weights"),
    Column("weights_sha256", TEXT, "copy of runs.weights_sha256"),
    Column("data_fingerprint", TEXT, "copy of runs.data_fingerprint"),
    Column("ref_stats_sha256", TEXT, "hash of the reference statistics as used"),
)

MEASUREMENT_COLUMNS = (
    Column("run_id", TEXT, "attempt the series belongs to", required=True),
    Column("kind", TEXT, f"{', '.join(KINDS)}; lies in the path, not in the file"),
    Column("metric", TEXT, "what the series is: a metric's name, or a loss", required=True),
    Column("phase", TEXT, "as in `metrics`"),
    Column("rank", COUNT, "rank that measured; -1 = aggregated over ranks", "1"),
    Column("block", COUNT, "block of an interleaved comparison", "1"),
    Column("iter", LARGE, "iteration, training step or frame", "1"),
    Column("value", REAL, "the raw number, in the metric's unit"),
    Column("t_offset_s", REAL, "time since the start of the series", "s"),
)

MACHINE_COLUMNS = (
    Column("machine_id", TEXT, "hash of the hardware facts", required=True),
    Column("env_id", TEXT, "hash of the software facts"),
    Column("kind", TEXT, f"{', '.join(KINDS)}; lies in the path, not in the file"),
    Column("hostname", TEXT, "only when asked for"),
    Column("cpu_model", TEXT, "model of the CPU"),
    Column("cores", COUNT, "cores this process may use", "1"),
    Column("ram_bytes", LARGE, "main memory", "B"),
    Column("gpu_name", TEXT, "model of the GPU"),
    Column("gpu_uuid_hash", TEXT, "hash of the GPU's id"),
    Column("gpu_count", COUNT, "GPUs visible", "1"),
    Column("gpu_mem_bytes", LARGE, "memory of one GPU", "B"),
    Column("driver", TEXT, "version of the GPU driver"),
    Column("cuda", TEXT, "version of CUDA"),
    Column("cudnn", TEXT, "version of cuDNN"),
    Column("torch", TEXT, "version of torch"),
    Column("triton", TEXT, "version of triton"),
    Column("python", TEXT, "version of Python"),
    Column("os", TEXT, "operating system"),
    Column("power_limit_w", REAL, "power limit of the GPU", "W"),
    Column("ecc", FLAG, "error correction on"),
    Column("persistence", FLAG, "persistence mode on"),
    Column("mig", FLAG, "the GPU is partitioned"),
    Column("packages", TEXT, "versions of installed packages, JSON", json=True),
    Column("collected_at", TIME, "when these facts were read", "UTC"),
)

COLUMNS: dict[str, tuple[Column, ...]] = {
    "runs": RUN_COLUMNS,
    "metrics": METRIC_COLUMNS,
    "measurements": MEASUREMENT_COLUMNS,
    "machines": MACHINE_COLUMNS,
}
TABLES = tuple(COLUMNS)

# Lies in the path (`kind=performance/`), as Hive partitions do; a copy inside the file would make
# `pandas.read_parquet(folder)` fail on two types for one name.
PARTITION_COLUMNS = ("kind",)


def _arrow(table: str) -> pa.Schema:
    metadata = {
        "visgen.schema_name": f"{SCHEMA_NAME}.{table}",
        "visgen.schema_version": str(SCHEMA_VERSION),
    }
    return pa.schema([pa.field(c.name, c.type) for c in COLUMNS[table]], metadata=metadata)


RUNS = _arrow("runs")
METRICS = _arrow("metrics")
MEASUREMENTS = _arrow("measurements")
MACHINES = _arrow("machines")
SCHEMAS: dict[str, pa.Schema] = {
    "runs": RUNS,
    "metrics": METRICS,
    "measurements": MEASUREMENTS,
    "machines": MACHINES,
}

_COPIED = tuple(name for name in RUNS.names if name in METRICS.names and name != "kind")


def copies(run: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a `runs` row that each `metrics` row repeats; readers then need no join."""
    return {name: run[name] for name in _COPIED if name in run}


def markdown(table: str) -> str:
    """The table's columns as a Markdown table; `results/README.md` holds it verbatim."""
    lines = ["| column | type | unit | null | meaning |", "|---|---|---|---|---|"]
    for column in COLUMNS[table]:
        null = "no" if column.required else "yes"
        lines.append(
            f"| `{column.name}` | {column.type} | {column.unit} | {null} | {column.meaning} |"
        )
    return "\n".join(lines)

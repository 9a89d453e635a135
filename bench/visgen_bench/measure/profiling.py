"""One profiled pass: a Chrome trace and a table of the slowest operators."""

from collections.abc import Callable
from pathlib import Path

PROFILED_CALLS = 3
TOP_OPS = 30


def profile(
    call: Callable[[], object], sync: Callable[[], object], device_type: str, folder: Path
) -> tuple[Path, Path]:
    """Chrome trace and table of the slowest operators of three calls.

    Never inside a timed or memory pass. Returns the two files,
    `trace.json.gz` (for chrome://tracing or Perfetto) and `top_ops.txt`.
    """
    import torch
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU]
    if device_type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        for _ in range(PROFILED_CALLS):
            call()
        sync()
    trace, table = folder / "trace.json.gz", folder / "top_ops.txt"
    profiler.export_chrome_trace(str(trace))
    order = "self_cpu_time_total" if device_type == "cpu" else "self_device_time_total"
    averages = profiler.key_averages(group_by_input_shape=True)
    text = averages.table(sort_by=order, row_limit=TOP_OPS, max_name_column_width=60)
    table.write_text(text, encoding="utf-8")
    return trace, table

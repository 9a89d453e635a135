"""What a row says of where its number came from: source, machine, and the cell's columns."""

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from visgen_bench import media
from visgen_bench.cell import (
    Cell,
    Contents,
    PerformanceCell,
    QualityCell,
    Sampled,
    TrainCell,
    canonical_json,
    content_key,
    source_of,
    spec_name,
    specification,
    threads_of,
)
from visgen_bench.measure import environment

if TYPE_CHECKING:
    from visgen_bench.media import AnyData

PACKAGE = Path(__file__).parent


def machine_of(cell: Cell) -> dict[str, Any]:
    """What decides speed beside the cell itself."""
    if not isinstance(cell, PerformanceCell):
        return {}
    return {
        "device_name": environment.device_name(cell.device_type),
        "threads": threads_of(cell),
        "torch": environment.version("torch"),
        "triton": environment.version("triton"),
        "driver": environment.gpu_facts().get("driver") if cell.device_type == "cuda" else None,
    }


def code_files(cell: Cell, config: Any) -> tuple[Path, ...]:
    """The source that decides the cell's numbers: the model's file, the kernels, the metric's."""
    import visgen
    import visgen_kernels

    home = Path(visgen.__file__).parent
    files = sorted(Path(visgen_kernels.__file__).parent.rglob("*.py"))
    if config is not None:
        source = inspect.getsourcefile(type(config))
        files += [Path(source)] if source else []
    if isinstance(cell, QualityCell):
        files += sorted((PACKAGE / "metrics").glob("*.py"))
        files += sorted((PACKAGE / "extractors").glob("*.py"))
        files += _plugin_files(cell)
    elif isinstance(cell, TrainCell):
        files += sorted((home / "training").glob("*.py"))
        files += sorted((home / "objectives").glob("*.py"))
    else:
        files += sorted((PACKAGE / "measure").glob("*.py"))
    return tuple(files)


def _plugin_files(cell: QualityCell) -> list[Path]:
    """The files that a cell's metrics of other packages were loaded from."""
    from visgen_bench.metrics import plugins

    found = (plugins.source_of(metric) for metric in sorted(cell.metrics))
    return list(dict.fromkeys(file for file in found if file is not None))


def code_hash(files: Sequence[Path]) -> str:
    """sha256 over the files' contents, in order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(_content(file)).digest())
    return digest.hexdigest()


@functools.cache
def _content(file: Path) -> bytes:
    return file.read_bytes()


def kernel_hash() -> str:
    """`code_hash` of the kernels alone."""
    import visgen_kernels

    return code_hash(sorted(Path(visgen_kernels.__file__).parent.rglob("*.py")))


def columns_of(
    cell: Cell, config: Any, data: "AnyData | None", images: "AnyData | None", contents: Contents
) -> dict[str, Any]:
    """Columns of the `runs` row that follow from the cell."""
    clip = media.clip_of(cell, config) if media.has_clips(cell, config) else None
    size = getattr(config, "image_size", None) or (data.size if data is not None else None)
    size = clip.size if clip else size
    channels = data.channels if data is not None else 3
    resolution = f"3x{size[0]}x{size[1]}" if size else None
    if clip:
        resolution = f"{clip.frames}x{resolution}"
    return {
        "kind": cell.kind,
        "model": source_of(cell),
        "family": getattr(config, "family", None) or _folder_family(cell),
        "variant": _variant(cell, config, images),
        "weights": contents.weights,
        "task": media.VIDEO_TASK if clip else getattr(config, "task", "image-generation"),
        "dataset": spec_name(cell.data) if cell.data else None,
        "split": cell.split if isinstance(cell, QualityCell) else None,
        "resolution": resolution,
        "frames": clip.frames if clip else None,
        "channels": channels,
        "height": size[0] if size else None,
        "width": size[1] if size else None,
        "device_type": cell.device_type,
        "device_name": environment.device_name(cell.device_type),
        "dtype": cell.dtype,
        "compile_mode": "default" if cell.compile else "none",
        "attention": cell.attention,
        "memory_format": cell.memory_format,
        "batch_size": cell.samples_per_step,
        "n_devices": cell.devices,
        "n_nodes": 1,
        "world_size": cell.devices,
        "seed": cell.seed,
        "data_fingerprint": contents.data_fingerprint,
        "config_json": canonical_json(specification(cell, contents)),
    }


def _variant(cell: Cell, config: Any, images: "AnyData | None") -> str | None:
    """What tells cells of one model and seed apart that no other column does.

    A folder is its content, whatever its name; the speed of a training step is that of its recipe.
    """
    if isinstance(cell, QualityCell) and images is not None:
        part = "" if cell.images_split == "all" else f"-{cell.images_split}"
        return f"{images.fingerprint[:8]}{part}"
    if isinstance(cell, PerformanceCell) and cell.recipe is not None:
        return f"{cell.recipe.objective}-{content_key(dataclasses.asdict(cell.recipe))[:6]}"
    if isinstance(cell, Sampled):
        given = getattr(config, "context", 0)
        asked = [f"{kind}:{given}" if kind == "frames" else kind for kind in cell.conditions]
        parts = ["+".join(asked)] if asked else []
        parts += [f"{name}={value}" for name, value in sorted((cell.sampling or {}).items())]
        return " ".join(parts) or None
    return None


def _folder_family(cell: Cell) -> str | None:
    """A folder scored against itself is a floor, as a reference generator is."""
    if not isinstance(cell, QualityCell) or not cell.images:
        return None
    return "reference" if cell.images == cell.data else "folder"

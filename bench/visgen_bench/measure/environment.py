"""Where a number was measured: facts of the machine and of the software, one `machines` row.

Versions come from package metadata, so nothing heavy is imported; flags of torch are read only by
`numeric_switches`. The host name is written only if asked for.
"""

import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from visgen_bench.measure.energy import open_nvml

# What can change a measured number; the rest of the environment does not belong in its identity.
PACKAGES = (
    "torch",
    "triton",
    "torchvision",
    "numpy",
    "torch-fidelity",
    "torchmetrics",
    "pyarrow",
    "pandas",
    "duckdb",
    "safetensors",
    "scikit-learn",
    "nvidia-cuda-runtime",
    "nvidia-cudnn-cu13",
    "nvidia-nccl-cu13",
    "visgen-harness",
)
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "OMP_PROC_BIND",
    "OMP_PLACES",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "KMP_AFFINITY",
)


@dataclass(frozen=True, kw_only=True)
class Commit:
    """The clone this package runs from; both None when it is installed without one."""

    sha: str | None
    dirty: bool | None


def version(package: str) -> str | None:
    """Installed version, from metadata; None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Name of the processor, as the kernel tells it; the architecture where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Model", "cpu model") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """Cores that this process may run on (not the cores of the machine)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cgroup_quota() -> float | None:
    """Cores' worth of time that the container grants; None if it is unlimited or not told."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        quota = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return quota / period if quota > 0 else None
    except (OSError, ValueError):
        return None


def governor() -> str | None:
    """Frequency governor of the first core; None in most virtual machines."""
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return None


def ram_bytes() -> int | None:
    """Physical memory of the machine."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


@cache
def gpu_facts() -> dict[str, object]:
    """Columns of the GPUs that NVML sees; empty where there are none."""
    nvml, _ = open_nvml()
    if nvml is None:
        return {}
    handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
    if not handles:
        return {}

    def ask(question: str, *arguments: object) -> object | None:
        try:
            return getattr(nvml, question)(handles[0], *arguments)
        except nvml.NVMLError:
            return None

    uuids = sorted(str(nvml.nvmlDeviceGetUUID(handle)) for handle in handles)
    memory = nvml.nvmlDeviceGetMemoryInfo(handles[0])
    limit, ecc, mig = (
        ask("nvmlDeviceGetEnforcedPowerLimit"),
        ask("nvmlDeviceGetEccMode"),
        ask("nvmlDeviceGetMigMode"),
    )
    persistence = ask("nvmlDeviceGetPersistenceMode")
    return {
        "gpu_name": _text(nvml.nvmlDeviceGetName(handles[0])),
        "gpu_uuid_hash": _digest(uuids),
        "gpu_count": len(handles),
        "gpu_mem_bytes": int(memory.total),
        "driver": _text(nvml.nvmlSystemGetDriverVersion()),
        "power_limit_w": limit / 1e3 if isinstance(limit, int) else None,
        "ecc": bool(ecc[0]) if isinstance(ecc, (list, tuple)) else None,
        "persistence": None if persistence is None else bool(persistence),
        "mig": bool(mig[0]) if isinstance(mig, (list, tuple)) else None,
    }


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _digest(facts: object) -> str:
    """blake2b-128 over canonical JSON, 32 hex digits."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@cache
def _hardware() -> dict[str, object]:
    return {
        "cpu_model": cpu_model(),
        "cores": usable_cores(),
        "ram_bytes": ram_bytes(),
        **gpu_facts(),
    }


@cache
def _software() -> dict[str, object]:
    packages = {name: found for name in PACKAGES if (found := version(name)) is not None}
    return {
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "torch": packages.get("torch"),
        "triton": packages.get("triton"),
        "cuda": packages.get("nvidia-cuda-runtime"),
        "cudnn": packages.get("nvidia-cudnn-cu13"),
        "packages": packages,
    }


def machine_id() -> str:
    """Identity of the hardware: processor, cores, memory to the GiB, GPUs. 32 hex digits.

    Memory is rounded, because a kernel update moves the byte count; settings that can be changed
    (power limit, persistence, affinity) are recorded but are no part of it.
    """
    facts = _hardware()
    ram = facts["ram_bytes"]
    stable = {key: facts.get(key) for key in ("cpu_model", "gpu_uuid_hash", "gpu_count")}
    stable |= {"cores": os.cpu_count() or 1}
    return _digest({**stable, "ram_gib": round(ram / 2**30) if isinstance(ram, int) else None})


def env_id() -> str:
    """Identity of the software: Python, operating system, driver, versions. 32 hex digits."""
    return _digest({**_software(), "driver": _hardware().get("driver")})


def machine_row(*, hostname: bool = False) -> dict[str, object]:
    """One row of the table `machines`; `hostname` writes the machine's name into it."""
    software = dict(_software())
    packages = json.dumps(software.pop("packages"), sort_keys=True, separators=(",", ":"))
    return {
        "machine_id": machine_id(),
        "env_id": env_id(),
        "hostname": socket.gethostname() if hostname else None,
        **_hardware(),
        **software,
        "packages": packages,
        "collected_at": datetime.datetime.now(datetime.UTC),
    }


def device_name(device_type: str) -> str:
    """The GPU's name for "cuda"; the processor's for "cpu"."""
    if device_type == "cuda":
        name = _hardware().get("gpu_name")
        if isinstance(name, str):
            return name
    return cpu_model()


def numeric_switches() -> dict[str, object]:
    """Threads, affinity, and torch's switches that change speed or rounding (imports torch)."""
    import torch

    return {
        "threads": torch.get_num_threads(),
        "interop_threads": torch.get_num_interop_threads(),
        "usable_cores": usable_cores(),
        "cgroup_quota": cgroup_quota(),
        "governor": governor(),
        "matmul_allow_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_allow_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        **{name: os.environ.get(name) for name in THREAD_VARIABLES},
    }


@cache
def commit() -> Commit:
    """Commit of the clone that holds this file; none for an installed wheel.

    A clone is recognised by its own project file, so that a wheel installed inside somebody else's
    repository does not report that repository's commit.
    """
    none = Commit(sha=None, dirty=None)
    for folder in Path(__file__).resolve().parents:
        if (folder / ".git").exists():
            break
    else:
        return none
    project = folder / "pyproject.toml"
    if not project.is_file() or "visgen-harness" not in project.read_text(encoding="utf-8"):
        return none
    sha = _git(folder, "rev-parse", "HEAD")
    if sha is None:
        return none
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return Commit(sha=sha, dirty=None if changes is None else bool(changes))


def _git(folder: Path, *arguments: str) -> str | None:
    # Without the flag `git status` writes the index, and a time-out would leave its lock behind.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None

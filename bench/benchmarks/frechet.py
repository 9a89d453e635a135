"""Frechet distance against scipy's matrix square root, both timed in this run.

    python bench/benchmarks/frechet.py [--width 2048] [--samples 4000 1000] [--repeats 3] [--json]

Both sides start from the same float64 features (n, d) and end with the distance: means and
covariances are part of either time. Ours is timed before and after sqrtm, so that a busy machine
shows; the fastest of all goes into the ratio, and sqrtm's one run stands against it; the ratios to
our slowest and of processor time are given too, since they say more on a busy machine. A third
time is ours with the reference factored already, which is what each further model costs. Threads
are the process's default (OMP_NUM_THREADS).

Errors are shares of tr S1 + tr S2, against the nuclear norm of the factors of both sides (two
decompositions and an SVD, exact to 1e-15). With fewer samples than features sqrtm itself errs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from visgen_bench.metrics.frechet import FrechetReference, frechet_distance_of_features
from visgen_bench.metrics.moments import Moments

Features = NDArray[np.float64]


def features(n: int, d: int, seed: int) -> Features:
    """Correlated features whose spectrum falls as 1/i, as those of networks do."""
    generator = np.random.default_rng(seed)
    scale = np.arange(1, d + 1) ** -0.5 * (1 + 0.2 * seed)
    mixed = generator.standard_normal((n, d)) * scale
    turn = np.linalg.qr(np.random.default_rng(7 + seed).standard_normal((d, d)))[0]
    return mixed @ turn + 0.01 * seed


def by_sqrtm(x: Features, y: Features) -> float:
    """The published formula (TTUR) with scipy's sqrtm, without `disp`, which 1.18 removed."""
    import scipy.linalg

    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns on singular products
        root: Any = scipy.linalg.sqrtm(a @ b)
    delta = x.mean(axis=0) - y.mean(axis=0)
    return float(delta @ delta + np.trace(a) + np.trace(b) - 2 * np.trace(np.real(root)))


def exact(x: Features, y: Features) -> float:
    """Through factors of both sides: singular values of R1 R2', with R from a QR of each."""
    factors, means = [], []
    for side in (x, y):
        means.append(side.mean(axis=0))
        factors.append(np.linalg.qr((side - means[-1]) / np.sqrt(len(side) - 1), mode="r"))
    cross = float(np.linalg.svd(factors[0] @ factors[1].T, compute_uv=False).sum())
    trace = sum(float(np.square(factor).sum()) for factor in factors)
    return float(np.square(means[0] - means[1]).sum()) + trace - 2 * cross


def timed(call: Callable[[], float], repeats: int) -> tuple[list[float], list[float], float]:
    """Wall-clock and processor seconds of each run, and the last value."""
    wall, cpu, value = [], [], 0.0
    for _ in range(repeats):
        start, used = time.perf_counter(), time.process_time()
        value = call()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    return wall, cpu, value


def compare(n: int, d: int, repeats: int) -> dict[str, float | int | str]:
    """One row: both times, their ratio, and how far each is from the exact value."""
    x, y = features(n, d, 0), features(n, d, 1)

    def ours() -> float:
        return frechet_distance_of_features(x, y).value

    reference = FrechetReference.from_features(x)

    def cached() -> float:
        if n <= d:
            return reference.to_features(y).value
        return reference.to_moments(Moments.of(y)).value

    before, cpu_before, value = timed(ours, repeats)
    (sqrtm,), (cpu_sqrtm,), theirs = timed(lambda: by_sqrtm(x, y), 1)
    after, cpu_after, _ = timed(ours, repeats)
    with_reference, _, _ = timed(cached, repeats)
    found = frechet_distance_of_features(x, y)
    true = exact(x, y)
    return {
        "n": n,
        "d": d,
        "route": found.solver,
        "ours_s": min(before + after),
        "ours_slowest_s": max(before + after),
        "sqrtm_s": sqrtm,
        "ratio": sqrtm / min(before + after),
        "ratio_to_slowest": sqrtm / max(before + after),
        "ratio_of_cpu_time": cpu_sqrtm / min(cpu_before + cpu_after),
        "cached_reference_s": min(with_reference),
        "difference": abs(value - theirs) / found.trace,
        "error_ours": abs(value - true) / found.trace,
        "error_sqrtm": abs(theirs - true) / found.trace,
    }


def main(arguments: list[str] | None = None) -> None:
    """Print one row for each number of samples."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--samples", type=int, nargs="+", default=[4000, 1000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    rows = []
    for n in chosen.samples:
        row = compare(n, chosen.width, chosen.repeats)
        rows.append(row)
        if not chosen.json:
            sys.stdout.write(
                f"n {n} d {row['d']} ({row['route']}): ours {row['ours_s']:.3f} s "
                f"(slowest {row['ours_slowest_s']:.3f}), sqrtm {row['sqrtm_s']:.2f} s, "
                f"ratio {row['ratio']:.1f} (to our slowest {row['ratio_to_slowest']:.1f}, "
                f"of processor time {row['ratio_of_cpu_time']:.1f}); "
                f"with a cached reference {row['cached_reference_s']:.3f} s\n"
                f"    difference {row['difference']:.1e} of the trace; "
                f"error ours {row['error_ours']:.1e}, sqrtm {row['error_sqrtm']:.1e}\n"
            )
            sys.stdout.flush()
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs"
    threads = os.environ.get("OMP_NUM_THREADS", "default")
    if chosen.json:
        sys.stdout.write(json.dumps({"machine": machine, "threads": threads, "rows": rows}) + "\n")
    else:
        sys.stdout.write(f"on {machine}, OMP_NUM_THREADS {threads}\n")


if __name__ == "__main__":
    main()

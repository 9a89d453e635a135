"""Does peak memory grow with the number of samples? Sampling and statistics at two sizes.

    python bench/benchmarks/sampling_memory.py [--small 5000] [--large 50000] [--width 2048]

Pictures of an untrained preset are drawn by their seeds, projected to features as wide as the
Inception network's, and streamed into `Moments`. Each size runs in a process of its own, whose peak
resident size (VmHWM, reset before the first sample) is compared. Prints one row a size.
"""

import argparse
import json
import subprocess
import sys
import time

MIB = 2**20


def stream(samples: int, width: int, batch: int, model: str) -> dict[str, float]:
    """Draw, project and accumulate `samples` pictures; bytes and seconds."""
    import torch

    from visgen.catalogue import find
    from visgen.seeds import sample_seeds
    from visgen_bench.measure.memory import PeakMeter
    from visgen_bench.metrics.moments import Moments

    generator = find(model).build()
    height, width_px = generator.image_size
    projection = torch.randn(
        3 * height * width_px, width, generator=torch.Generator().manual_seed(0)
    )
    moments = Moments.empty(width)

    def draw(first: int, count: int) -> None:
        pictures = generator.generate(sample_seeds(0, torch.arange(first, first + count)))
        moments.update(pictures.flatten(1).float() @ projection)

    draw(0, batch)  # thread pools and workspaces are there before the peak is reset
    start = time.perf_counter()
    with PeakMeter("cpu") as meter:
        for first in range(0, samples, batch):
            draw(first, min(batch, samples - first))
    peaks = meter.peaks()["total"]
    return {
        "samples": samples,
        "seconds": time.perf_counter() - start,
        "before": peaks.host_before,
        "peak": peaks.host,
    }


def main() -> int:
    """Run both sizes and print the comparison."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", type=int, default=5000)
    parser.add_argument("--large", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=250)
    parser.add_argument("--model", default="dcgan-digits8-tiny")
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        result = stream(given.only, given.width, given.batch, given.model)
        sys.stdout.write(json.dumps(result) + "\n")
        return 0
    rows = [_in_a_process(size) for size in (given.small, given.large)]
    sys.stdout.write("| samples | seconds | before, MiB | peak, MiB | growth, MiB |\n")
    sys.stdout.write("|---:|---:|---:|---:|---:|\n")
    for row in rows:
        grown = (row["peak"] - row["before"]) / MIB
        sys.stdout.write(
            f"| {row['samples']:.0f} | {row['seconds']:.1f} | {row['before'] / MIB:.1f} "
            f"| {row['peak'] / MIB:.1f} | {grown:.1f} |\n"
        )
    ratio = rows[1]["peak"] / rows[0]["peak"]
    sys.stdout.write(
        f"peak at {given.large} samples = {ratio:.3f} x the peak at {given.small} samples\n"
    )
    return 0


def _in_a_process(size: int) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--only", str(size)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


if __name__ == "__main__":
    sys.exit(main())

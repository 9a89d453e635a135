"""Two processes that share the samples give what one gives."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from visgen.data import open_data
from visgen_bench.metrics.evaluation import Evaluation, RealSamples, ReferenceStatistics
from visgen_bench.metrics.frechet import frechet_distance
from visgen_bench.metrics.moments import Moments

N = 61  # not a multiple of 2
METRICS = ("fd_lite0", "recall", "digit_classes", "copy_share")

WORKER = f"""
import os, sys
from pathlib import Path
import torch, torch.distributed as dist
from visgen.data import open_data
from visgen_bench.metrics.evaluation import Evaluation, RealSamples, ReferenceStatistics
from visgen_bench.metrics.moments import Moments

folder, rank = Path(sys.argv[1]), int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{{folder}}/meet", rank=rank, world_size=2)
mine = torch.arange(rank, {N}, 2)

features = torch.randn({N}, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
whole = Moments.of(features[mine]).all_gather()
whole.save(folder / f"moments-{{rank}}.npz")

data = open_data("digits:8")
real, train = (RealSamples.from_data(data, split) for split in ("test", "train"))
reference = ReferenceStatistics.prepare({METRICS}, real, train=train, cache=folder / "cache")
def evaluation(r):
    return Evaluation({METRICS}, reference, samples={N}, folder=folder / f"rank-{{r}}")
own = evaluation(rank)
own.update(data.images(data.split("train")[mine]), mine)
own.save()
dist.barrier()
if rank == 0:
    other = evaluation(1)
    assert other.restore()
    own.merge(other)
    own.save()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_gloo_ranks_equal_one(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(tmp_path), str(rank)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate(timeout=120)
        assert rank.returncode == 0, errors

    gathered = [Moments.load(tmp_path / f"moments-{rank}.npz") for rank in range(2)]
    assert gathered[0].n == N
    assert (gathered[0].m2 == gathered[1].m2).all()  # the same bits on both
    features = torch.randn(
        N, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    ).numpy()
    one = Moments.of(features)
    np.testing.assert_allclose(gathered[0].mean, one.mean, rtol=1e-12, atol=1e-15)
    other = Moments.of(features * 1.3 + 0.2)
    assert frechet_distance(gathered[0], other) == pytest.approx(
        frechet_distance(one, other), rel=1e-10
    )

    data = open_data("digits:8")
    real, train = (RealSamples.from_data(data, split) for split in ("test", "train"))
    reference = ReferenceStatistics.prepare(METRICS, real, train=train, cache=tmp_path / "cache")
    straight = Evaluation(METRICS, reference, samples=N)
    straight.update(data.images(data.split("train")[:N]), 0)
    merged = Evaluation(METRICS, reference, samples=N, folder=tmp_path / "rank-0")
    assert merged.restore()
    for a, b in zip(merged.results(), straight.results(), strict=True):
        assert a.n == b.n == N
        # Equal up to what the batch size changes in float32 features.
        assert a.value == pytest.approx(b.value, rel=1e-5)

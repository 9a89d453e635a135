"""How far a backend's results are from the definition in float64, on the very call that is timed.

The definition is computed sample by sample, on the first and the last one of the batch. Of a table,
whose gradient sums over all samples, there is a comparison only if these are all. `ratio` is the
largest error as a multiple of that of the definition computed in the backend's own dtype.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from visgen_bench.kernels_bench.calls import Side, prepare
from visgen_bench.kernels_bench.problem import Problem


@dataclass(frozen=True, kw_only=True)
class Error:
    """Of one tensor; `ratio` is None where the reference in low precision is exact."""

    largest: float
    frobenius: float
    ratio: float | None


@dataclass(frozen=True, kw_only=True)
class Truth:
    """Results of the definition by name, in float64 and in the problem's dtype, by sample."""

    samples: tuple[int, ...]
    exact: Mapping[str, tuple[Tensor, ...]]
    low: Mapping[str, tuple[Tensor, ...]]
    whole: bool  # the samples are all of the batch

    def compare(self, results: Mapping[str, Tensor]) -> dict[str, Error]:
        """Errors of the results that can be compared, by name."""
        errors = {}
        for name, result in results.items():
            if name not in self.exact:
                continue
            exact, low = self.exact[name], self.low[name]
            if _of_batch(name):
                if not self.whole:
                    continue
                own, exact, low = (result,), (sum_of(exact),), (sum_of(low),)
            else:
                own = tuple(result[i : i + 1] for i in self.samples)
            errors[name] = _error(own, exact, low)
        return errors


def _of_batch(name: str) -> bool:
    return name.endswith(" table")


def sum_of(parts: tuple[Tensor, ...]) -> Tensor:
    """Their sum, in their own dtype."""
    return torch.stack(parts).sum(0)


def _error(own: tuple[Tensor, ...], exact: tuple[Tensor, ...], low: tuple[Tensor, ...]) -> Error:
    differences = [mine.double() - right for mine, right in zip(own, exact, strict=True)]
    rounding = [rough.double() - right for rough, right in zip(low, exact, strict=True)]
    largest, floor = _largest(differences), _largest(rounding)
    squares = sum(float(x.square().sum()) for x in differences)
    norm = sum(float(x.square().sum()) for x in exact)
    ratio = largest / floor if floor else None
    frobenius = (squares / norm) ** 0.5 if norm else squares**0.5
    return Error(largest=largest, frobenius=frobenius, ratio=ratio)


def _largest(parts: Sequence[Tensor]) -> float:
    """Largest |x|; NaN if there is one."""
    return float(torch.stack([x.abs().max() for x in parts]).max())


def truth(problem: Problem, direction: str) -> Truth:
    """Compute the definition on the first and the last sample."""
    batch = problem.shape.batch
    samples = tuple(dict.fromkeys((0, batch - 1)))
    exact = [_of_sample(problem, i, direction, torch.float64) for i in samples]
    low = [_of_sample(problem, i, direction, problem.dtype) for i in samples]
    return Truth(
        samples=samples,
        exact={name: tuple(one[name] for one in exact) for name in exact[0]},
        low={name: tuple(one[name] for one in low) for name in low[0]},
        whole=len(samples) == batch,
    )


def _of_sample(
    problem: Problem, sample: int, direction: str, dtype: torch.dtype
) -> dict[str, Tensor]:
    leaves = problem.of_sample(sample, dtype)
    side = Side(
        forward=lambda: problem.defined(sample, leaves, dtype),
        leaves=leaves,
        grad=problem.grad[sample : sample + 1].to(dtype),
        cotangents={n: x[sample : sample + 1].to(dtype) for n, x in problem.cotangents.items()},
    )
    return prepare(side, direction).results()


def equal_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Are two runs' results the same, bit by bit?"""
    return all(
        torch.equal(_bits(x), _bits(y))
        for x, y in zip(first.values(), second.values(), strict=True)
    )


def _bits(x: Tensor) -> Tensor:
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(kinds[x.element_size()]) if x.is_floating_point() else x


def codebook_excess(problem: Problem, chosen: Tensor) -> float:
    """Largest squared distance to the chosen code beyond that to the nearest one, in float64."""
    codes = problem.leaves["k"].detach().double()
    worst = 0.0
    for vectors, own in zip(
        problem.leaves["q"].detach().split(4096), chosen.flatten().split(4096), strict=True
    ):
        distances = torch.cdist(vectors.double(), codes).square()
        excess = distances.gather(1, own.long()[:, None])[:, 0] - distances.amin(1)
        worst = max(worst, float(excess.max()))
    return worst

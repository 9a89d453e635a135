"""FLOPs that a backend executes, where that can be known: padding and recomputation included."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from visgen_bench.kernels_bench import work
from visgen_bench.kernels_bench.names import SDPA, split_sdpa
from visgen_bench.kernels_bench.request import Group
from visgen_kernels.shapes import Shape


@dataclass(frozen=True, kw_only=True)
class Executed:
    """Matrix FLOPs, or why they are not known; of ours also the kernels and their tiles."""

    flops: float | None = None
    reason: str | None = None
    kernels: list[dict[str, Any]] = field(default_factory=list)


def executed(name: str, shape: Shape, group: Group) -> Executed:
    """What a backend executes in one call."""
    if name == "triton":
        return of_launches(shape, group.direction, group.dtype, target=_target(group.device))
    if name == "distances":
        return Executed(flops=work.least_work(shape, group.direction, group.dtype).flops)
    dense = name == "eager" or (name in SDPA and split_sdpa(name)[0] == "math")
    if not dense:
        return Executed(reason=f"{name} does not say which tiles it computes")
    flops = work.dense_flops(shape, group.direction)
    if group.direction != "forward":
        # Autograd keeps P, so Q K^T is not computed again: one product with d less.
        flops -= 2.0 * shape.score_matrices * shape.n_q * shape.n_k * shape.d
    return Executed(flops=flops)


def _target(device: str) -> str:
    import torch

    from visgen_kernels.attention.tiles import target_of

    return target_of(torch.device(device))


def of_launches(shape: Shape, direction: str, dtype: str, *, target: str) -> Executed:
    """Of all that our op launches on a target, from its tiles and the passes through them."""
    from visgen_kernels.static.specimens import Layer, specimens
    from visgen_kernels.static.targets import find_target

    way = direction if shape.kind == "attention" else shape.kind
    total, unknown, kernels = 0.0, [], []
    for one in specimens(Layer(shape, dtype), way, find_target(target)):
        facts = one.facts
        kernels.append(
            {"kernel": facts.kernel, "programs": facts.programs, "tile": dict(facts.tile)}
        )
        if facts.flops is None or facts.scores is None:
            if facts.scores is not None:
                unknown.append(facts.kernel)
            continue  # a kernel without scores has no matrix work
        passes = 1.0 if facts.whole is None else facts.whole + _masked(facts)
        total += facts.programs * passes * facts.flops
    if unknown:
        names = ", ".join(unknown)
        return Executed(reason=f"the matrix work of {names} is not known", kernels=kernels)
    return Executed(flops=total, kernels=kernels)


def _masked(facts: Any) -> float:
    """Masked passes as passes over whole tiles: some kernels take them in smaller pieces."""
    scores = facts.scores if facts.masked_scores is None else facts.masked_scores
    return facts.masked * scores / facts.scores

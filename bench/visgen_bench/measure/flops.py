"""FLOPs of a call, from shapes: one multiply-add is 2 FLOPs.

Counted are matrix products, convolutions and attention, forward, backward and second derivative, as
they are executed. Not counted are softmax, norms, activations, random numbers and the optimiser.
`flops` counts the pairs of query and key that a mask leaves visible, `flops_dense` all pairs.

Calls are counted on the meta device, because torch counts fused CPU attention, the encoder's fast
path and LSTM on a CPU as 0. On meta nothing is computed, so the count costs milliseconds and does
not depend on values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from torch.utils.flop_counter import FlopCounterMode, flop_registry
from torch.utils.module_tracker import ModuleTracker

from visgen_kernels import DENSE_FLOPS

CONVENTION = (
    "1 multiply-add = 2; matmul, convolution and attention as executed; "
    "no softmax, norms, activations, random numbers or optimiser"
)


@dataclass(frozen=True, kw_only=True)
class FlopCount:
    """FLOPs of one call, in all and by operator (as `aten.addmm`)."""

    flops: int
    flops_dense: int
    by_operator: Mapping[str, int]


class _Untracked(ModuleTracker):
    """Counts for the whole call only.

    Attributing operators to modules needs hooks on every module's gradient, and those fail when the
    gradient of an input is taken inside a call, as a gradient penalty does.
    """

    def __init__(self) -> None:
        self.parents = {"Global"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...


def count_flops(call: Callable[[], object]) -> FlopCount:
    """Run `call` once and count.

    Everything that `call` computes has to run inside it, its backward pass included.
    """
    hidden = [0]
    formulas = {op: _counting_both(op, dense, hidden) for op, dense in DENSE_FLOPS.items()}
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    counter.mod_tracker = _Untracked()
    with counter:
        call()
    found = counter.get_flop_counts().get("Global", {})
    by_operator = {str(op): int(number) for op, number in found.items()}
    flops = sum(by_operator.values())
    return FlopCount(flops=flops, flops_dense=flops + hidden[0], by_operator=by_operator)


def _counting_both(op: Any, dense: Callable[..., int], hidden: list[int]) -> Callable[..., int]:
    """The registered formula of `op`; what hidden pairs would add goes to `hidden`."""
    visible = flop_registry[op]

    def formula(*args: Any, **kwargs: Any) -> int:
        count = visible(*args, **kwargs)
        hidden[0] += dense(*args, **kwargs) - count
        return count

    formula._get_raw = True  # type: ignore[attr-defined]  # the counter then passes tensors, not shapes
    return formula

"""FLOPs of a call, from shapes: one multiply-add is 2 FLOPs.

Counted are matrix products, convolutions and attention, forward, backward and second derivative, as
they are executed. Not counted are softmax, norms, activations, random numbers and the optimiser.
`flops` counts the pairs of query and key that a mask leaves visible, `flops_dense` all pairs.

A call is counted on the meta device with the dense definition of attention, because torch counts
fused CPU attention, the encoder's fast path and LSTM on a CPU as 0. On meta nothing is computed, so
the count costs milliseconds and does not depend on values.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

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


def count_flops(call: Callable[[], object]) -> FlopCount:
    """Run `call` twice, counting visible pairs and then all pairs of attention.

    Everything that `call` computes has to run inside it, its backward pass included.
    """
    visible = _count(call, {})
    dense = _count(call, _dense_formulas())
    return FlopCount(
        flops=sum(visible.values()), flops_dense=sum(dense.values()), by_operator=visible
    )


def _dense_formulas() -> dict[Any, Any]:
    return {}


def _count(call: Callable[[], object], formulas: dict[Any, Any]) -> dict[str, int]:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        call()
    return {str(op): int(n) for op, n in counter.get_flop_counts().get("Global", {}).items()}

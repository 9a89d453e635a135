"""FLOPs of a call, from shapes: one multiply-add is 2 FLOPs.

Counted are matrix products, convolutions and attention, forward, backward and second derivative, as
they are executed. Not counted are softmax, norms, activations, random numbers and the optimiser.
`flops` counts the pairs of query and key that a mask leaves visible, `flops_dense` all pairs.

Calls are counted on the meta device, because torch counts fused CPU attention, the encoder's fast
path and LSTM on a CPU as 0. On meta nothing is computed, so the count costs milliseconds and does
not depend on values.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

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


class _Counting(TorchDispatchMode):
    """Adds up the registered formulas of every operator that runs inside.

    torch's own `FlopCounterMode` also attributes operators to modules, by hooks that fail when the
    gradient of an input is taken inside the call, as a gradient penalty does.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_operator: Counter[str] = Counter()
        self.hidden = 0  # FLOPs of the pairs that masks hide

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Count one operator, or the operators it consists of."""
        kwargs = kwargs or {}
        packet = getattr(func, "_overloadpacket", None)
        if packet not in flop_registry and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if packet in flop_registry:
            count = int(flop_registry[packet](*args, **kwargs, out_val=result))
            self.by_operator[str(packet)] += count
            if packet in DENSE_FLOPS:
                self.hidden += DENSE_FLOPS[packet](*args, **kwargs, out_val=result) - count
        return result


def count_flops(call: Callable[[], object]) -> FlopCount:
    """Run `call` once and count.

    Everything that `call` computes has to run inside it, its backward pass included.
    """
    with _Counting() as counting:
        call()
    flops = counting.by_operator.total()
    return FlopCount(
        flops=flops, flops_dense=flops + counting.hidden, by_operator=dict(counting.by_operator)
    )

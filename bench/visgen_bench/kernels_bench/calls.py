"""A direction as a call that can be repeated: what runs before it, what it computes.

| direction | a call gives |
|---|---|
| forward | out, without autograd |
| recorded_forward | out, with what a backward pass needs kept |
| backward | the gradients of the leaves, from one recorded forward pass |
| double_backward | gradients of those gradients (of q, k, v), as a gradient penalty takes them |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One backend on one problem.

    Attributes:
        forward: Gives the output, differentiable in `leaves`.
        leaves: By name; those that are differentiated.
        grad: Of the output.
        cotangents: By name of the leaf, for the second backward pass.
        whole: Starts and ends in the model's layout; else its tensors are not the problem's.
        compiled: The first call compiles something.
    """

    forward: Callable[[], Tensor]
    leaves: Mapping[str, Tensor]
    grad: Tensor
    cotangents: Mapping[str, Tensor]
    whole: bool = True
    compiled: bool = False


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """`call` may be repeated as often as wanted; `names` are what it returns, in order."""

    call: Callable[[], tuple[Tensor, ...]]
    names: tuple[str, ...]

    def results(self) -> dict[str, Tensor]:
        """One more call, its results by name: `out`, `d qkv`, `dd qkv`, `d grad`, ..."""
        return dict(zip(self.names, (x.detach() for x in self.call()), strict=True))


def prepare(side: Side, direction: str) -> Prepared:
    """Run what has to run once, and give the call that is repeated.

    Raises:
        RuntimeError: as the backend raises it where it has no such derivative.
    """
    if direction == "forward":

        def infer() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (side.forward(),)

        return Prepared(call=infer, names=("out",))
    if direction == "recorded_forward":
        return Prepared(call=lambda: (side.forward(),), names=("out",))
    leaves = tuple(side.leaves.values())
    if direction == "backward":
        out = side.forward()
        return Prepared(
            call=lambda: torch.autograd.grad(out, leaves, side.grad, retain_graph=True),
            names=tuple(f"d {name}" for name in side.leaves),
        )
    return _twice(side, leaves)


def _twice(side: Side, leaves: tuple[Tensor, ...]) -> Prepared:
    inputs = [side.leaves[name] for name in side.cotangents]
    grad = side.grad.detach().requires_grad_()
    gradients = torch.autograd.grad(side.forward(), inputs, grad, create_graph=True)
    cotangents = list(side.cotangents.values())

    def call() -> tuple[Tensor, ...]:
        return torch.autograd.grad(gradients, (*leaves, grad), cotangents, retain_graph=True)

    return Prepared(call=call, names=(*(f"dd {name}" for name in side.leaves), "d grad"))

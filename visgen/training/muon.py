"""Muon (Jordan et al. 2024): steps of momentum whose singular values are all made about 1.

The gradient of a matrix is dominated by few directions: in an autoencoder of dark clips with small
things in them, by their brightness, a long time before their colours and outlines. A step along the
nearest orthogonal matrix moves all directions alike. With gradient g and momentum m

    m <- .95 m + g     u = g + .95 m     W <- W - lr .2 sqrt(max(rows, columns)) UV^T,  u = U S V^T

UV^T comes from five Newton-Schulz iterations of a quintic, which bring singular values near 1 (.68
to 1.2). The factor in front gives W's entries steps of about Adam's size (Liu et al. 2025,
arXiv:2502.16982), so one learning rate serves both: what has fewer than two axes is Adam's. Kernels
of convolutions count as matrices (first axis, all others).

Differs from both sources: there is no weight decay, and embeddings, tables of positions, first and
last layers are Muon's too, not Adam's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

MOMENTUM = 0.95
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
_EPSILON = 1e-8  # Adam's


class Muon(torch.optim.Optimizer):
    """Orthogonal steps for parameters of two axes or more, Adam's for the others."""

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, lr: float, betas: tuple[float, float]
    ) -> None:
        """betas: of Adam.

        Raises:
            ValueError: for a rate below 0, or a beta that is not at least 0 and below 1.
        """
        if lr < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"lr={lr} is 0 or more, betas={betas} are 0 or more and below 1.")
        # "fused" also says where a loaded `step` belongs: on its parameter's device.
        super().__init__(parameters, {"lr": lr, "betas": betas, "fused": True})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of every parameter that has a gradient."""
        if closure is not None:
            raise TypeError("Muon evaluates no closure; compute the gradients before the step.")
        for group in self.param_groups:
            given = [p for p in group["params"] if p.grad is not None]
            for parameter in given:
                if parameter.ndim >= 2:
                    self._turn(parameter, group["lr"])
            self._adam([p for p in given if p.ndim < 2], group)

    def _turn(self, parameter: Tensor, lr: float) -> None:
        """The orthogonal step of one matrix."""
        grad, state = parameter.grad, self.state[parameter]
        assert grad is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"]
        momentum.mul_(MOMENTUM).add_(grad)
        ahead = grad.add(momentum, alpha=MOMENTUM).flatten(1)
        size = 0.2 * max(ahead.shape) ** 0.5
        parameter.sub_(orthogonal(ahead).view_as(parameter), alpha=lr * size)

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self.state[p] for p in parameters]
        for parameter, state in zip(parameters, states, strict=True):
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        adam(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=True,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=0.0,
            eps=_EPSILON,
            maximize=False,
        )


def orthogonal(matrix: Tensor) -> Tensor:
    """(r, c) float -> a matrix of the same singular vectors, with singular values of about 1.

    Directions whose singular value is below 0.0015 of the Frobenius norm come out smaller.
    """
    a, b, c = _QUINTIC
    x = matrix / (matrix.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.mT
    for _ in range(_ITERATIONS):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.mT

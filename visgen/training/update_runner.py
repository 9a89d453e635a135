"""One optimiser step of one part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from visgen.objectives.update import Update
from visgen.seeds import Draws
from visgen.training.muon import Muon

Precision = Literal["fp32", "bf16"]


class UpdateRunner:
    """Carries out one `Update`: micro-batches, backward, clipping, optimiser.

    Only the update's own part needs gradients meanwhile, so nothing is spent on the others'
    weights.
    """

    def __init__(
        self,
        model: Any,
        update: Update,
        *,
        betas: tuple[float, float],
        clip: float | None,
        dtype: Precision = "fp32",
    ) -> None:
        """`model` has `networks()`; bf16 runs the loss under autocast, weights stay float32."""
        if dtype not in ("fp32", "bf16"):
            raise ValueError(f"training in dtype={dtype!r} is not offered; use fp32 or bf16.")
        self.model = model
        self.update = update
        self.clip = clip
        self.dtype = dtype
        self.parameters = list(model.networks()[update.part].parameters())
        if update.optimizer not in ("adam", "muon"):
            raise ValueError(f"optimizer={update.optimizer!r} is not offered; use adam or muon.")
        lr = update.learning_rate
        self.optimizer: torch.optim.Optimizer
        if update.optimizer == "muon":
            self.optimizer = Muon(self.parameters, lr=lr, betas=betas)
        else:
            self.optimizer = torch.optim.Adam(self.parameters, lr=lr, betas=betas, fused=True)

    def run(self, batch: Any, draws: Draws) -> dict[str, float]:
        """One optimiser step.

        Args:
            batch: Of examples (`training.examples`) on the part's device, or None if the update
                reads none.
            draws: One seed a sample of the whole batch.

        Returns:
            The loss's named figures, means over micro-batches, and `gradient_norm` before clipping.

        Raises:
            FloatingPointError: if the loss or the gradient is not finite; the weights are
                untouched.
        """
        for part, network in self.model.networks().items():
            network.requires_grad_(part == self.update.part)
        for group in self.optimizer.param_groups:
            group["lr"] = self.update.learning_rate * self.update.schedule(draws.step)
        self.optimizer.zero_grad(set_to_none=True)
        pieces = self.update.accumulate
        size = self.update.batch // pieces
        device = draws.seeds.device.type
        figures: dict[str, float] = {}
        for piece in range(pieces):
            rows = slice(piece * size, (piece + 1) * size)
            own = Draws(draws.seeds[rows], draws.stream, draws.step)
            with torch.autocast(device, torch.bfloat16, enabled=self.dtype == "bf16"):
                values = self.update.loss(None if batch is None else batch[rows], own)
            (values["loss"] / pieces).backward()
            for name, value in values.items():
                figures[name] = figures.get(name, 0.0) + float(value.detach()) / pieces
        limit = float("inf") if self.clip is None else self.clip
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit)
        figures["gradient_norm"] = float(norm)
        for name in ("loss", "gradient_norm"):
            if not torch.isfinite(torch.tensor(figures[name])):
                raise FloatingPointError(f"{self.update.name}: {name} is {figures[name]}")
        self.optimizer.step()
        return figures

    def state(self) -> dict[str, Tensor]:
        """The optimiser's tensors, by `place.name`."""
        per_parameter = self.optimizer.state_dict()["state"]
        return {f"{i}.{k}": v for i, values in per_parameter.items() for k, v in values.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        whole = self.optimizer.state_dict()
        per_parameter: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            place, _, name = key.partition(".")
            per_parameter.setdefault(int(place), {})[name] = tensor
        self.optimizer.load_state_dict({**whole, "state": per_parameter})


StepHook = Callable[[int, dict[str, float]], None]

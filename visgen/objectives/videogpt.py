"""What VideoGPT's two stages minimise (arXiv:2104.10157, section 3).

First the VQ-VAE: squared error over the data's variance, and the commitment of vectors to their
codes. Then the prior, over the codes of a VQ-VAE that no longer changes: mean cross-entropy, in
nats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from visgen.objectives.recipe import check_counts
from visgen.objectives.update import Optimizer, Update, constant, cosine
from visgen.pixels import to_unit
from visgen.seeds import Draws

if TYPE_CHECKING:
    from visgen.models.videogpt import VideoGPT


@dataclass(frozen=True, kw_only=True)
class VqvaeRecipe:
    """The first stage; the released code's Adam at a constant rate, or Muon, or a cosine to 0.

    `variance` is that of the data's values, in [-0.5, 0.5], by which the squared error is divided.
    Both codes take 0.06 for every data set. Where the data vary less, the vectors' commitment
    outweighs what small things contribute to the error, and the codes lose them.
    """

    objective: Literal["vqvae"] = "vqvae"
    steps: int
    batch: int
    lr: float = 3e-4
    schedule: Literal["constant", "cosine"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    accumulate: int = 1
    variance: float = 0.06
    optimizer: Optimizer = "adam"

    def __post_init__(self) -> None:
        check_counts(steps=self.steps, batch=self.batch, accumulate=self.accumulate)
        if not 0 < self.variance <= 0.25:
            raise ValueError(
                f"variance={self.variance}: values in [-0.5, 0.5] have one above 0, 0.25 at most."
            )

    @property
    def kept(self) -> str:
        """The part that is trained."""
        return "vqvae"

    def updates(self, model: VideoGPT) -> tuple[Update, ...]:
        """One update, on clips uint8 (b, t, 3, h, w)."""

        def loss(batch: Any, draws: Draws) -> dict[str, Tensor]:
            return model.vqvae.loss(to_unit(batch), draws, self.variance)

        update = Update(
            name="vqvae",
            part="vqvae",
            repeat=1,
            batch=self.batch,
            accumulate=self.accumulate,
            learning_rate=self.lr,
            reads_data=True,
            loss=loss,
            schedule=cosine(self.steps) if self.schedule == "cosine" else constant,
            optimizer=self.optimizer,
        )
        return (update,)

    def decay(self, step: int) -> float:
        """The weights themselves are kept."""
        return 0.0


@dataclass(frozen=True, eq=False)
class CodeBatch:
    """Codes int64 (b, t, h, w), and what is known of each clip (`Prior.look`'s arguments)."""

    codes: Tensor
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, rows: slice) -> CodeBatch:
        return CodeBatch(self.codes[rows], {k: v[rows] for k, v in self.conditions.items()})

    def to(self, device: str) -> CodeBatch:
        """All tensors on a device."""
        moved = {k: v.to(device) for k, v in self.conditions.items()}
        return CodeBatch(self.codes.to(device), moved)


@dataclass(frozen=True, kw_only=True)
class PriorRecipe:
    """The second stage; the paper's Adam, or Muon, with a cosine to 0 over all steps.

    `drop` is the probability with which a sample's condition is left out, each kind for itself, so
    that one prior serves every subset of its conditions, and guidance.
    """

    objective: Literal["prior"] = "prior"
    steps: int
    batch: int
    lr: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    accumulate: int = 1
    drop: float = 0.1
    ema: float = 0.0
    optimizer: Optimizer = "adam"

    def __post_init__(self) -> None:
        check_counts(steps=self.steps, batch=self.batch, accumulate=self.accumulate)
        if not (0 <= self.drop <= 1 and 0 <= self.ema < 1):
            raise ValueError(f"drop={self.drop} is 0 to 1, ema={self.ema} is 0 or more, below 1.")

    @property
    def kept(self) -> str:
        """The part that is trained."""
        return "prior"

    def updates(self, model: VideoGPT) -> tuple[Update, ...]:
        """One update, on a `CodeBatch`."""

        def loss(batch: Any, draws: Draws) -> dict[str, Tensor]:
            return {"loss": self.nats(model, batch, draws)}

        update = Update(
            name="prior",
            part="prior",
            repeat=1,
            batch=self.batch,
            accumulate=self.accumulate,
            learning_rate=self.lr,
            reads_data=True,
            loss=loss,
            schedule=cosine(self.steps),
            optimizer=self.optimizer,
        )
        return (update,)

    def decay(self, step: int) -> float:
        """Of the moving average; 0: the weights themselves."""
        return self.ema

    def given(self, batch: CodeBatch, draws: Draws) -> dict[str, Tensor]:
        """Which samples keep their condition, of each kind: bool (b,)."""
        return {
            kind: draws.uniform(f"given-{kind}").to(batch.codes.device) >= self.drop
            for kind in batch.conditions
            if kind != "lengths"
        }

    def nats(self, model: VideoGPT, batch: CodeBatch, draws: Draws) -> Tensor:
        """Mean negative log-likelihood of a code; conditions are left out as `drop` says."""
        given = self.given(batch, draws)
        seen = model.prior.look(len(batch.codes), **batch.conditions, given=given)
        with torch.no_grad():
            vectors = model.vqvae.embed(batch.codes)
        logits = model.prior(vectors, seen, draws)
        return F.cross_entropy(logits.flatten(0, 1).float(), batch.codes.flatten())

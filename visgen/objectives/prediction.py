"""What a predictor of frames minimises: the error of the frames that follow the given ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor
from torch.nn import functional as F

from visgen.baselines.predictor import Predictor
from visgen.objectives.recipe import check_counts
from visgen.objectives.update import Update
from visgen.seeds import Draws


@dataclass(frozen=True, kw_only=True)
class PredictorRecipe:
    """Squared error a pixel in [0, 1], plus `l1` times the absolute one; Adam at a constant rate.

    The figure `mse` is the mean over pixels, channels and predicted frames. The customary "MSE" of
    Moving MNIST is the sum over a frame's pixels: 4096 times as large at 64 x 64.
    """

    objective: Literal["prediction"] = "prediction"
    steps: int
    batch: int
    lr: float = 1e-3
    l1: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0
    accumulate: int = 1

    def __post_init__(self) -> None:
        check_counts(steps=self.steps, batch=self.batch, accumulate=self.accumulate)
        if self.l1 < 0:
            raise ValueError(f"l1={self.l1}; the weight of the absolute error is 0 or more.")

    @property
    def kept(self) -> str:
        """The part that is trained."""
        return "predictor"

    def updates(self, model: Predictor) -> tuple[Update, ...]:
        """One update, on clips uint8 (b, t, 3, h, w)."""

        def loss(batch: Any, draws: Draws) -> dict[str, Tensor]:
            return self.errors(model, batch)

        update = Update(
            name="predictor",
            part="predictor",
            repeat=1,
            batch=self.batch,
            accumulate=self.accumulate,
            learning_rate=self.lr,
            reads_data=True,
            loss=loss,
        )
        return (update,)

    def decay(self, step: int) -> float:
        """The weights themselves are kept."""
        return 0.0

    def errors(self, model: Predictor, clips: Tensor) -> dict[str, Tensor]:
        """`loss`, and `mse` without gradient, of clips uint8 (b, t, 3, h, w).

        Raises:
            ValueError: for clips of another size than the model's.
        """
        size = (clips.shape[1], *clips.shape[3:])
        if size != model.clip_size:
            raise ValueError(
                f"clips have {size} frames, rows and columns, the model predicts {model.clip_size}."
            )
        frames, given = model.frames(clips), model.config.context
        predicted, true = model.predict(frames[:, :given]).float(), frames[:, given:]
        mse = F.mse_loss(predicted, true)
        loss = mse + self.l1 * F.l1_loss(predicted, true) if self.l1 else mse
        return {"loss": loss, "mse": mse.detach()}

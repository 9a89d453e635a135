"""The training loop: order, accumulation, clipping, moving average, precision and exact resume."""

from visgen.training.examples import Clips, Examples, Pictures
from visgen.training.loop import NonFiniteLoss, TrainResult, train
from visgen.training.update_runner import UpdateRunner

__all__ = ["Clips", "Examples", "NonFiniteLoss", "Pictures", "TrainResult", "UpdateRunner", "train"]

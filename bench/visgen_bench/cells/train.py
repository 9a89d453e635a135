"""The train cell: recipe -> weights, with every logged figure as a measurement.

Training resumes by itself: its checkpoint lies in the cell's state folder until the cell is done.
The final weights go to the cell's artifacts, under a name that the planner knows beforehand.
"""

import shutil
import time

from visgen_bench.cell import TrainCell
from visgen_bench.cells import broken
from visgen_bench.context import Context, Invalid
from visgen_bench.presets import config_of

WEIGHTS = "weights.safetensors"


def run_train(cell: TrainCell, context: Context) -> None:
    """Train a cell's model to the end of its recipe.

    Raises:
        Invalid: if the loss is not finite; the last good weights stay in the state folder.
    """
    import torch

    from visgen.data import open_data
    from visgen.training import NonFiniteLoss, Pictures, train

    data = open_data(cell.data, root=context.data_root, offline=context.offline)
    broken.report(data, context, phase="data")
    torch.manual_seed(cell.seed)
    model = config_of(cell).build(attention=cell.attention)
    for part, network in model.networks().items():
        context.metric("params", float(sum(p.numel() for p in network.parameters())), phase=part)
    curves = Curves(context)
    try:
        result = train(
            model,
            cell.recipe,
            Pictures(data, cell.split, model.image_size),
            seed=cell.seed,
            folder=context.state,
            device=cell.device,
            dtype="bf16" if cell.dtype == "bf16" else "fp32",
            on_log=curves.log,
            log_every=cell.log_every,
            checkpoint_every=cell.checkpoint_every,
        )
    except NonFiniteLoss as error:
        if error.weights is not None:
            kept = error.weights.relative_to(context.root)
            context.provenance(artifacts_path=kept.parent.as_posix())
        raise Invalid(str(error)) from error
    shutil.copyfile(result.weights, context.artifacts / f".{WEIGHTS}.partial")
    (context.artifacts / f".{WEIGHTS}.partial").replace(context.artifacts / WEIGHTS)
    context.provenance(weights_sha256=result.sha256, artifacts_path=f"artifacts/{context.spec_key}")
    context.metric("train_steps", float(result.steps), n=result.steps)
    context.metric("train_seconds", result.seconds, n=result.steps, timing_method="wall_sync")
    shutil.rmtree(context.state, ignore_errors=True)


class Curves:
    """Writes what the loop logs: one measurement a figure and step."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._start = time.monotonic()

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Called by the loop with the step's number and its figures, `update/name`."""
        offset = time.monotonic() - self._start
        for name, value in figures.items():
            phase, _, metric = name.rpartition("/")
            self._context.series(
                metric or name, [value], phase=phase or "total", iters=[step], offsets=[offset]
            )

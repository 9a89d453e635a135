"""The train cell: recipe -> weights, with every logged figure as a measurement.

Training resumes by itself: its checkpoint lies in the cell's state folder until the cell is done.
The final weights go to the cell's artifacts, under a name that the planner knows beforehand.
"""

import shutil
import time
from typing import TYPE_CHECKING, Any

from visgen_bench import media
from visgen_bench.cell import TrainCell
from visgen_bench.cells import broken
from visgen_bench.context import Context, Invalid
from visgen_bench.presets import config_of

if TYPE_CHECKING:
    from torch import Tensor

    from visgen.training import Examples

WEIGHTS = "weights.safetensors"
CODES = "codes.safetensors"


def run_train(cell: TrainCell, context: Context) -> None:
    """Train a cell's model to the end of its recipe.

    Raises:
        Invalid: if the loss is not finite; the last good weights stay in the state folder.
    """
    import torch

    from visgen.checkpoints import save_weights
    from visgen.checkpoints.weights import part_states
    from visgen.training import NonFiniteLoss, train
    from visgen_bench.cells.samples import load_named

    config = config_of(cell)
    data = media.open_set(cell.data, cell, config, root=context.data_root, offline=context.offline)
    broken.report(data, context, phase="data")
    torch.manual_seed(cell.seed)
    model = config.build(attention=cell.attention)
    begun = load_named(model, cell.weights, context)
    for part, network in model.networks().items():
        context.metric("params", float(sum(p.numel() for p in network.parameters())), phase=part)
    curves = Curves(context)
    try:
        result = train(
            model,
            cell.recipe,
            _examples(cell, model, data, begun, context),
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
    partial, sha256 = context.artifacts / f".{WEIGHTS}.partial", result.sha256
    if begun is None:
        shutil.copyfile(result.weights, partial)
    else:  # one file of all stages, so that it can be used as it is
        about = {"step": str(result.steps), "seed": str(cell.seed), "begun_from": begun}
        sha256 = save_weights(partial, part_states(model.networks()), about)
    partial.replace(context.artifacts / WEIGHTS)
    context.provenance(weights_sha256=sha256, artifacts_path=f"artifacts/{context.spec_key}")
    context.metric("train_steps", float(result.steps), n=result.steps)
    context.metric("train_seconds", result.seconds, n=result.steps, timing_method="wall_sync")
    shutil.rmtree(context.state, ignore_errors=True)


def _examples(
    cell: TrainCell, model: Any, data: Any, begun: str | None, context: Context
) -> "Examples":
    """What the recipe learns from: pictures, clips, or the codes of clips."""
    from visgen.training import Clips, Pictures

    if not media.is_video(cell.data):
        return Pictures(data, cell.split, model.image_size)
    if cell.recipe.objective != "prior":
        return Clips(data, cell.split)
    from visgen.training.latents import Latents

    codes = _codes(cell, model, data, begun, context)
    return Latents(model, data, cell.split, codes)


def _codes(cell: TrainCell, model: Any, data: Any, begun: str | None, context: Context) -> "Tensor":
    """Codes of all clips, encoded once and kept for a resumed attempt."""
    from visgen.checkpoints import read, write
    from visgen.training.latents import encoded

    about = {"weights": begun or "", "data": f"{data.fingerprint}:{cell.split}"}
    path = context.state / CODES
    if path.exists():
        tensors, found = read(path)
        if found == about:
            return tensors["codes"]

    def said(done: int, of: int) -> None:
        if done % 1024 == 0 or done == of:
            context.progress(f"codes {done} of {of}")

    codes = encoded(model, data, cell.split, device=cell.device, on_batch=said)
    write(path, {"codes": codes}, about)
    return codes


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

"""`visgen-bench kernels`: single kernels, read from their machine code (static) or timed (bench)."""

import typer

from visgen_bench.errors import UsageError
from visgen_bench.kernels_bench import command as timed

kernels_app = typer.Typer(
    help="Single kernels: what their code costs, and how fast they run.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@kernels_app.callback()
def kernels() -> None:
    """Single kernels: what their code costs, and how fast they run."""


@kernels_app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def static() -> None:
    """What kernels cost, read from their machine code; no GPU is needed (not built yet)."""
    raise UsageError("kernels static is not built yet; performance cells time whole models")


kernels_app.command()(timed.bench)
kernels_app.command()(timed.share)

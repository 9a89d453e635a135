"""`visgen-bench kernels`: single kernels, read from their code (static) or timed (bench)."""

import typer

from visgen_bench.kernels_bench import command as timed
from visgen_bench.kernels_static import command as code

kernels_app = typer.Typer(
    help="Single kernels: what their code costs, and how fast they run.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@kernels_app.callback()
def kernels() -> None:
    """Single kernels: what their code costs, and how fast they run."""


kernels_app.command()(code.static)
kernels_app.command()(timed.bench)
kernels_app.command()(timed.share)

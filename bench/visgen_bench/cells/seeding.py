"""Do a model's samples follow from their seeds? Two signs that they do not, each a row if seen.

    repeated_samples    samples that are the same picture as an earlier one
    redraw_difference   how far the same seeds are off when drawn again, as a share of the
                        difference between two samples: 0 if a sample depends on its seed alone,
                        about 1 if it does not depend on it at all

Both come with their sentence in `reason`; the numbers of the cell are kept as they are.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from visgen_bench.cells.samples import ModelSource, Source
from visgen_bench.context import Context

if TYPE_CHECKING:
    from visgen_bench.metrics.evaluation import Evaluation

REDRAWN = 8  # samples that are drawn twice
# Batches of another size change a sample by rounding, hardly ever beyond recognition.
LARGEST_DIFFERENCE = 0.5
_HOW = "a sample must depend on its seed alone: take noise from visgen.seeds.normal"


def report(
    source: Source, evaluation: "Evaluation", first: Mapping[int, Tensor], context: Context
) -> None:
    """Write a row for each sign that is seen.

    Args:
        source: Where the samples came from.
        evaluation: Has seen all of them.
        first: Some pictures, uint8 (3, h, w), by index, as they were drawn in this attempt.
        context: Takes the rows.
    """
    drawn = isinstance(source, ModelSource)
    n, kinds = int(evaluation.seen.sum()), evaluation.different_pictures()
    if kinds < n:
        text = _repeats(n, kinds, drawn)
        options = {"different": kinds}
        context.metric("repeated_samples", float(n - kinds), n=n, reason=text, metric_opts=options)
    indices = torch.tensor(sorted(first), dtype=torch.int64)
    if not drawn or len(indices) == 0:
        return
    before = torch.stack([first[index] for index in indices.tolist()])
    found = difference(before, torch.cat(list(source.draw(indices))))
    if found > LARGEST_DIFFERENCE:
        text = f"the same seeds gave other pictures when drawn again; {_HOW}"
        context.metric("redraw_difference", found, n=len(indices), reason=text)


def _repeats(n: int, kinds: int, drawn: bool) -> str:
    if kinds > 1:
        return f"{n - kinds:,} of {n:,} samples repeat an earlier one ({kinds:,} are different)"
    why = f"; the network has collapsed, or ignores its seeds ({_HOW})" if drawn else ""
    return f"all {n:,} samples are one and the same picture{why}"


def difference(before: Tensor, after: Tensor) -> float:
    """Mean |after - before| over mean |sample - next sample|, of uint8 (n, 3, h, w).

    Samples that are all one picture, and another one the second time, differ by 1.
    """
    own = (after.double() - before.double()).abs().mean().item()
    between = (before.double() - before.double().roll(1, 0)).abs().mean().item()
    return own / between if between else float(own > 0)

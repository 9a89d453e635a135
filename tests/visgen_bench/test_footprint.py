"""Live tensors of a call, against sums that can be done by hand."""

import torch
from torch import nn
from torch.nn import functional as F

from visgen_bench.footprint import peak_bytes

MIB = 2**20
SIDE = 512  # a float32 matrix of this side is one MiB


def matrix() -> torch.Tensor:
    return torch.empty(SIDE, SIDE, device="meta")


def test_what_is_gone_before_the_next_is_made_does_not_add_up() -> None:
    given = matrix()

    def one_after_the_other() -> torch.Tensor:
        last = given
        for _ in range(5):
            last = given + 1
        return last

    def kept() -> list[torch.Tensor]:
        return [given + 1 for _ in range(5)]

    # The name holds the last one while the next is made.
    assert peak_bytes(one_after_the_other) == 2 * MIB
    assert peak_bytes(kept) == 5 * MIB


def test_views_and_what_was_there_before_are_nothing_new() -> None:
    given = matrix()
    assert peak_bytes(lambda: given.view(-1)[5:].view(-1, 1).T) == 0
    assert peak_bytes(lambda: given.add_(1)) == 0
    assert peak_bytes(lambda: [(given + 1).T, given.T]) == MIB


def test_a_backward_pass_keeps_what_it_needs() -> None:
    with torch.device("meta"):
        layers = nn.Sequential(*(nn.Linear(SIDE, SIDE, bias=False) for _ in range(4)))
    given = matrix()

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return layers(given)

    # Two at a time without a gradient; with one, every layer's input waits for the backward pass.
    assert peak_bytes(forward) == 2 * MIB
    assert peak_bytes(lambda: layers(given)) == 4 * MIB
    # Relu keeps its own output; a product needs both of its factors.
    with_gradient = given.clone().requires_grad_()
    assert peak_bytes(lambda: F.relu(with_gradient) * with_gradient) == 2 * MIB


def test_the_peak_grows_with_the_batch() -> None:
    with torch.device("meta"):
        layer = nn.Linear(SIDE, SIDE)
    peaks = [
        peak_bytes(lambda n=n: layer(torch.empty(n, SIDE, device="meta"))) for n in (SIDE, 4 * SIDE)
    ]
    assert peaks == [2 * MIB, 8 * MIB]

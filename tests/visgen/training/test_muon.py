"""Muon beside a singular value decomposition, torch's own for matrices, and Adam for vectors."""

import pytest
import torch
from torch import nn

from visgen.training.muon import Muon, orthogonal


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24), (3, 192)])
def test_singular_vectors_stay_and_values_come_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.mT @ orthogonal(matrix) @ v.mT  # diagonal in the matrix's own singular vectors
    torch.testing.assert_close(inside, inside.diagonal().diag(), rtol=0, atol=1e-9)
    assert bool(((inside.diagonal() > 0.6) & (inside.diagonal() < 1.25)).all())


def steps(parameters: list[nn.Parameter], optimizer: torch.optim.Optimizer, count: int) -> None:
    for step in range(count):
        generator = torch.Generator().manual_seed(step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()


def test_matrices_move_as_torch_moves_them() -> None:
    start = torch.randn(12, 30, generator=torch.Generator().manual_seed(3))
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    steps([ours], Muon([ours], lr=0.01, betas=(0.9, 0.999)), 5)
    peer = torch.optim.Muon(
        [theirs], lr=0.01, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    steps([theirs], peer, 5)
    # Its iterations run in bfloat16: a hundredth of the way.
    with torch.no_grad():
        assert float((ours - theirs).norm()) < 0.02 * float((ours - start).norm())


def test_kernels_move_as_the_matrices_they_are() -> None:
    start = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(3))
    kernel, matrix = nn.Parameter(start.clone()), nn.Parameter(start.flatten(1))
    for parameter in (kernel, matrix):
        optimizer = Muon([parameter], lr=0.01, betas=(0.9, 0.999))
        for step in range(3):
            grad = torch.randn(8, 36, generator=torch.Generator().manual_seed(step))
            parameter.grad = grad.view_as(parameter)
            optimizer.step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_vectors_move_as_adam_moves_them() -> None:
    ours, theirs = nn.Parameter(torch.zeros(7)), nn.Parameter(torch.zeros(7))
    steps([ours], Muon([ours], lr=0.01, betas=(0.8, 0.9)), 5)
    steps([theirs], torch.optim.Adam([theirs], lr=0.01, betas=(0.8, 0.9), fused=True), 5)
    assert torch.equal(ours, theirs)
    assert float(ours.detach().abs().max()) > 0.01


def test_rates_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lr=-1\.0 is 0 or more"):
        Muon([nn.Parameter(torch.zeros(1))], lr=-1.0, betas=(0.9, 0.9))
    with pytest.raises(ValueError, match=r"betas=\(0\.9, 1\.0\)"):
        Muon([nn.Parameter(torch.zeros(1))], lr=1.0, betas=(0.9, 1.0))


def test_closures_are_refused() -> None:
    with pytest.raises(TypeError, match="no closure"):
        Muon([nn.Parameter(torch.zeros(1))], lr=1.0, betas=(0.9, 0.9)).step(lambda: 0.0)

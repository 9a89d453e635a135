"""VideoGPT's VQ-VAE: parameter counts, latent grids, the codebook's moving averages."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visgen.layers.same_padding import SameConv3d, SameConvTranspose3d
from visgen.models.vqvae import (
    VQVAE,
    AxialAttention,
    Codebook,
    OpponentColours,
    VQVAEConfig,
    perplexity,
)
from visgen.seeds import Draws

TINY = VQVAEConfig(
    frames=8,
    size=(16, 16),
    downsample=(2, 4, 4),
    width=12,
    inner_width=6,
    residual_layers=1,
    code_dim=6,
    codes=8,
)
DRAWS = Draws(torch.tensor([1, 2]), "train", 0)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def clips(batch: int = 2, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, 8, 16, 16, generator=generator) - 0.5


@pytest.mark.parametrize("downsample", [(4, 4, 4), (2, 4, 4), (4, 2, 2)])
def test_published_parameter_counts(downsample: tuple[int, int, int]) -> None:
    with torch.device("meta"):
        model = VQVAEConfig(downsample=downsample).build()
    assert count(model) == 21_141_619
    assert count(model.encoder) == 11_286_960
    assert count(model.decoder) == 9_731_283
    assert (count(model.to_code), count(model.from_code)) == (61_696, 61_680)
    block = model.encoder.stack.blocks[0]
    assert count(block) == 1_499_520
    assert count(AxialAttention(240, 2, None)) == 691_920
    assert model.codebook.codes.numel() + model.codebook.counts.numel() == 2048 * 257


def paper_count(downsample: tuple[int, int, int], grid: int) -> int:
    """Derived by hand: C 240, 128 inside a residual block, positions shared, 3x3x3 from codes."""
    c, r, d, steps = 240, 128, 256, max(downsample).bit_length() - 1
    block = 2 * c + 27 * c * r + 2 * r + r * c + 2 * c + 3 * (4 * c * c + c)
    stack = 4 * block + 2 * c
    encoder = 64 * 3 * c + c + (steps - 1) * (64 * c * c + c) + 27 * c * c + c + stack
    decoder = stack + (steps - 1) * (64 * c * c + c) + 64 * c * 3 + 3
    return encoder + (c * d + d) + (27 * d * c + c) + decoder + grid * c // 3


@pytest.mark.parametrize(
    ("downsample", "size", "grid", "expected"),
    [
        ((2, 2, 2), 64, (8, 32, 32), 15_801_747),
        ((4, 2, 2), 64, (4, 32, 32), 23_174_707),
        ((4, 4, 4), 128, (4, 32, 32), 23_174_707),
    ],
)
def test_parameter_counts_of_the_papers_family(
    downsample: tuple[int, int, int], size: int, grid: tuple[int, int, int], expected: int
) -> None:
    config = VQVAEConfig(
        size=(size, size),
        downsample=downsample,
        inner_width=128,
        positions=True,
        code_kernel=3,
        codes=1024,
    )
    with torch.device("meta"):
        assert count(config.build()) == paper_count(downsample, sum(grid)) == expected
    assert config.grid == grid


@pytest.mark.parametrize("downsample", [(1, 2, 2), (2, 2, 2), (4, 4, 4), (2, 4, 4), (4, 2, 2)])
@torch.no_grad()
def test_codes_lie_on_the_grid_and_clips_come_back_in_their_size(
    downsample: tuple[int, int, int],
) -> None:
    model = replace(TINY, downsample=downsample).build()
    codes = model.encode(clips())
    assert codes.shape == (2, *model.config.grid)
    assert model.decode(codes).shape == (2, 3, 8, 16, 16)


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 2, 2), (2, 1, 1), (1, 2, 2)])
@pytest.mark.parametrize("kernel", [1, 3, 4])
def test_same_padding_is_zeros_around_the_input(kernel: int, strides: tuple[int, int, int]) -> None:
    if kernel == 1 and max(strides) > 1:
        return  # a kernel below the stride would want negative padding
    x = torch.randn(1, 2, 4, 6, 8, dtype=torch.float64)
    around = [((kernel - s) // 2 + (kernel - s) % 2, (kernel - s) // 2) for s in strides]
    padded = F.pad(x, [n for pair in around[::-1] for n in pair])
    conv = SameConv3d(2, 3, kernel, strides).double()
    expected = F.conv3d(padded, conv.weight, conv.bias, stride=strides)
    torch.testing.assert_close(conv(x), expected)
    assert expected.shape[2:] == tuple(n // s for n, s in zip(x.shape[2:], strides, strict=True))


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 2, 2), (2, 1, 1), (1, 2, 2)])
def test_transposed_convolution_has_zeros_around_the_input_too(
    strides: tuple[int, int, int],
) -> None:
    x = torch.randn(1, 2, 4, 6, 8, dtype=torch.float64)
    around = [((4 - s) // 2 + (4 - s) % 2, (4 - s) // 2) for s in strides]
    padded = F.pad(x, [n for pair in around[::-1] for n in pair])
    conv = SameConvTranspose3d(2, 3, 4, strides).double()
    expected = F.conv_transpose3d(padded, conv.weight, conv.bias, stride=strides, padding=3)
    torch.testing.assert_close(conv(x), expected)
    assert expected.shape[2:] == tuple(n * s for n, s in zip(x.shape[2:], strides, strict=True))


@torch.no_grad()
def test_axial_attention_is_three_attentions_of_whole_lines() -> None:
    torch.manual_seed(0)
    layer, x = AxialAttention(8, 2, None), torch.randn(2, 3, 4, 5, 8)
    total = layer.bias.sum(0).expand_as(x).clone()
    weights = layer.qkv.weight.view(3, 3, 8, 8)
    for axis, dim in enumerate((3, 2, 1)):  # columns, rows, time
        lines = x.movedim(dim, -2)
        q, k, v = (
            (lines @ weights[axis, part].T).unflatten(-1, (2, 4)).transpose(-2, -3)
            for part in range(3)
        )
        mixed = (q @ k.mT * 4**-0.5).softmax(-1) @ v
        merged = mixed.transpose(-2, -3).flatten(-2).movedim(-2, dim)
        total += merged @ layer.out.weight[:, 8 * axis : 8 * axis + 8].T
    torch.testing.assert_close(layer(x), total, rtol=1e-5, atol=1e-5)


def test_moving_averages_of_the_published_example() -> None:
    book = Codebook(3, 2, 1.0)
    book.codes.copy_(torch.tensor([[0.0, 0.0], [1.0, 1.0], [-1.0, 1.0]]))
    book.counts.fill_(10.0)
    book.sums.copy_(10 * book.codes)
    rows = torch.tensor([[0.1, 0.2], [0.9, 0.8], [1.2, 1.1], [-0.7, 0.9]])
    indices = book(rows)
    assert indices.tolist() == [0, 1, 1, 2]
    commitment = 0.25 * F.mse_loss(rows, book.codes[indices])
    assert float(commitment) == pytest.approx(0.007813, abs=1e-6)
    assert float(perplexity(indices, 3)) == pytest.approx(2.828427, abs=1e-5)
    book.update(rows, indices, DRAWS)
    torch.testing.assert_close(book.counts, torch.tensor([9.91, 9.92, 9.91]))
    expected = [[0.000101, 0.000202], [1.000101, 0.999899], [-0.999697, 0.999899]]
    torch.testing.assert_close(book.codes, torch.tensor(expected), rtol=0, atol=1e-6)


def test_only_codes_below_the_threshold_are_restarted_and_counts_stay() -> None:
    book = Codebook(4, 2, 1.0)
    book.codes.copy_(torch.arange(8.0).view(4, 2))
    book.sums.copy_(book.codes)
    book.counts.copy_(torch.tensor([5.0, 1.0, 5.0, 0.2]))
    rows = torch.tensor([[0.0, 1.0], [4.0, 5.0], [100.0, 100.0], [100.0, 101.0]])
    counts = 0.99 * book.counts + 0.01 * torch.tensor([1.0, 0.0, 3.0, 0.0])
    book.update(rows, torch.tensor([0, 2, 2, 2]), DRAWS)
    torch.testing.assert_close(book.counts, counts)
    near = [float((code - rows).norm(dim=1).min()) < 0.05 for code in book.codes]
    assert near == [False, True, False, True]
    assert torch.equal(book.codes[::2], (book.sums / book.counts[:, None])[::2])


def common_and_rare(rare: int) -> Tensor:
    """200 vectors that are almost the same, and some that are far from all others."""
    generator = torch.Generator().manual_seed(0)
    common = 1e-3 * torch.randn(200, 8, generator=generator)
    return torch.cat([common, 50 * torch.randn(rare, 8, generator=generator)])


def test_first_codes_are_what_differs_not_what_is_frequent() -> None:
    book, rows = Codebook(16, 8, 1.0), common_and_rare(15)
    book.initialize(rows, DRAWS)
    nearest = torch.cdist(book.codes, rows).argmin(1)
    assert set(nearest.tolist()) >= set(range(200, 215))  # drawn by frequency: one of them
    assert float((book.codes - rows[nearest]).norm(dim=1).max()) < 0.05


def test_restarted_codes_are_drawn_in_proportion_to_the_squared_error() -> None:
    book, rows = Codebook(64, 8, 1.0), common_and_rare(15)
    book.codes.zero_()
    book.counts.zero_()
    book.update(rows, book(rows), DRAWS)
    nearest = torch.cdist(book.codes, rows).argmin(1)
    times = torch.bincount(nearest, minlength=215)
    expected = 64 * rows.square().sum(1) / rows.square().sum()
    assert float((times - expected).abs().max()) <= 2  # strata: at most one more at either end
    assert len(book.codes.unique(dim=0)) == 64  # no two start as the same


def test_vectors_fewer_than_codes_are_all_drawn() -> None:
    book, few = Codebook(16, 2, 1.0), torch.randn(3, 2)
    book.initialize(few, DRAWS)
    distance = torch.cdist(book.codes, few)
    assert len(distance.argmin(1).unique()) == 3
    assert float(distance.min(1).values.max()) < 0.1
    assert len(book.codes.unique(dim=0)) == 16


def trained(steps: int = 1) -> VQVAE:
    torch.manual_seed(0)
    model = TINY.build().train()
    for step in range(steps):
        model.loss(clips(seed=step), Draws(torch.tensor([1, 2]), "train", step), 0.06)
    return model


def test_going_on_with_training_does_not_initialise_the_codebook_again() -> None:
    model = trained(2)
    again = TINY.build().train()
    again.load_state_dict(model.state_dict())
    assert bool(again.codebook.initialized)
    for one in (model, again):
        one.loss(clips(seed=9), Draws(torch.tensor([1, 2]), "train", 2), 0.06)
    assert torch.equal(again.codebook.codes, model.codebook.codes)
    assert torch.equal(again.codebook.counts, model.codebook.counts)


def test_evaluation_changes_no_buffer() -> None:
    model = trained().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model.loss(clips(seed=3), DRAWS, 0.06)
    model.encode(clips(seed=4))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_loss_has_a_gradient_for_every_parameter() -> None:
    model = trained()
    model.loss(clips(seed=5), DRAWS, 0.06)["loss"].backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_error_is_weighed_by_the_data_s_variance() -> None:
    model = trained().eval()
    found = {v: model.loss(clips(seed=5), DRAWS, v) for v in (0.06, 0.01)}
    for variance, values in found.items():
        expected = values["error"] / variance + values["commitment"]
        torch.testing.assert_close(values["loss"].detach(), expected)
    assert float(found[0.06]["error"]) == float(found[0.01]["error"])


@pytest.mark.parametrize("opponent", [False, True])
def test_training_starts_at_the_first_batch_s_mean(opponent: bool) -> None:
    """With the last weights at 0 every pixel is the first batch's mean colour, and stays it."""
    model = replace(TINY, opponent=opponent).build().train()
    last = model.decoder.convs[-1]
    assert isinstance(last, SameConvTranspose3d)
    nn.init.zeros_(last.weight)
    dark = clips() * torch.tensor([0.1, 0.2, 0.3])[:, None, None, None] - 0.3
    model.loss(dark, DRAWS, 0.06)
    model.loss(clips(seed=1), DRAWS, 0.06)
    shown = model.decode(model.encode(dark))
    mean = dark.mean((0, 2, 3, 4))[:, None, None, None].expand_as(shown[0])
    torch.testing.assert_close(shown[1], mean)


def test_opponent_colours_are_brightness_and_differences_without_loss() -> None:
    colours, x = OpponentColours(), clips()
    split = colours.split(x)
    grey = colours.split(torch.full((1, 3, 1, 1, 1), -0.25)).flatten()
    torch.testing.assert_close(grey, torch.tensor([3 * 0.25 * 3**0.5, 0.0, 0.0]))
    back = colours.join(split / colours.gains[:, None, None, None])
    torch.testing.assert_close(back - 0.5, x)
    other = clips(seed=1)  # lengths stay, so a squared error does
    torch.testing.assert_close((colours.join(x) - colours.join(other)).norm(), (x - other).norm())


@torch.no_grad()
def test_a_cube_s_code_depends_on_that_cube_alone_and_is_the_same_everywhere() -> None:
    torch.manual_seed(0)
    model = replace(TINY, axial=False, cubes=True).build()
    x = clips()
    cubes = x.unfold(2, 2, 2).unfold(3, 4, 4).unfold(4, 4, 4)  # (b, 3, t, h, w, 2, 4, 4)
    alone = cubes.permute(0, 2, 3, 4, 1, 5, 6, 7).flatten(0, 3)
    torch.testing.assert_close(model.vectors(alone).flatten(0, 3), model.vectors(x).flatten(0, 3))
    around = replace(TINY, axial=False).build()
    x[:, :, 0, 0, 0] += 0.3
    for one, changes in ((model, 1), (around, None)):
        before = one.vectors(clips())
        changed = (one.vectors(x) - before).abs().amax(-1)[0] > 1e-6
        assert bool(changed[0, 0, 0])
        assert int(changed.sum()) == changes if changes else int(changed.sum()) > 8


def test_cubes_and_what_looks_beyond_them_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="Use axial=False"):
        replace(TINY, cubes=True)
    with pytest.raises(ValueError, match="and positions=False"):
        replace(TINY, cubes=True, axial=False, positions=True)


def test_decoder_is_learned_through_the_codes_as_if_they_were_the_vectors() -> None:
    model = trained().eval()
    z = model.vectors(clips()).detach().requires_grad_()
    e = model.embed(model.codebook(z))
    (straight,) = torch.autograd.grad(model._decode(z + (e - z).detach()).square().sum(), z)
    at = e.clone().requires_grad_()
    (direct,) = torch.autograd.grad(model._decode(at).square().sum(), at)
    torch.testing.assert_close(straight, direct, rtol=1e-4, atol=1e-5)


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="9 frames are not a multiple of the downsampling by 4"):
        VQVAEConfig(frames=9)
    with pytest.raises(ValueError, match="rows by 3, no power of two"):
        VQVAEConfig(downsample=(4, 3, 4))
    with pytest.raises(ValueError, match="at least one axis"):
        VQVAEConfig(downsample=(1, 1, 1))

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visgen.catalogue import find
from visgen.seeds import Draws
from visgen_bench.measure.flops import count_flops
from visgen_kernels import Causal, SlidingWindow, attention

B, N, D, HEADS = 2, 12, 32, 4


def meta(*shape: int) -> Tensor:
    return torch.empty(*shape, device="meta")


def test_a_stack_of_linears_is_two_products_a_weight():
    with torch.device("meta"):
        stack = nn.Sequential(nn.Linear(16, 40), nn.GELU(), nn.Linear(40, 8))
    count = count_flops(lambda: stack(meta(B, N, 16)))
    assert count.flops == count.flops_dense == 2 * B * N * (16 * 40 + 40 * 8)


def test_backward_costs_twice_forward_less_the_first_input_gradient():
    with torch.device("meta"):
        stack = nn.Sequential(nn.Linear(16, 40), nn.Linear(40, 8))
    count = count_flops(lambda: stack(meta(B, 16)).sum().backward())
    forward = 2 * B * (16 * 40 + 40 * 8)
    assert count.flops == 3 * forward - 2 * B * 16 * 40


def test_convolutions_count_kernel_times_output_and_transposed_ones_kernel_times_input():
    with torch.device("meta"):
        down, up = nn.Conv2d(3, 8, 4, stride=2, padding=1), nn.ConvTranspose2d(8, 5, 4, stride=2)
    assert count_flops(lambda: down(meta(B, 3, 16, 16))).flops == 2 * B * 8 * 3 * 16 * 8 * 8
    assert count_flops(lambda: up(meta(B, 8, 6, 6))).flops == 2 * B * 8 * 5 * 16 * 6 * 6


def test_attention_counts_its_two_products():
    q = meta(B, N, HEADS, D // HEADS)
    count = count_flops(lambda: attention(q, q, q))
    assert count.flops == count.flops_dense == 4 * B * HEADS * N * N * (D // HEADS)


@pytest.mark.parametrize(
    ("mask", "pairs"),
    [(Causal(), N * (N + 1) // 2), (SlidingWindow(2), 5 * N - 6)],
)
def test_hidden_pairs_count_in_flops_dense_alone(mask: object, pairs: int):
    q = meta(B, N, HEADS, D // HEADS)
    count = count_flops(lambda: attention(q, q, q, mask=mask))  # type: ignore[arg-type]
    assert count.flops == 4 * B * HEADS * pairs * (D // HEADS)
    assert count.flops_dense == 4 * B * HEADS * N * N * (D // HEADS)


def test_fused_cpu_attention_which_torch_counts_as_nothing_counts_on_meta():
    q = meta(B, HEADS, N, D // HEADS)
    count = count_flops(lambda: F.scaled_dot_product_attention(q, q, q))
    assert count.flops == 4 * B * HEADS * N * N * (D // HEADS)


def test_a_block_is_twelve_squares_of_its_width_and_its_scores():
    with torch.device("meta"):
        qkv, out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        mlp = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))

    def block() -> Tensor:
        packed = qkv(meta(B, N, D)).unflatten(-1, (3, HEADS, -1))
        return mlp(out(attention(packed).flatten(-2)))

    assert count_flops(block).flops == 2 * B * N * 12 * D * D + 4 * B * N * N * D


def block_flops(tokens: int, width: int) -> int:
    return 24 * tokens * width**2 + 4 * tokens**2 * width


def generator_flops(bottom: int, latent: int, depths: tuple[int, int, int]) -> int:
    total, side, width = 2 * latent * bottom**2 * 1024, bottom, 1024
    for depth in depths:
        total += depth * block_flops(side**2, width)
        side, width = 2 * side, width // 4
    return total + 2 * 3 * 64 * (4 * bottom) ** 2


def discriminator_flops(bottom: int) -> int:
    fine, coarse = (2 * bottom) ** 2, bottom**2
    patches = 2 * 12 * 288 * fine + 2 * 48 * 96 * coarse
    blocks = 3 * block_flops(fine, 288) + 3 * block_flops(coarse, 384)
    return patches + blocks + block_flops(coarse + 1, 384) + 2 * 384


@pytest.mark.parametrize(
    ("name", "bottom", "latent", "depths", "g_published", "d_published"),
    [
        ("transgan-cifar10", 8, 256, (5, 4, 2), 10.79, 2.69),
        ("transgan-stl10", 12, 512, (7, 5, 3), 37.10, 6.76),
    ],
)
def test_transgan_counts_its_analytic_formula_which_is_the_measured_figure(
    name: str,
    bottom: int,
    latent: int,
    depths: tuple[int, int, int],
    g_published: float,
    d_published: float,
):
    with torch.device("meta"):
        model = find(name).build(attention="reference")
    seeds = torch.empty(1, dtype=torch.int64, device="meta")
    sampled = count_flops(lambda: model.generate(seeds)).flops
    image = meta(1, 3, *model.image_size)
    judged = count_flops(lambda: model.discriminator(image, Draws(seeds, "count"))).flops
    assert sampled == generator_flops(bottom, latent, depths)
    assert judged == discriminator_flops(bottom)
    # transgan.md 1.7, in GFLOP with two decimals
    assert round(sampled / 1e9, 2) == g_published
    assert round(judged / 1e9, 2) == d_published


def test_a_call_that_takes_an_inputs_gradient_inside_can_be_counted():
    with torch.device("meta"):
        layer = nn.Linear(16, 1)

    def penalised() -> None:
        x = meta(B, 16).requires_grad_()
        (gradient,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
        gradient.square().sum().backward()

    assert count_flops(penalised).flops > 2 * B * 16

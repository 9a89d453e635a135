"""The dense definition agrees with SDPA's MATH backend and with pencil and paper."""

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from visgen_kernels import (
    BlockList,
    Blocks1d,
    Blocks2d,
    Causal,
    Full,
    RelativePosition2d,
    SlidingWindow,
    attention,
)
from visgen_kernels.biases import relative_index
from visgen_kernels.masks import Mask


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    "mask",
    [
        Full(),
        Causal(),
        Causal(4),
        SlidingWindow(3, 1),
        Blocks1d(4),
        Blocks2d((4, 6), (2, 3), (1, 2)),
        BlockList.strided(2, 3, 4, block=4),
    ],
)
def test_reference_equals_sdpa_math_under_every_mask(mask: Mask) -> None:
    q, k, v = draw(2, 24, 3, 5), draw(2, 24, 3, 5, seed=1), draw(2, 24, 3, 4, seed=2)
    lengths = torch.tensor([24, 11])
    visible = mask.visible(torch.arange(24)[:, None], torch.arange(24)[None])
    visible = visible & (torch.arange(24) < lengths[:, None, None, None])
    key_bias = draw(2, 24, 3, seed=4)
    added = key_bias.permute(0, 2, 1)[:, :, None].masked_fill(~visible, -torch.inf)
    with sdpa_kernel(SDPBackend.MATH):
        expected = scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=added, scale=0.7
        ).transpose(1, 2)
    out = attention(
        q,
        k,
        v,
        mask=mask,
        key_lengths=lengths,
        key_bias=key_bias,
        scale=0.7,
        implementation="reference",
    )
    torch.testing.assert_close(out, expected)


def test_reference_with_position_bias_equals_sdpa_math() -> None:
    q, table = draw(2, 15, 3, 2, 4), draw(5 * 9, 2, seed=1)
    dense = table[relative_index((3, 5))].permute(2, 0, 1)
    with sdpa_kernel(SDPBackend.MATH):
        parts = (x.transpose(1, 2) for x in q.unbind(2))
        expected = scaled_dot_product_attention(*parts, attn_mask=dense[None]).transpose(1, 2)
    bias = RelativePosition2d(table, (3, 5))
    torch.testing.assert_close(attention(q, bias=bias, implementation="reference"), expected)


def test_equal_scores_average_the_visible_values() -> None:
    v = draw(1, 6, 1, 3)
    q = torch.zeros_like(v)
    out, lse = attention(q, q, v, mask=Causal(), implementation="reference", return_lse=True)
    counts = torch.arange(1, 7).double()
    torch.testing.assert_close(out, v.cumsum(1) / counts[None, :, None, None])
    torch.testing.assert_close(lse, counts.log()[None, :, None])

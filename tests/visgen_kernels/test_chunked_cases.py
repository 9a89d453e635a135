"""Chunked attention on drawn calls: its error against that of plain PyTorch in the same dtype.

The rule is the one of the kernels: with `exact` the definition in float64 and `plain` the same
definition in the tensors' own dtype, the output is at most twice as far from `exact` as `plain` is,
a gradient three times, plus twice what adding and subtracting 0.3 costs in that dtype, plus FLOOR.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from torch import Tensor

from visgen_kernels import (
    Axis,
    BlockList,
    Blocks1d,
    Blocks2d,
    Causal,
    Full,
    RelativePosition2d,
    SameGroup,
    Sequence,
    SlidingWindow,
    Windows,
    attention,
)
from visgen_kernels.layouts import Layout
from visgen_kernels.masks import Mask

LENGTHS = [1, 2, 3, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 197, 257]
HEAD_DIMS = [4, 8, 16, 24, 48, 60, 64, 72, 96, 120, 128, 144, 256]
# In a handful of numbers plain float32 is exact by luck; ours then still rounds what lies between
# to 2^-24 of their size, in another order of summation. A score of size s is rounded to s 2^-24,
# and its weight changes by as much: the floor grows with the factor of the scores and with the
# result, as for a relative error of 2e-6 (1e-5 is what float32 may have).
FLOOR = 2e-6
STRIDES = ["contiguous", "expanded", "misaligned", "gaps", "batch inside"]


@dataclass(frozen=True)
class Drawn:
    """A call without its content."""

    layout: Layout
    grid: tuple[int, ...]
    key_grid: tuple[int, ...]
    mask: Mask
    batch: int
    heads: int
    d: int
    d_v: int
    dtype: torch.dtype
    bias: tuple[int, int] | None
    key_bias: bool
    lengths: tuple[int, ...] | None
    dropout: float
    packed: bool
    strides: str
    factor: float  # of q: 0 gives equal scores, 100 one-hot weights


def arranged(x: Tensor, strides: str) -> Tensor:
    """The same numbers, elsewhere in memory."""
    if strides == "expanded":
        return x[:1].expand(x.shape)
    if strides == "misaligned":
        return torch.nn.functional.pad(x.flatten(), (1, 0))[1:].view(x.shape)
    if strides == "gaps":
        return torch.cat([x, x], dim=-1)[..., : x.shape[-1]]
    if strides == "batch inside":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    return x


def leaves_of(drawn: Drawn) -> dict[str, Tensor]:
    """Content in float64 that the dtype holds exactly."""
    generator = torch.Generator().manual_seed(11)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(drawn.dtype).double()

    b, h, d = drawn.batch, drawn.heads, drawn.d
    if drawn.packed:
        found = {"q": draw(b, *drawn.grid, 3, h, d)}
        found["q"][..., 0, :, :] *= drawn.factor
    else:
        found = {
            "q": draw(b, *drawn.grid, h, d) * drawn.factor,
            "k": draw(b, *drawn.key_grid, h, d),
            "v": draw(b, *drawn.key_grid, h, drawn.d_v),
        }
    if drawn.strides == "expanded":
        found = {name: x[:1].expand(x.shape).contiguous() for name, x in found.items()}
    if drawn.bias is not None:
        found["table"] = draw((2 * drawn.bias[0] - 1) * (2 * drawn.bias[1] - 1), h)
    if drawn.key_bias:
        found["key_bias"] = draw(b, *drawn.key_grid, h)
    return found


def run(drawn: Drawn, dtype: torch.dtype, implementation: str) -> dict[str, Tensor]:
    """Output and gradients, as float64."""
    content = leaves_of(drawn)
    leaves, tensors = {}, {}
    for name, x in content.items():
        leaf = x.to(dtype)
        if name in ("q", "k", "v"):
            leaf = arranged(leaf, drawn.strides)
        leaves[name] = tensors[name] = leaf.detach().requires_grad_()
    options: dict[str, Any] = {}
    if drawn.bias is not None:
        options["bias"] = RelativePosition2d(tensors["table"], drawn.bias)
    if drawn.key_bias:
        options["key_bias"] = tensors["key_bias"]
    if drawn.lengths is not None:
        options["key_lengths"] = torch.tensor(drawn.lengths)
    if drawn.dropout:
        options |= {"dropout": drawn.dropout, "seed": torch.tensor([5])}
    out = attention(
        *(tensors[name] for name in ("q", "k", "v") if name in tensors),
        layout=drawn.layout,
        mask=drawn.mask,
        implementation=implementation,
        **options,
    )
    generator = torch.Generator().manual_seed(12)
    grad = torch.randn(out.shape, generator=generator).to(drawn.dtype).to(dtype)
    gradients = torch.autograd.grad(out, list(leaves.values()), grad)
    named = dict(zip(leaves, gradients, strict=True))
    return {"out": out.detach().double()} | {name: x.double() for name, x in named.items()}


def rounding(x: Tensor, dtype: torch.dtype) -> float:
    """Twice what adding and subtracting 0.3 costs."""
    low = x.to(dtype)
    return 2 * float(((low + 0.3 - 0.3).double() - low.double()).abs().max()) if x.numel() else 0.0


def check(drawn: Drawn) -> None:
    exact = run(drawn, torch.float64, "reference")
    plain = run(drawn, drawn.dtype, "reference")
    ours = run(drawn, drawn.dtype, "chunked")
    for name, expected in exact.items():
        assert ours[name].isfinite().all(), name
        error = float((ours[name] - expected).abs().max())
        allowed = (2 if name == "out" else 3) * float((plain[name] - expected).abs().max())
        size = max(1.0, float(expected.abs().max())) * max(1.0, drawn.factor)
        allowed += rounding(expected, drawn.dtype) + FLOOR * size
        assert error <= allowed, f"{name}: {error:.2e} > {allowed:.2e}"


@st.composite
def calls(draw: Any) -> Drawn:
    kind = draw(st.sampled_from(["sequence", "axis", "windows", "blocks2d", "list", "groups"]))
    n = draw(st.sampled_from(LENGTHS))
    packed = draw(st.booleans())
    layout: Layout = Sequence()
    mask: Mask = Full()
    grid = key_grid = (n,)
    if kind in ("sequence", "axis"):
        mask = draw(
            st.sampled_from(
                [
                    Full(),
                    Causal(),
                    Causal(group=draw(st.integers(2, 9))),
                    SlidingWindow(draw(st.sampled_from([0, 3, 9, 300])), draw(st.integers(0, 20))),
                    Blocks1d(draw(st.sampled_from([1, 4, 16, 300]))),
                ]
            )
        )
        n_k = n if packed else draw(st.sampled_from(LENGTHS))
        grid, key_grid = (n,), (n_k,)
        if kind == "axis":
            other = draw(st.integers(1, 3))
            layout = Axis(draw(st.sampled_from([1, 2])))
            grid = (n, other) if layout.dim == 1 else (other, n)
            key_grid = (n_k, other) if layout.dim == 1 else (other, n_k)
    elif kind in ("windows", "groups"):
        window = draw(st.sampled_from([(2, 2), (4, 4), (3, 5), (8, 8), (1, 7)]))
        times = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
        layout = Windows(*window)
        grid = key_grid = (window[0] * times[0], window[1] * times[1])
        if kind == "groups":
            shift = (window[0] // 2, window[1] // 2)
            mask = SameGroup.shifted(grid, window, shift)
    elif kind == "blocks2d":
        height, width = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
        sides = st.tuples(st.integers(1, 5), st.integers(1, 5))
        flange = draw(st.tuples(st.integers(0, 4), st.integers(0, 4)))
        mask = Blocks2d((height, width), draw(sides), flange)
        grid = key_grid = (height * width,)
    else:
        t, side = draw(st.integers(1, 4)), draw(st.sampled_from([4, 8]))
        mask = BlockList.strided(t, side, side, block=8)
        grid = key_grid = (t * side * side,)
    length, n_k = layout.length(grid), layout.length(key_grid)
    batch = draw(st.integers(1, 3))
    heads = draw(st.integers(1, 4 if length * n_k < 10_000 else 1))
    d = draw(st.sampled_from(HEAD_DIMS))
    bias = None
    if length == n_k and draw(st.booleans()):
        size = layout if isinstance(layout, Windows) else None
        factors = [w for w in range(1, length + 1) if length % w == 0 and w <= 16]
        width = size.cols if size is not None else draw(st.sampled_from(factors))
        bias = (length // width, width)
    return Drawn(
        layout=layout,
        grid=grid,
        key_grid=key_grid,
        mask=mask,
        batch=batch,
        heads=heads,
        d=d,
        d_v=d if packed else draw(st.sampled_from([d, d, 4, 60])),
        dtype=draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        bias=bias,
        key_bias=draw(st.booleans()),
        lengths=draw(st.none() | st.tuples(*[st.integers(0, n_k) for _ in range(batch)])),
        dropout=draw(st.sampled_from([0.0, 0.0, 0.17, 0.3])),
        packed=packed,
        strides=draw(st.sampled_from(STRIDES)),
        factor=draw(st.sampled_from([1.0, 1.0, 0.0, 100.0])),
    )


@seed(3)
@settings(max_examples=150, deadline=None, derandomize=True, database=None)
@given(calls())
def test_error_is_within_that_of_plain_pytorch(drawn: Drawn) -> None:
    check(drawn)


def plain_call(**changes: Any) -> Drawn:
    values: dict[str, Any] = {
        "layout": Sequence(),
        "grid": (33,),
        "key_grid": (33,),
        "mask": Full(),
        "batch": 2,
        "heads": 2,
        "d": 16,
        "d_v": 16,
        "dtype": torch.float32,
        "bias": None,
        "key_bias": False,
        "lengths": None,
        "dropout": 0.0,
        "packed": False,
        "strides": "contiguous",
        "factor": 1.0,
    }
    return Drawn(**(values | changes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("n", LENGTHS)
def test_every_length_of_the_list(n: int, dtype: torch.dtype) -> None:
    for n_k in (n, 64):
        check(plain_call(grid=(n,), key_grid=(n_k,), mask=Causal(), dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", HEAD_DIMS)
def test_every_head_dimension_of_the_list(d: int, dtype: torch.dtype) -> None:
    check(plain_call(d=d, d_v=d, dtype=dtype, packed=True))
    check(plain_call(d=d, d_v=60, dtype=dtype, strides="misaligned"))


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": SlidingWindow(100)},  # the window holds everything
        {"mask": SlidingWindow(2, global_tokens=40)},  # more global tokens than keys
        {"mask": Causal(group=50)},
        {"mask": Blocks1d(50)},
        {"lengths": (0, 33)},  # a sample without keys
        {"lengths": (0, 0), "mask": Causal()},
        {"mask": Causal(), "grid": (40,)},  # rows before the first key
        {"factor": 0.0},  # equal scores
        {"factor": 100.0},  # one-hot weights
    ],
    ids=str,
)
def test_edges_of_the_masks(changes: dict[str, Any]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check(plain_call(dtype=dtype, **changes))


@pytest.mark.parametrize("mask", [Full(), Causal()])
def test_more_heads_and_samples_than_a_gpu_grid_has_rows(mask: Mask) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(17_000, 3, 3, 4, 2, generator=generator)  # 68,000 sequences of 3
    out = attention(q, mask=mask)
    some = [0, 1, 8_191, 16_383, 16_384, 16_999]
    expected = attention(q[some].double(), mask=mask, implementation="reference")
    torch.testing.assert_close(out[some].double(), expected, rtol=1e-5, atol=1e-5)
    windows = torch.randn(1, 260, 260, 3, 4, 2, generator=generator)  # 67,600 windows and heads
    out = attention(windows, layout=Windows(2, 2))
    corner = windows[:, -2:, -2:].double()
    expected = attention(corner, layout=Windows(2, 2), implementation="reference")
    torch.testing.assert_close(out[:, -2:, -2:].double(), expected, rtol=1e-5, atol=1e-5)


def test_causal_is_the_block_list_that_lists_everything() -> None:
    columns = torch.tensor([c for row in range(4) for c in range(row + 1)], dtype=torch.int32)
    offsets = torch.tensor([0, 1, 3, 6, 10], dtype=torch.int32)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 64, 3, 2, 24, generator=generator, dtype=torch.float64)
    listed = attention(qkv, mask=BlockList(offsets, columns, block=16))
    torch.testing.assert_close(listed, attention(qkv, mask=Causal()))

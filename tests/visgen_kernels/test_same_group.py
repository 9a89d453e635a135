"""Swin's shifted windows: `SameGroup` on a rolled map."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from visgen_kernels import (
    DENSE_FLOPS,
    Axis,
    RelativePosition2d,
    SameGroup,
    Sequence,
    Windows,
    attention,
    attention_flops,
)
from visgen_kernels.biases import relative_index
from visgen_kernels.layouts import Layout

problem = importlib.import_module("visgen_kernels.attention.problem")

MAP, WINDOW, SHIFT = (8, 12), (4, 4), 2


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def partition(x: Tensor) -> Tensor:
    """(b, y, x, ...) -> (b * windows, 16, ...), as Swin's window_partition."""
    b, height, width, *rest = x.shape
    tiles = x.view(b, height // 4, 4, width // 4, 4, *rest).transpose(2, 3)
    return tiles.reshape(-1, 16, *rest)


def swin(qkv: Tensor, table: Tensor) -> Tensor:
    """Swin's shifted window attention written out: roll, partition, mask by regions, roll back.

    The published code adds -100 where a pair of tokens comes from different regions; here it is
    -inf.
    """
    b, height, width, _, heads, d = qkv.shape
    regions = torch.zeros(1, height, width)
    number = 0
    for rows in (slice(0, -4), slice(-4, -SHIFT), slice(-SHIFT, None)):
        for columns in (slice(0, -4), slice(-4, -SHIFT), slice(-SHIFT, None)):
            regions[:, rows, columns] = number
            number += 1
    cells = partition(regions)  # (windows, 16)
    apart = cells[:, :, None] != cells[:, None]
    rolled = torch.roll(qkv, (-SHIFT, -SHIFT), (1, 2))
    q, k, v = partition(rolled).permute(2, 0, 3, 1, 4)  # (b * windows, heads, 16, d)
    scores = q @ k.mT * d**-0.5 + table[relative_index(WINDOW)].permute(2, 0, 1)
    scores = scores.view(b, -1, heads, 16, 16).masked_fill(apart[None, :, None], -torch.inf)
    out = scores.softmax(-1).view(-1, heads, 16, 16) @ v
    tiles = out.transpose(1, 2).view(b, height // 4, width // 4, 4, 4, heads, d)
    joined = tiles.transpose(2, 3).reshape(b, height, width, heads, d)
    return torch.roll(joined, (SHIFT, SHIFT), (1, 2))


def ours(qkv: Tensor, table: Tensor, implementation: str) -> Tensor:
    out = attention(
        torch.roll(qkv, (-SHIFT, -SHIFT), (1, 2)),
        layout=Windows(*WINDOW),
        mask=SameGroup.shifted(MAP, WINDOW, SHIFT),
        bias=RelativePosition2d(table, WINDOW),
        implementation=implementation,
    )
    return torch.roll(out, (SHIFT, SHIFT), (1, 2))


@pytest.mark.parametrize("implementation", ["chunked", "reference", "sdpa"])
@pytest.mark.parametrize(("batch", "heads"), [(2, 3), (1, 8)])  # heads are the outer loop, or not
def test_rolled_map_under_same_group_is_swin(implementation: str, batch: int, heads: int) -> None:
    qkv = draw(batch, *MAP, 3, heads, 5).requires_grad_()
    table = draw(49, heads, seed=1).requires_grad_()
    grad = draw(batch, *MAP, heads, 5, seed=2)
    twice = implementation != "sdpa"
    results = []
    for out in (swin(qkv, table), ours(qkv, table, implementation)):
        first = torch.autograd.grad(out, [qkv, table], grad, create_graph=twice)
        second: tuple[Tensor, ...] = ()
        if twice:
            second = torch.autograd.grad(first[0].sin().sum(), [qkv, table])
        results.append([x.detach() for x in (out, *first, *second)])
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("shift", [0, 3, (0, 2), (1, 0)])
def test_shifted_groups_are_swins_regions(shift: int | tuple[int, int]) -> None:
    sides = (shift, shift) if isinstance(shift, int) else shift
    ids = partition(SameGroup.shifted(MAP, WINDOW, shift).ids[None])
    # Where a token of the rolled map came from: tokens of a window belong together if they were
    # neighbours, that is if rolling back moves neither or both around the edge.
    y = (torch.arange(MAP[0]) + sides[0]) // MAP[0]
    x = (torch.arange(MAP[1]) + sides[1]) // MAP[1]
    came_around = partition((2 * y[:, None] + x)[None])
    assert torch.equal(
        ids[:, :, None] == ids[:, None], came_around[:, :, None] == came_around[:, None]
    )


def test_ids_are_content_where_models_are_built_on_meta() -> None:
    with torch.device("meta"):
        mask = SameGroup.shifted(MAP, WINDOW, SHIFT)
    assert torch.equal(mask.ids, SameGroup.shifted(MAP, WINDOW, SHIFT).ids)


GRIDS = [
    (Sequence(), (6,)),
    (Axis(1), (3, 4)),
    (Axis(2), (3, 4)),
    (Axis(2), (2, 3, 2)),
    (Windows(2, 3), (4, 6)),
]


def random_ids(*grid: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(-2, 2, grid, generator=generator, dtype=torch.int32)


@pytest.mark.parametrize(("layout", "grid"), GRIDS)
def test_tokens_see_equal_ids_of_their_own_sequence(layout: Layout, grid: tuple[int, ...]) -> None:
    ids = random_ids(*grid)
    # Uniform attention over one-hot values: the weights tell who sees whom.
    tokens = ids.numel()
    v = torch.eye(tokens, dtype=torch.float64).view(1, *grid, 1, tokens).expand(2, *grid, 1, tokens)
    q = torch.zeros(2, *grid, 1, 1, dtype=torch.float64)
    out = attention(q, q, v, layout=layout, mask=SameGroup(ids)).view(2, tokens, tokens)
    number = torch.arange(tokens).view(1, *grid, 1)
    sequence = torch.empty(1, *grid, 1, dtype=torch.int64)
    split = layout.split(number, len(grid))
    sequence.view(-1)[split.flatten()] = torch.arange(len(split)).repeat_interleave(split.shape[1])
    together = sequence.view(-1, 1) == sequence.view(1, -1)
    expected = together & (ids.view(-1, 1) == ids.view(1, -1))
    assert torch.equal(out[0] > 0, expected)
    assert torch.equal(out[1] > 0, expected)
    assert SameGroup(ids).pairs_under(layout) == int(expected.sum())


@pytest.mark.parametrize("scores", [512 * 1024, 100, 10])
@pytest.mark.parametrize("heads", [1, 20])
def test_key_of_another_group_has_no_influence_even_if_it_is_not_a_number(
    heads: int, scores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problem, "CHUNK_SCORES", scores)
    ids = torch.tensor([[0, 0, 1, 0, 0, 1], [2, 2, 2, 2, 2, 2]], dtype=torch.int32)
    call = {"layout": Axis(2), "mask": SameGroup(ids)}
    q = draw(2, 2, 6, heads, 3).requires_grad_()
    kv = draw(2, 2, 6, heads, 3, seed=1)
    seen = torch.ones(2, 6, dtype=torch.bool)
    seen[0, [2, 5]] = False  # these two see the broken one
    results = []
    for value in (0.5, torch.nan):
        kv[:, 0, 5] = value
        out = attention(q, kv, kv, **call)[:, seen]
        (gradient,) = torch.autograd.grad(out.sum(), q)
        results.append((out.detach(), gradient[:, seen]))
    for expected, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_flops_count_the_visible_pairs_of_all_sequences() -> None:
    mask = SameGroup.shifted((8, 8), (4, 4), 2)
    qkv = torch.zeros(2, 8, 8, 3, 2, 4, requires_grad=True)
    layout = Windows(4, 4)
    # Whole windows 1, halves 2, quarters 1: 256 + 2 * 2 * 64 + 4 * 16 pairs.
    assert mask.pairs_under(layout) == 576
    with FlopCounterMode(display=False) as counter:
        attention(qkv, layout=layout, mask=mask).sum().backward()
    expected = [
        attention_flops(qkv.shape, layout=layout, mask=mask, direction=direction)
        for direction in ("forward", "backward")
    ]
    assert expected[0] == 2 * 2 * 2 * 576 * 8
    assert counter.get_total_flops() == sum(expected)
    with FlopCounterMode(display=False, custom_mapping=DENSE_FLOPS) as counter:
        attention(qkv.detach().to("meta"), layout=layout, mask=mask)
    assert counter.get_total_flops() == 2 * 2 * 2 * 4 * 256 * 8


def test_flops_on_meta_are_those_on_the_cpu() -> None:
    mask = SameGroup.shifted((8, 8), (4, 4), 2)
    qkv = torch.zeros(2, 8, 8, 3, 2, 4, device="meta")
    with FlopCounterMode(display=False) as counter:
        attention(qkv, layout=Windows(4, 4), mask=mask)
    assert counter.get_total_flops() == attention_flops(qkv.shape, layout=Windows(4, 4), mask=mask)


def fake_ids() -> SameGroup:
    with FakeTensorMode():
        return SameGroup(torch.zeros(4, dtype=torch.int32))


@pytest.mark.parametrize(
    "make", [lambda: SameGroup(torch.zeros(4, dtype=torch.int32, device="meta")), fake_ids]
)
def test_ids_without_content_cannot_be_counted(make: Callable[[], SameGroup]) -> None:
    with pytest.raises(ValueError, match="no content"):
        make().pairs_under(Sequence())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SameGroup(torch.zeros(4)), r"ids.to\(torch.int32\)"),
        (lambda: SameGroup(torch.zeros(4, dtype=torch.int64)), "int64"),
        (lambda: SameGroup(torch.tensor(1, dtype=torch.int32)), "one id per token"),
        (lambda: SameGroup.shifted((8, 9), (4, 4), 2), "windows divide"),
        (lambda: SameGroup.shifted((8, 8), (4, 4), 4), "smaller than the window"),
        (lambda: SameGroup.shifted((8, 8), (4, 4), -1), "at least 0"),
        (lambda: SameGroup(random_ids(4)).check(4, 5), "as many keys"),
    ],
)
def test_groups_that_cannot_be_are_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("ids", "q", "k", "layout"),
    [
        (random_ids(4, 4), (1, 4, 6, 1, 2), (1, 4, 6, 1, 2), Windows(2, 2)),
        (random_ids(16), (1, 4, 4, 1, 2), (1, 4, 4, 1, 2), Windows(2, 2)),
        (random_ids(4, 6), (1, 4, 6, 1, 2), (1, 6, 4, 1, 2), Windows(2, 2)),
    ],
)
def test_ids_of_another_grid_are_refused(
    ids: Tensor, q: tuple[int, ...], k: tuple[int, ...], layout: Layout
) -> None:
    with pytest.raises(ValueError, match="all three must be equal"):
        attention(*map(torch.zeros, (q, k, k)), layout=layout, mask=SameGroup(ids))


def test_compile_traces_shifted_windows_without_a_break() -> None:
    mask = SameGroup.shifted((4, 4), (2, 2), 1)

    def call(qkv: Tensor) -> Tensor:
        return attention(qkv, layout=Windows(2, 2), mask=mask).sin()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    qkv = draw(2, 4, 4, 3, 2, 4).requires_grad_()
    results = []
    for function in (call, compiled):
        out = function(qkv)
        results.append((out.detach(), *torch.autograd.grad(out.sum(), qkv)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)

"""Masks: their definition, their count, and the tiles that cover them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from visgen_kernels import (
    BlockList,
    Blocks1d,
    Blocks2d,
    Causal,
    Full,
    SameGroup,
    Sequence,
    SlidingWindow,
)
from visgen_kernels.masks import Mask, decode, tensors, visible, visible_pairs
from visgen_kernels.tiles import positions

ANY_LENGTH = [
    Full(),
    Causal(),
    Causal(group=3),
    SlidingWindow(2),
    SlidingWindow(0, global_tokens=3),
    SlidingWindow(3, global_tokens=2),
    SlidingWindow(2, global_tokens=50),
    Blocks1d(4),
    Blocks1d(100),
]
FIXED_LENGTH = [
    (Blocks2d((6, 8), (2, 4), (1, 2)), 48),
    (Blocks2d((6, 9), (4, 4), (2, 3)), 54),
    (Blocks2d((5, 7), (2, 3), (0, 0)), 35),
    (Blocks2d((8, 12), (2, 3), (1, 1)), 96),
    (BlockList.strided(2, 4, 8, block=4), 64),
    (BlockList(torch.tensor([0, 0, 2, 3]), torch.tensor([0, 1, 0]), block=2), 6),
    (SameGroup(torch.tensor([3, -1, 3, 3, 7, -1, 7, 0], dtype=torch.int32)), 8),
]
CASES: list[tuple[Mask, int, int]] = [
    (mask, n_q, n_k)
    for mask in ANY_LENGTH
    for n_q, n_k in [(1, 1), (7, 7), (5, 9), (9, 5), (33, 33), (3, 64)]
] + [(mask, n, n) for mask, n in FIXED_LENGTH]


def dense(mask: Mask, n_q: int, n_k: int) -> Tensor:
    i = torch.arange(n_q)[:, None] + n_k - n_q
    return mask.visible(i, torch.arange(n_k)[None]).expand(n_q, n_k)


@pytest.mark.parametrize(("mask", "n_q", "n_k"), CASES)
def test_pairs_counts_what_is_visible(mask: Mask, n_q: int, n_k: int) -> None:
    assert mask.pairs(n_q, n_k) == int(dense(mask, n_q, n_k).sum())


@pytest.mark.parametrize(("mask", "n_q", "n_k"), CASES)
@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_tiles_cover_every_row_once_and_every_visible_pair(
    mask: Mask, n_q: int, n_k: int, rows: int
) -> None:
    visible = dense(mask, n_q, n_k)
    times = torch.zeros(n_q, dtype=torch.int64)
    covered = torch.zeros(n_q, n_k, dtype=torch.bool)
    for tile in mask.tiles(n_q, n_k, rows):
        i, j = positions(tile.rows), positions(tile.keys)
        times[i] += 1
        covered[i[:, None], j[None]] = True
        assert len(j.unique()) == len(j)
        if tile.whole:
            assert visible[i][:, j].all()
    assert (times == 1).all()
    assert not (visible & ~covered).any()


@pytest.mark.parametrize(("mask", "n_q", "n_k"), CASES)
@pytest.mark.parametrize("rows", [2, 4, 100])
def test_tiles_of_equal_patterns_hide_equal_cells(
    mask: Mask, n_q: int, n_k: int, rows: int
) -> None:
    visible, seen = dense(mask, n_q, n_k), {}
    for tile in mask.tiles(n_q, n_k, rows):
        cells = visible[positions(tile.rows)][:, positions(tile.keys)]
        if tile.pattern is not None:
            assert torch.equal(seen.setdefault(tile.pattern, cells), cells)


@pytest.mark.parametrize(("mask", "n_q", "n_k"), CASES)
def test_mask_survives_its_encoding(mask: Mask, n_q: int, n_k: int) -> None:
    code, (offsets, entries) = mask.encode(), tensors(mask)
    same = decode(code, offsets, entries)
    assert torch.equal(dense(same, n_q, n_k), dense(mask, n_q, n_k))
    assert visible_pairs(code, entries, Sequence(), (n_q,), n_k) == mask.pairs(n_q, n_k)


@pytest.mark.parametrize(("mask", "n_q", "n_k"), CASES)
def test_visible_by_rows_is_the_definition(mask: Mask, n_q: int, n_k: int) -> None:
    rows, keys = torch.arange(0, n_q, 2), torch.arange(n_k - 1, -1, -2)
    seen = visible(mask, Sequence(), rows, keys, n_k - n_q)
    assert torch.equal(seen, dense(mask, n_q, n_k)[rows][:, keys][None])


def test_causal_aligns_the_last_query_with_the_last_key() -> None:
    assert dense(Causal(), 2, 4).int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert dense(Causal(), 4, 2).int().tolist() == [[0, 0], [0, 0], [1, 0], [1, 1]]


def test_causal_over_frames_shows_the_whole_own_frame() -> None:
    assert dense(Causal(group=2), 4, 4).int().sum(1).tolist() == [2, 2, 4, 4]


def test_longformer_window_18_sees_19_tokens_and_the_class_token() -> None:
    # VTN: attention_window 18 is 9 on either side; the token in the middle of a long clip.
    assert int(dense(SlidingWindow(9, global_tokens=1), 251, 251)[120].sum()) == 19 + 1


def test_blocks1d_is_one_causal_block_below_two_blocks() -> None:
    assert torch.equal(dense(Blocks1d(8), 15, 15), dense(Causal(), 15, 15))
    assert int(dense(Blocks1d(8), 24, 24)[23].sum()) == 16


def test_blocks2d_agrees_with_tensor2tensors_regions() -> None:
    # Keys of one block in the order top strip, left strip, centre; top and left fully visible.
    mask, (height, width) = Blocks2d((6, 8), (2, 4), (1, 2)), (6, 8)
    visible = dense(mask, 48, 48).view(height, width, height, width)
    expected = torch.zeros_like(visible)
    for y0 in range(0, height, 2):
        for x0 in range(0, width, 4):
            block = [(y, x) for y in range(y0, y0 + 2) for x in range(x0, x0 + 4)]
            for order, (y, x) in enumerate(block):
                seen = expected[y, x]
                seen[max(0, y0 - 1) : y0, max(0, x0 - 2) : x0 + 4 + 2] = True
                seen[y0 : y0 + 2, max(0, x0 - 2) : x0] = True
                for earlier in block[: order + 1]:
                    seen[earlier] = True
    assert torch.equal(visible, expected)


def test_blocks2d_of_an_inner_block_sees_576_keys_and_a_half_on_average() -> None:
    # Query 8 x 16, flange (8, 16): 384 above, 128 to the left, 64.5 of the own 128.
    mask = Blocks2d((24, 64), (8, 16), (8, 16))
    block = torch.arange(24 * 64).view(24, 64)[8:16, 16:32].reshape(-1)
    seen = mask.visible(block[:, None], torch.arange(24 * 64)[None]).sum(1).double()
    assert float(seen.mean()) == 576.5


@pytest.mark.parametrize(
    ("latent", "listed", "elements"),
    [
        ((2, 16, 16), 78, 0.548),
        ((4, 16, 16), 198, 0.356),
        ((4, 32, 32), 822, 0.093),
        ((8, 32, 32), 2166, None),
    ],
)
def test_strided_lists_videogpts_blocks(
    latent: tuple[int, int, int], listed: int, elements: float | None
) -> None:
    mask = BlockList.strided(*latent)
    tokens = latent[0] * latent[1] * latent[2]
    assert len(mask.columns) == listed
    if elements is not None:
        share = mask.pairs(tokens, tokens) / (tokens * (tokens + 1) / 2)
        assert share == pytest.approx(elements, abs=5e-4)


def test_strided_sees_equal_rows_of_earlier_frames() -> None:
    lists = dict(enumerate(BlockList.strided(4, 32, 32)._lists))
    assert lists[2 * 32 + 7] == (7, 32 + 7, 64 + 3, 64 + 4, 64 + 5, 64 + 6, 64 + 7)


def test_strided_list_is_content_where_models_are_built_on_meta() -> None:
    with torch.device("meta"):
        mask = BlockList.strided(2, 4, 8, block=4)
    assert mask.encode() == BlockList.strided(2, 4, 8, block=4).encode()


def test_full_block_list_is_causal() -> None:
    offsets = torch.tensor([0, 1, 3, 6], dtype=torch.int32)
    columns = torch.tensor([0, 0, 1, 0, 1, 2], dtype=torch.int32)
    mask = BlockList(offsets, columns, block=4)
    assert torch.equal(dense(mask, 12, 12), dense(Causal(), 12, 12))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Causal(group=0), "at least one"),
        (lambda: SlidingWindow(-1), "negative"),
        (lambda: Blocks1d(0), "at least one"),
        (lambda: Blocks2d((4, 4), (0, 2), (1, 1)), "at least 1"),
        (lambda: BlockList.strided(1, 3, 3), "not a multiple"),
        (lambda: BlockList.strided(3, 5, 32, block=96), "does not divide"),
        (lambda: BlockList(torch.tensor([0, 3]), torch.tensor([0, 1])), "offsets"),
        (lambda: BlockList(torch.tensor([0, 2]), torch.tensor([1, 0])), "increasing"),
        (lambda: Blocks2d((4, 4), (2, 2), (1, 1)).check(15, 16), "16 tokens"),
        (lambda: BlockList.strided(2, 4, 4, block=4).check(31, 31), "32"),
        (lambda: decode([5, 4, 1], None, None), "offsets"),
        (lambda: decode([6], None, None), "its ids"),
    ],
)
def test_mask_that_cannot_be_is_refused_with_the_reason(
    make: Callable[[], object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        make()

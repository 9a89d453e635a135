"""Masks as lists of tiles, against the mask's own definition."""

import pytest
import torch

from visgen_kernels.attention.tile_lists import TileLists, block_major, tile_lists
from visgen_kernels.masks import BlockList, Blocks2d

CPU = torch.device("cpu")
MASKS = {
    "blocks": (Blocks2d((8, 12), (4, 4), (2, 3)), 96),
    "blocks beyond the map": (Blocks2d((7, 10), (4, 8), (3, 5)), 70),
    "strided": (BlockList.strided(2, 8, 8, 32), 128),
    "narrow blocks": (BlockList.strided(2, 4, 8, 8), 64),
}


def numbers(mask: Blocks2d | BlockList, n: int) -> torch.Tensor:
    """Raster position of every token in the order the kernels walk them; -1: there is none."""
    return block_major(mask) if isinstance(mask, Blocks2d) else torch.arange(n)


def pairs(lists: TileLists, own: torch.Tensor, other: torch.Tensor, of_keys: bool) -> torch.Tensor:
    """How often each pair of tokens is met by a listed tile, and by a whole one: (2, n_q, n_k)."""
    size, width = len(own) // lists.tiles, 16
    met = torch.zeros(2, len(own), len(other), dtype=torch.int64)
    for tile in range(lists.tiles):
        start, split, stop = lists.starts[tile], lists.splits[tile], lists.starts[tile + 1]
        for place in range(int(start), int(stop)):
            column = int(lists.columns[place])
            block = (
                slice(tile * size, (tile + 1) * size),
                slice(column * width, (column + 1) * width),
            )
            met[0][block] += 1
            met[1][block] += int(place < split)
    return met.transpose(1, 2) if of_keys else met


@pytest.mark.parametrize("of_keys", [False, True], ids=["queries", "keys"])
@pytest.mark.parametrize("name", list(MASKS))
def test_tiles_cover_what_is_visible_once_and_whole_ones_hide_nothing(
    name: str, of_keys: bool
) -> None:
    mask, n = MASKS[name]
    lists = tile_lists(mask, n, n, 16, 16, of_keys=of_keys, device=CPU)
    order = numbers(mask, n)
    order = torch.nn.functional.pad(order, (0, -len(order) % 16), value=-1)
    met, whole = pairs(lists, order, order, of_keys)
    exists = (order >= 0)[:, None] & (order >= 0)
    at = order.clamp(min=0)
    seen = mask.visible(at[:, None], at[None]) & exists
    assert int(met.max()) == 1  # no tile is listed twice
    assert bool(met[seen].bool().all())
    assert bool(seen[whole.bool()].all())
    # A tile without any visible pair is not listed, one without a hidden pair is whole.
    tiles = seen.unflatten(0, (-1, 16)).unflatten(2, (-1, 16)).permute(0, 2, 1, 3).flatten(2)
    listed = met.unflatten(0, (-1, 16)).unflatten(2, (-1, 16)).permute(0, 2, 1, 3).flatten(2)
    assert torch.equal(tiles.any(2), listed.any(2))
    flagged = whole.unflatten(0, (-1, 16)).unflatten(2, (-1, 16)).permute(0, 2, 1, 3).flatten(2)
    assert torch.equal(tiles.all(2), flagged.bool().all(2))


def test_block_major_order_is_a_permutation_of_the_map() -> None:
    order = block_major(Blocks2d((7, 10), (4, 8), (3, 5)))
    assert sorted(order[order >= 0].tolist()) == list(range(70))
    # The first block is rows 0..3, columns 0..7.
    assert order[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 10]
    assert order[32:36].tolist() == [8, 9, -1, -1]


def test_equal_masks_share_their_lists() -> None:
    first, second = (
        tile_lists(BlockList.strided(2, 8, 8), 128, 128, 64, 64, of_keys=False, device=CPU)
        for _ in range(2)
    )
    assert first is second

"""The dropout mask is Philox4x32-10, independent of how the scores are tiled."""

import pytest
import torch

from visgen_kernels.dropout import keep_factors, philox


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        # Known answers published with Random123 (kat_vectors, philox4x32 10).
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            0xFFFFFFFFFFFFFFFF,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_published_words(
    counter: tuple[int, ...], key: int, words: tuple[int, ...]
) -> None:
    state = [torch.tensor([c]) for c in counter]
    assert tuple(int(w) for w in philox(key, *state)) == words


def test_any_tile_of_the_mask_equals_that_part_of_the_whole() -> None:
    whole = keep_factors(
        -7, torch.arange(6), torch.arange(20), torch.arange(30), 0.3, torch.float64
    )
    sequences, rows = torch.tensor([1, 4]), torch.arange(3, 17)
    for keys in (torch.arange(5, 23), torch.tensor([29, 2, 13])):
        tile = keep_factors(-7, sequences, rows, keys, 0.3, torch.float64)
        assert torch.equal(tile, whole[sequences][:, rows][:, :, keys])


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_share_that_is_kept_is_one_minus_p_and_the_mean_is_one(probability: float) -> None:
    factors = keep_factors(
        11, torch.arange(8), torch.arange(100), torch.arange(101), probability, torch.float64
    )
    kept = (factors != 0).double().mean()
    deviation = (probability * (1 - probability) / factors.numel()) ** 0.5
    assert abs(float(kept) - (1 - probability)) < 5 * deviation
    assert set(factors.unique().tolist()) == {0.0, 1 / (1 - probability)}


def test_other_seeds_give_other_masks() -> None:
    masks = [
        keep_factors(s, torch.arange(2), torch.arange(16), torch.arange(16), 0.5, torch.float32)
        for s in (0, 1, 2**32)
    ]
    assert all(not torch.equal(masks[i], masks[j]) for i, j in ((0, 1), (0, 2), (1, 2)))

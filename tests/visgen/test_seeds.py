"""Counter-based random numbers: known answers, moments, and dependence on the seed alone."""

from __future__ import annotations

import math

import pytest
import torch

from visgen.seeds import (
    Draws,
    integers,
    normal,
    permutation,
    philox4x32,
    sample_seeds,
    uniform,
    words,
)

# Known answers of the Random123 distribution for philox4x32, 10 rounds.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_philox_gives_the_known_answers(
    counter: tuple[int, int, int, int], key: tuple[int, int], answer: tuple[int, int, int, int]
) -> None:
    c0, c1, c2, c3 = (torch.tensor([c]) for c in counter)
    k0, k1 = (torch.tensor([k]) for k in key)
    assert tuple(int(w) for w in philox4x32((c0, c1, c2, c3), (k0, k1))) == answer


@pytest.mark.parametrize("draw", [normal, uniform])
def test_a_draw_depends_on_its_seed_alone(draw) -> None:
    seeds = sample_seeds(3, torch.arange(7))
    whole = draw(seeds, "latent", (5, 3))
    for place in range(7):
        assert torch.equal(draw(seeds[place : place + 1], "latent", (5, 3))[0], whole[place])


def test_a_longer_draw_starts_with_the_shorter_one() -> None:
    seeds = sample_seeds(0, torch.arange(2))
    assert torch.equal(words(seeds, "a", 9)[:, :5], words(seeds, "a", 5))


def test_moments_are_those_of_the_distributions() -> None:
    seeds = sample_seeds(0, torch.arange(500))
    n = 500 * 400
    gaussian, flat = normal(seeds, "g", (400,)).double(), uniform(seeds, "u", (400,)).double()
    assert abs(gaussian.mean()) < 4 / math.sqrt(n)
    assert abs(gaussian.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs((gaussian**4).mean() - 3) < 4 * math.sqrt(96 / n)
    assert abs(flat.mean() - 0.5) < 4 * math.sqrt(1 / 12 / n)
    assert flat.min() >= 0
    assert flat.max() < 1
    shifted = (gaussian[:, 1:] * gaussian[:, :-1]).mean()
    assert abs(shifted) < 4 / math.sqrt(n)


def test_names_steps_and_seeds_give_independent_draws() -> None:
    seeds = sample_seeds(0, torch.arange(4))
    draws = Draws(seeds)
    others = [
        draws.normal("b", (1000,)),
        draws.fork("x").normal("a", (1000,)),
        Draws(seeds, step=1).normal("a", (1000,)),
        Draws(sample_seeds(1, torch.arange(4))).normal("a", (1000,)),
    ]
    first = draws.normal("a", (1000,))
    for other in others:
        assert abs((first * other).mean()) < 4 / math.sqrt(4000)


def test_sample_seeds_are_distinct_and_go_by_place() -> None:
    seeds = sample_seeds(5, torch.arange(100_000))
    assert len(seeds.unique()) == 100_000
    assert torch.equal(sample_seeds(5, torch.tensor([99_999, 7])), seeds[[99_999, 7]])


def test_integers_cover_their_range_evenly() -> None:
    counts = integers(sample_seeds(0, torch.arange(10)), "i", -2, 3, (5000,)).flatten()
    values, times = counts.unique(return_counts=True)
    assert values.tolist() == [-2, -1, 0, 1, 2]
    assert (times - 10_000).abs().max() < 4 * math.sqrt(50_000 * 0.2 * 0.8)


def test_a_permutation_has_every_index_once() -> None:
    order = permutation(3, "epoch-0", 1437)
    assert torch.equal(order.sort().values, torch.arange(1437))
    assert not torch.equal(order, permutation(3, "epoch-1", 1437))


def test_seeds_of_another_type_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be int64 of shape \(n,\)"):
        normal(torch.zeros(3), "a", (1,))

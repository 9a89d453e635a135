import numpy as np
import pytest
import torch
import torch.nn.functional as F

from visgen.data import open_data
from visgen_bench.metrics.copies import CopyReference, nearest
from visgen_bench.metrics.errors import StateError, TooFewSamples


def noise(n: int, side: int = 8, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def test_nearest_distances_are_exact() -> None:
    x, y = noise(30).flatten(1).numpy(), noise(50, seed=1).flatten(1).numpy()
    y[7] = x[3]
    squared = np.square(x[:, None].astype(np.int64) - y[None]).sum(axis=2)
    found = nearest(x, y)
    assert (found == np.sqrt(squared.min(axis=1))).all()
    assert found[3] == 0.0


def test_training_images_are_copies_and_other_noise_is_not() -> None:
    train = noise(40)
    reference = CopyReference.fit(train.split(7), [noise(30, seed=1)])
    assert reference.copies(train[:10]) == 10
    assert reference.copies(noise(100, seed=2)) <= 5
    nearly = train[:10].clone()
    nearly[:, 0, 0, 0] ^= 1
    assert reference.copies(nearly) == 10


def test_one_real_test_digit_in_a_hundred_counts_as_a_copy() -> None:
    data = open_data("digits:8")
    train, test = (data.images(data.split(name)) for name in ("train", "test"))
    reference = CopyReference.fit([train], [test])
    assert reference.copies(test) == 4  # of 360: below the 1st percentile of themselves


def test_samples_of_another_size_are_compared_at_the_sets_size() -> None:
    train = noise(40)
    reference = CopyReference.fit([train], [noise(30, seed=1)])
    big = F.interpolate(train.float(), scale_factor=2, mode="nearest").to(torch.uint8)
    assert reference.copies(big) == 40


def test_images_of_several_sizes_cannot_be_compared() -> None:
    with pytest.raises(StateError, match="one size"):
        CopyReference.fit([noise(2), noise(2, side=9)], [noise(2)])
    with pytest.raises(StateError, match="none"):
        CopyReference.fit([], [noise(2)])
    with pytest.raises(TooFewSamples):
        CopyReference.fit([noise(2)], [])


def test_a_stored_reference_is_the_same() -> None:
    reference = CopyReference.fit([noise(40)], [noise(30, seed=1)])
    again = CopyReference.from_arrays(reference.arrays())
    assert again.threshold == reference.threshold
    assert (again.train == reference.train).all()
    assert again.image_size == (8, 8)

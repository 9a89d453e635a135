import numpy as np
import pytest
import torch

from visgen.data import DataError, open_data
from visgen.data.digits import open_digits, read_values, to_pixels, upsample

# The first scan of the UCI file, a zero, typed from scikit-learn's documentation of load_digits.
FIRST = [
    [0, 0, 5, 13, 9, 1, 0, 0],
    [0, 0, 13, 15, 10, 15, 5, 0],
    [0, 3, 15, 2, 0, 11, 8, 0],
    [0, 4, 12, 0, 0, 8, 8, 0],
    [0, 5, 8, 0, 0, 9, 8, 0],
    [0, 4, 11, 0, 1, 12, 7, 0],
    [0, 2, 14, 5, 10, 12, 0, 0],
    [0, 0, 6, 13, 10, 0, 0, 0],
]


def test_first_digit_is_the_documented_zero_in_pixels() -> None:
    data = open_data("digits:8")
    image = data.images(torch.tensor([0]))[0]
    expected = torch.tensor([[int(255 * v / 16 + 0.5) for v in row] for row in FIRST])
    assert image.dtype == torch.uint8
    assert torch.equal(image.long(), expected.expand(3, 8, 8))
    labels = data.labels(torch.tensor([0, 1, 2]))
    assert labels is not None
    assert labels.tolist() == [0, 1, 2]


def test_values_and_classes_equal_scikit_learns_loader() -> None:
    from sklearn.datasets import load_digits

    table, classes = load_digits(return_X_y=True)
    values, targets = read_values()
    assert np.array_equal(values.reshape(1797, 64).numpy(), table)
    assert np.array_equal(targets.numpy(), classes)


def test_class_counts_are_those_of_the_uci_test_file() -> None:
    data = open_data("digits:8")
    labels = data.labels(torch.arange(len(data)))
    assert labels is not None
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_split_is_the_seeded_permutation_and_disjoint() -> None:
    data = open_data("digits:16")
    train, test = data.split("train"), data.split("test")
    order = np.random.RandomState(0).permutation(1797)
    assert train.tolist() == order[:1437].tolist()
    assert test.tolist() == order[1437:].tolist()
    assert len(set(train.tolist()) | set(test.tolist())) == 1797


def test_seventeen_levels_occur_at_eight_pixels_and_are_declared() -> None:
    data = open_data("digits:8")
    values = data.images(torch.arange(1797)).unique()
    assert (data.channels, data.levels, data.size) == (1, 17, (8, 8))
    assert values.tolist() == [(255 * v + 8) // 16 for v in range(17)]


def test_two_by_two_upsampling_has_its_closed_form() -> None:
    # Half-pixel bilinear by 2 with edge clamp: weights 1, 3/4, 1/4, 0 of the first column.
    a, b, c, d = 0.0, 16.0, 4.0, 8.0
    weight = torch.tensor([1.0, 0.75, 0.25, 0.0], dtype=torch.float64)
    rows, columns = weight[:, None], weight[None, :]
    expected = (
        rows * (columns * a + (1 - columns) * b) + (1 - rows) * (columns * c + (1 - columns) * d)
    ) / 16
    values = torch.tensor([[[[a, b], [c, d]]]], dtype=torch.float64)
    assert torch.equal(upsample(values, 4)[0, 0], expected)


def test_halves_round_up() -> None:
    x = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert to_pixels(x).tolist() == [0, 128, 255]


@pytest.mark.parametrize("side", [16, 32])
def test_upsampled_digits_are_exact_in_rational_arithmetic(side: int) -> None:
    factor = side // 8
    values = read_values()[0][:50, 0].long()
    # Position of output i in input units, as a whole number of 1/(2 factor): 2i + 1 - factor.
    place = (2 * torch.arange(side) + 1 - factor).clamp(0, 2 * factor * 7)
    low, part = place // (2 * factor), place % (2 * factor)
    high = (low + 1).clamp(max=7)
    across = values[:, :, low] * (2 * factor - part) + values[:, :, high] * part
    both = across[:, low] * (2 * factor - part)[:, None] + across[:, high] * part[:, None]
    unit = 16 * (2 * factor) ** 2
    expected = (2 * 255 * both + unit) // (2 * unit)
    images = open_digits(side).images(torch.arange(50))
    assert torch.equal(images[:, 0].long(), expected)
    assert torch.equal(images[:, 0], images[:, 2])


def test_fingerprints_name_the_content_and_differ_by_size() -> None:
    assert open_data("digits:8").fingerprint == open_data("digits:8").fingerprint
    assert len({open_data(f"digits:{side}").fingerprint for side in (8, 16, 32)}) == 3


def test_indices_out_of_range_are_named() -> None:
    with pytest.raises(DataError, match=r"0\.\.1796, but indices 5\.\.1797"):
        open_data("digits:8").images(torch.tensor([5, 1797]))


def test_other_sides_and_splits_say_what_exists() -> None:
    with pytest.raises(DataError, match="sides are 8, 16 and 32"):
        open_digits(9)
    with pytest.raises(DataError, match="it has test, train"):
        open_data("digits:8").split("validation")

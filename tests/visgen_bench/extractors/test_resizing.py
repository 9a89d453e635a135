import numpy as np
import pytest
import torch

from visgen_bench.extractors.resizing import tf1_bilinear


@pytest.mark.parametrize(("h", "w"), [(8, 5), (64, 64), (512, 300), (224, 224), (1, 1)])
def test_rows_are_looked_up_without_half_pixel_centres(h: int, w: int) -> None:
    image = torch.rand(1, 1, h, w, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = tf1_bilinear(image, (224, 224))[0, 0].numpy()
    expected = image[0, 0].numpy()
    for axis, size in ((0, h), (1, w)):
        at = np.arange(224, dtype=np.float32) * np.float32(size / 224)
        low = at.astype(int)
        part = np.expand_dims(at - low, 1 - axis)
        high = np.minimum(low + 1, size - 1)
        expected = expected.take(low, axis) * (1 - part) + expected.take(high, axis) * part
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_it_is_torch_fidelitys() -> None:
    from torch_fidelity.interpolate_compat_tensorflow import (
        interpolate_bilinear_2d_like_tensorflow1x as resize,
    )

    for side in (8, 64, 300):
        image = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(side)) * 255
        theirs = resize(image, size=(224, 224), align_corners=False)
        torch.testing.assert_close(tf1_bilinear(image, (224, 224)), theirs, rtol=0, atol=1e-4)


def test_the_same_size_changes_nothing() -> None:
    image = torch.rand(1, 3, 7, 9)
    assert torch.equal(tf1_bilinear(image, (7, 9)), image)

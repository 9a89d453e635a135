from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from visgen_bench.extractors.opening import Extractors
from visgen_bench.metrics.errors import ImageRangeError, MetricError, ProtocolError, StateError
from visgen_bench.metrics.frechet import frechet_distance_of_features
from visgen_bench.metrics.real_samples import RealSamples
from visgen_bench.metrics.reference import ReferenceStatistics, together

METRICS = ("fd_lite0", "kid_lite0", "precision", "copy_share")
LITE0 = ("efficientnet-lite0-64", "pooled")


def noise(n: int, side: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


class Counted:
    """Real images that know how often they were read."""

    def __init__(self, images: Tensor, split: str = "test") -> None:
        self.reads = 0
        self.pixels = images
        self.images = RealSamples(
            batches=self.read, n=len(images), fingerprint="f" * 64, split=split, image_size=(8, 8)
        )

    def read(self) -> Iterator[Tensor]:
        self.reads += 1
        yield from self.pixels.split(16)


@pytest.fixture(scope="module")
def extractors() -> Extractors:
    return Extractors()


def test_statistics_are_computed_once_and_then_read(tmp_path: Path, extractors: Extractors) -> None:
    test, train = Counted(noise(40)), Counted(noise(50, seed=1), "train")
    found = [
        ReferenceStatistics.prepare(
            METRICS, test.images, train=train.images, extractors=extractors, cache=tmp_path
        )
        for _ in range(2)
    ]
    assert (test.reads, train.reads) == (2, 1)  # features and copies, once each
    first, second = (each.layers[LITE0] for each in found)
    assert first.frechet is not None
    assert second.frechet is not None
    assert (first.frechet.factor == second.frechet.factor).all()
    assert first.features is not None
    assert second.features is not None
    assert (first.features == second.features).all()
    assert (first.radii[5] == second.radii[5]).all()
    assert found[0].copies is not None
    assert found[1].copies is not None
    assert found[0].copies.threshold == found[1].copies.threshold
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_the_key_changes_with_whatever_changes_the_numbers(extractors: Extractors) -> None:
    base = RealSamples.of(noise(8), "a" * 64, "test")
    others = [
        base,
        replace(base, fingerprint="b" * 64),
        replace(base, split="train"),
        replace(base, image_size=(16, 16)),
        replace(base, selection="first 8"),
        RealSamples.of(noise(9), "a" * 64, "test"),
    ]
    keys = [
        ReferenceStatistics.prepare(["fd_lite0"], each, extractors=extractors).layers[LITE0].key
        for each in others
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("damage", [b"", b"half of a fi"])
def test_a_damaged_file_is_computed_again(
    tmp_path: Path, extractors: Extractors, damage: bytes
) -> None:
    test, train = Counted(noise(40)), Counted(noise(50, seed=1), "train")

    def prepare() -> ReferenceStatistics:
        return ReferenceStatistics.prepare(
            METRICS, test.images, train=train.images, extractors=extractors, cache=tmp_path
        )

    before = prepare()
    for path in tmp_path.iterdir():
        path.write_bytes(damage)
    after = prepare()
    first, second = before.layers[LITE0].frechet, after.layers[LITE0].frechet
    assert first is not None
    assert second is not None
    np.testing.assert_allclose(first.mean, second.mean, rtol=1e-6)
    assert all(path.stat().st_size > 100 for path in tmp_path.iterdir())


def test_images_one_by_one_and_of_many_sizes_are_taken(extractors: Extractors) -> None:
    images = [noise(1, side, seed=side) for side in (8, 8, 9, 30, 9)]
    stream = RealSamples(batches=lambda: images, n=5, fingerprint="c" * 64, split="all")
    found = ReferenceStatistics.prepare(["fd_lite0", "kid_lite0"], stream, extractors=extractors)
    features = found.layers[LITE0].features
    assert features is not None
    alone = torch.cat([extractors.open(LITE0[0]).layers(i, ("pooled",))["pooled"] for i in images])
    np.testing.assert_allclose(features, alone.numpy(), rtol=1e-4, atol=2e-4)


def test_batches_of_equal_size_are_joined_in_order() -> None:
    sides = [8, 8, 9, 8, 8, 8]
    images = [noise(1, side, seed=i) for i, side in enumerate(sides)]
    joined = list(together(images, limit=2))
    assert [len(batch) for batch in joined] == [2, 1, 2, 1]
    assert torch.equal(joined[2], torch.cat(images[3:5]))
    assert list(together([])) == []


def test_more_images_than_features_take_the_moments(extractors: Extractors) -> None:
    class Coarse:
        name, sha256, widths = "efficientnet-lite0-64", "0" * 64, {"pooled": 3}

        def layers(self, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
            return {"pooled": images.float().mean(dim=(2, 3))}

    opened = Extractors()
    opened._opened[LITE0[0]] = Coarse()
    images = noise(300)
    found = ReferenceStatistics.prepare(
        ["fd_lite0"], RealSamples.of(images, "d" * 64, "test"), extractors=opened
    ).layers[LITE0]
    assert found.features is None
    assert found.frechet is not None
    other = noise(200, seed=5).float().mean(dim=(2, 3))
    expected = frechet_distance_of_features(images.float().mean(dim=(2, 3)), other)
    assert found.frechet.to_features(other).value == pytest.approx(expected.value, rel=1e-9)


def test_a_wrong_number_of_images_is_an_error(extractors: Extractors) -> None:
    stream = replace(RealSamples.of(noise(8), "a" * 64, "test"), n=7)
    with pytest.raises((StateError, IndexError), match=r"7"):
        ReferenceStatistics.prepare(["fd_lite0"], stream, extractors=extractors)
    stream = replace(stream, n=9)
    with pytest.raises(StateError, match="hold 9 images and gave 8"):
        ReferenceStatistics.prepare(["fd_lite0"], stream, extractors=extractors)


def test_one_real_image_is_too_few(extractors: Extractors) -> None:
    with pytest.raises(MetricError, match="a reference needs 2"):
        ReferenceStatistics.prepare(
            ["fd_lite0"], RealSamples.of(noise(1), "a" * 64, "test"), extractors=extractors
        )


def test_float_images_are_refused(extractors: Extractors) -> None:
    stream = RealSamples.of(noise(4).float() / 255, "a" * 64, "test")
    with pytest.raises(ImageRangeError):
        ReferenceStatistics.prepare(["fd_lite0"], stream, extractors=extractors)


def test_copies_need_training_images(extractors: Extractors) -> None:
    stream = RealSamples.of(noise(4), "a" * 64, "test")
    with pytest.raises(MetricError, match="train="):
        ReferenceStatistics.prepare(["copy_share"], stream, extractors=extractors)


def test_a_reserved_name_refuses_features_of_another_network(extractors: Extractors) -> None:
    pretender = Extractors()
    pretender._opened["inception-2015"] = extractors.open(LITE0[0])
    with pytest.raises(ProtocolError, match="fid is reserved"):
        ReferenceStatistics.prepare(
            ["fid"], RealSamples.of(noise(4), "a" * 64, "test"), extractors=pretender
        )


def test_an_unknown_metric_is_refused(extractors: Extractors) -> None:
    with pytest.raises(ProtocolError, match="nearest"):
        ReferenceStatistics.prepare(
            ["fd_lite"], RealSamples.of(noise(4), "a" * 64, "test"), extractors=extractors
        )


def test_a_metric_of_another_medium_is_refused(extractors: Extractors) -> None:
    real = RealSamples.of(noise(4), "a" * 64, "test")
    with pytest.raises(ProtocolError, match="looks at clips, and these are images"):
        ReferenceStatistics.prepare(["fvd_lite0_frames"], real, extractors=extractors)
    clips = RealSamples.of(noise(4)[:, None], "a" * 64, "test")
    with pytest.raises(ProtocolError, match=r"looks at frames, and these are clips.*as_frames"):
        ReferenceStatistics.prepare(["fd_lite0_frames"], clips, extractors=extractors)

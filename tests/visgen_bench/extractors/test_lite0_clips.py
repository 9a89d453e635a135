import pytest
import torch
from torch import Tensor

from visgen_bench.extractors import lite0
from visgen_bench.extractors.lite0_clips import LAYER, Lite0Clips
from visgen_bench.metrics.errors import ClipShapeError


@pytest.fixture(scope="module")
def extractor() -> Lite0Clips:
    return Lite0Clips()


def noise(n: int, frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, frames, 3, 8, 8), dtype=torch.uint8, generator=generator)


def test_a_row_is_the_definition_by_hand(extractor: Lite0Clips) -> None:
    clips = noise(2, 4)
    found = extractor.layers(clips)[LAYER]
    network = lite0.Lite0()
    for clip, row in zip(clips, found, strict=True):
        f = network.extract(clip).double()  # (4, 1280)
        mean = (f[0] + f[1] + f[2] + f[3]) / 4
        change = ((f[1] - f[0]).abs() + (f[2] - f[1]).abs() + (f[3] - f[2]).abs()) / 3
        torch.testing.assert_close(row.double(), torch.cat((mean, change)), rtol=1e-4, atol=1e-4)
    assert found.shape == (2, 2560)


def test_a_still_clip_has_no_change_and_reversed_time_gives_the_same(extractor: Lite0Clips) -> None:
    still = noise(1, 1).expand(1, 5, 3, 8, 8)
    assert float(extractor.layers(still)[LAYER][0, 1280:].max()) < 1e-4
    clips = noise(1, 5)
    forth, back = (extractor.layers(each)[LAYER] for each in (clips, clips.flip(1)))
    torch.testing.assert_close(forth, back, rtol=1e-4, atol=1e-4)


def test_one_frame_is_too_few_and_no_clips_give_no_rows(extractor: Lite0Clips) -> None:
    with pytest.raises(ClipShapeError, match="fd_lite0_frames"):
        extractor.layers(noise(1, 1))
    assert extractor.layers(noise(0, 3))[LAYER].shape == (0, 2560)
    with pytest.raises(ClipShapeError, match=r"clips\[None\]"):
        extractor.layers(noise(1, 3)[0])

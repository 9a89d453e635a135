"""The judges against the facts that the clips were drawn from."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visgen.data.grid_agent import ACTIONS, AGENT_COLOUR, BACKGROUND, open_grid_agent
from visgen.data.moving_shapes import COLOURS, MOTIONS, SHAPES, SIZES, open_moving_shapes
from visgen.data.videos import Clip
from visgen_bench.metrics.motion_judge import (
    action_accuracy,
    attributes_obeyed,
    caption_obeyed,
    class_obeyed,
    read_captions,
    read_shapes,
)


def shapes(side: int, split: str, count: int) -> tuple[Tensor, list[str], Tensor]:
    data = open_moving_shapes(Clip(frames=16, size=(side, side)))
    indices = data.splits[split][:count]
    captions, labels = data.captions(indices), data.labels(indices)
    assert captions is not None
    assert labels is not None
    return data.videos(indices), captions, labels


def agents(side: int, count: int) -> tuple[Tensor, Tensor]:
    data = open_grid_agent(Clip(frames=16, size=(side, side)))
    indices = data.splits["test"][:count]
    actions = data.actions(indices)
    assert actions is not None
    return data.videos(indices), actions


def blurred(clips: Tensor) -> Tensor:
    padded = F.pad(clips.flatten(0, 1).float(), (1, 1, 1, 1), mode="replicate")
    return (F.avg_pool2d(padded, 3, 1) + 0.5).floor().to(torch.uint8).view_as(clips)


def noisy(clips: Tensor) -> Tensor:
    noise = torch.randn(clips.shape, generator=torch.Generator().manual_seed(0))
    return (clips + 8 * noise).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.parametrize("split", ["test", "test_comp"])
@pytest.mark.parametrize("side", [32, 64])
def test_what_real_clips_show_is_read_right_also_blurred_and_in_noise(
    side: int, split: str
) -> None:
    # Measured over 1,000 clips: 99.8 % of captions at 32 pixels, the rest triangles whose radius
    # is within 0.5 % of the border between small and large; every class.
    clips, captions, labels = shapes(side, split, 300)
    assert class_obeyed(clips, labels).float().mean() == 1
    assert caption_obeyed(clips, captions).float().mean() >= 0.99
    for worse in (blurred(clips[:100]), noisy(clips[:100])):
        assert class_obeyed(worse, labels[:100]).float().mean() >= 0.98
        assert caption_obeyed(worse, captions[:100]).float().mean() >= 0.98


def test_other_words_are_not_obeyed() -> None:
    clips, captions, labels = shapes(32, "test", 64)
    assert not class_obeyed(clips, (labels + 1) % 18).any()
    repainted = ["a " + " ".join(["large", "cyan", *c.split()[3:]]) for c in captions]
    right = attributes_obeyed(clips, repainted)
    assert right["shape"].all()
    assert right["motion"].all()
    is_cyan = torch.tensor(["cyan" in c for c in captions])
    assert torch.equal(right["colour"], is_cyan)
    assert torch.equal(right["caption"], right["colour"] & right["size"])


def test_time_backwards_turns_every_motion_round_and_keeps_the_rest() -> None:
    clips, captions, _ = shapes(32, "test", 100)
    forth, back, said = read_shapes(clips), read_shapes(clips.flip(1)), read_captions(captions)
    opposite = torch.tensor([1, 0, 3, 2, 5, 4])
    assert torch.equal(back.motion, opposite[forth.motion])
    assert torch.equal(forth.motion, said.motion)
    assert torch.equal(back.shape, forth.shape)
    assert torch.equal(back.colour, forth.colour)


def test_nothing_is_seen_in_grey_and_no_motion_in_a_still() -> None:
    grey = read_shapes(torch.full((2, 8, 3, 32, 32), 40, dtype=torch.uint8))
    for numbers in (grey.colour, grey.size, grey.shape, grey.motion):
        assert numbers.tolist() == [-1, -1]
    clips, captions, _ = shapes(32, "test", 16)
    still = clips[:, :1].expand(-1, 16, -1, -1, -1)
    right = attributes_obeyed(still, captions)
    assert right["shape"].all()
    assert not right["motion"].any()
    assert (read_shapes(still).motion == -1).all()


def test_a_clip_is_read_the_same_alone_and_no_clips_give_nothing() -> None:
    clips, _, labels = shapes(32, "test", 40)
    together = read_shapes(clips)
    alone = read_shapes(clips[37:38])
    assert alone.motion[0] == together.motion[37]
    assert alone.shape[0] == together.shape[37]
    assert class_obeyed(clips[:0], labels[:0]).shape == (0,)


def test_sentences_are_read_as_numbers() -> None:
    said = read_captions(
        ["a small red circle moving left", "a large cyan square circling clockwise"]
    )
    assert (SIZES[0], SHAPES[1], MOTIONS[4], list(COLOURS)[5]) == (
        "small",
        "square",
        "clockwise",
        "cyan",
    )
    got = [said.colour, said.size, said.shape, said.motion]
    assert [x.tolist() for x in got] == [[0, 5], [0, 1], [0, 1], [0, 4]]
    for wrong in (
        "a red circle",
        "a small red circle circling left",
        "a small pink circle moving up",
    ):
        with pytest.raises(ValueError, match="is no sentence of the moving shapes"):
            read_captions([wrong])


@pytest.mark.parametrize("side", [32, 64])
def test_the_agent_of_real_clips_obeys_in_every_step(side: int) -> None:
    clips, actions = agents(side, 100)
    for some in (clips, blurred(clips), noisy(clips)):
        right = action_accuracy(some, actions)
        assert (right.dtype, right.shape) == (torch.float32, (100, 15))
        assert not right.isnan().any()
        assert right.mean() >= 0.98
    assert action_accuracy(clips, actions.flip(0)).mean() < 0.4


def test_a_wall_is_obeyed_by_staying_and_an_agent_that_is_not_there_is_nobody() -> None:
    clip = torch.tensor(BACKGROUND, dtype=torch.uint8)[:, None, None].repeat(1, 1, 5, 1, 32, 32)
    clip = clip.view(1, 3, 5, 32, 32).transpose(1, 2).contiguous()
    clip[0, :4, :, :4, :4] = torch.tensor(AGENT_COLOUR, dtype=torch.uint8)[:, None, None]
    commands = [ACTIONS.index(name) for name in ("left", "up", "right", "stay")]
    actions = F.one_hot(torch.tensor(commands), 5).flatten()[None].float()
    right = action_accuracy(clip, actions)[0]
    assert right[:3].tolist() == [1, 1, 0]
    assert right[3].isnan()


def test_clips_labels_and_actions_of_other_kinds_are_refused() -> None:
    clips, captions, labels = shapes(32, "test", 2)
    with pytest.raises(ValueError, match="read uint8"):
        read_shapes(clips.float())
    with pytest.raises(ValueError, match="4 or more"):
        read_shapes(clips[:, :3])
    with pytest.raises(ValueError, match="0 to 17"):
        class_obeyed(clips, labels + 18)
    with pytest.raises(ValueError, match="2 clips want"):
        class_obeyed(clips, labels[:1])
    with pytest.raises(ValueError, match="1 sentences"):
        caption_obeyed(clips, captions[:1])
    with pytest.raises(ValueError, match="15 commands"):
        action_accuracy(clips, torch.zeros(2, 70))

"""The grid agent: it does what the actions say, in every frame."""

import numpy as np
import pytest
import torch
from torch import Tensor

from visgen.data.dataset import DataError
from visgen.data.drawn import Flight
from visgen.data.grid_agent import (
    ACTIONS,
    AGENT_COLOUR,
    BACKGROUND,
    BALL_COLOUR,
    MOVES,
    PLACES,
    GridAgent,
    draw_course,
    obey,
    open_grid_agent,
    step_side,
    thing_side,
)
from visgen.data.videos import Clip, VideoData


def opened(side: int = 32, frames: int = 16, seed: int = 0) -> VideoData:
    return open_grid_agent(Clip(frames=frames, size=(side, side)), seed=seed)


def source_of(data: VideoData) -> GridAgent:
    assert isinstance(data.source, GridAgent)
    return data.source


def actions_of(data: VideoData, indices: Tensor) -> Tensor:
    actions = data.actions(indices)
    assert actions is not None
    return actions


def agent_pixels(videos: Tensor) -> Tensor:
    """Where the colour is nearer to the agent's than half way to any other: (n, t, h, w)."""
    colour = torch.tensor(AGENT_COLOUR)[:, None, None]
    return (videos.long() - colour).abs().sum(dim=2) < 100


@pytest.mark.parametrize("side", [16, 64])
def test_the_agent_moves_as_commanded_in_every_frame(side: int) -> None:
    data = opened(side)
    indices = torch.cat((data.split("train")[:100], data.split("test")[:100]))
    found = agent_pixels(data.videos(indices)).double()
    assert (found.sum(dim=(2, 3)) == (side // 8) ** 2).all()  # never hidden
    places = torch.arange(side).double()
    rows, columns = found.sum(dim=3) @ places, found.sum(dim=2) @ places
    centre = torch.stack((rows, columns), dim=-1) / (side // 8) ** 2  # (n, t, 2)
    commands = actions_of(data, indices).view(200, 15, 5).argmax(dim=-1)
    moves = torch.tensor(MOVES)[commands] * (side // 16)
    half = (side // 8 - 1) / 2
    expected = (centre[:, :-1] + moves).clamp(half, side - 1 - half)  # walls stop it
    assert torch.equal(centre[:, 1:], expected)
    assert (centre[:, 1:] == centre[:, :-1] + moves).double().mean() < 1  # and some are met


def test_actions_are_one_hots_one_after_the_other() -> None:
    data = opened()
    indices = torch.arange(500)
    actions = actions_of(data, indices)
    assert actions.shape == (500, 75)
    assert actions.dtype == torch.float32
    steps = actions.view(500, 15, 5)
    assert torch.equal(steps.sum(dim=-1), torch.ones(500, 15))
    assert set(actions.unique().tolist()) == {0.0, 1.0}
    told = [course.actions for course in source_of(data).courses(indices)]
    assert steps.argmax(dim=-1).tolist() == [list(numbers) for numbers in told]
    assert ACTIONS == ("stay", "left", "right", "up", "down")


def test_actions_repeat_at_their_rate_and_are_drawn_evenly() -> None:
    numbers = actions_of(opened(), torch.arange(1000)).view(1000, 15, 5).argmax(dim=-1)
    repeated = (numbers[:, 1:] == numbers[:, :-1]).double().mean().item()
    # 0.7, and a fifth of the rest; four standard errors of 14,000 draws.
    assert repeated == pytest.approx(0.76, abs=4 * (0.76 * 0.24 / 14_000) ** 0.5)
    first = numbers[:, 0].bincount(minlength=5) / 1000
    assert torch.allclose(first, torch.full((5,), 0.2), atol=4 * (0.2 * 0.8 / 1000) ** 0.5)


def test_walls_stop_the_agent() -> None:
    last = PLACES - 1
    assert [obey((0, 0), action) for action in range(5)] == [(0, 0), (0, 0), (0, 1), (0, 0), (1, 0)]
    assert [obey((last, last), a) for a in (2, 4, 1)] == [(last,) * 2, (last,) * 2, (last, 13)]
    assert last * step_side(64) + thing_side(64) == 64


def test_the_ball_is_whole_wherever_the_agent_does_not_cover_it() -> None:
    data = opened(64)
    indices = torch.arange(50)
    courses = source_of(data).courses(indices)
    videos = data.videos(indices)
    background = torch.tensor(BACKGROUND)[:, None, None]
    painted = (videos != background).any(dim=2).sum(dim=(2, 3))
    seen = 0
    for row, course in enumerate(courses):
        for frame, ((i, j), (y, x)) in enumerate(zip(course.agent, course.ball, strict=True)):
            assert 0 <= min(y, x) <= max(y, x) <= 56
            if max(abs(4 * i - y), abs(4 * j - x)) >= 8:
                assert videos[row, frame, :, y + 4, x + 4].tolist() == list(BALL_COLOUR)
                assert painted[row, frame] == 64 + 60  # the disc misses its square's four corners
                seen += 1
    assert seen > 700


def test_the_ball_flies_as_a_digit_until_it_bounces_and_then_turns() -> None:
    turned = 0
    for seed in range(40):
        rng = np.random.RandomState(seed)
        rng.randint(PLACES, size=2)
        flight = Flight.draw(rng, 64, 56)
        ball = draw_course(np.random.RandomState(seed), 60, 64).ball
        hit = False
        for corner in ball:
            if not hit:
                assert corner == flight.corner()
            elif corner != flight.corner():
                turned += 1
                break
            hit |= flight.move()
    assert turned > 30


def test_a_clip_is_the_same_alone_and_in_any_batch() -> None:
    data = opened()
    indices = (11_023, 5, 5, 10_000)
    together, actions = data.videos(torch.tensor(indices)), actions_of(data, torch.tensor(indices))
    for row, index in enumerate(indices):
        assert torch.equal(data.videos(torch.tensor([index]))[0], together[row])
        assert torch.equal(actions_of(data, torch.tensor([index]))[0], actions[row])


def test_frames_and_actions_of_a_short_clip_begin_the_long_one() -> None:
    short, long, indices = opened(frames=5), opened(), torch.arange(8)
    assert torch.equal(short.videos(indices), long.videos(indices)[:, :5])
    assert torch.equal(actions_of(short, indices), actions_of(long, indices)[:, :20])
    assert actions_of(opened(frames=1), indices).shape == (8, 0)


def test_splits_follow_each_other_and_nothing_is_labelled() -> None:
    data = opened()
    assert torch.equal(data.split("train"), torch.arange(10_000))
    assert torch.equal(data.split("test"), torch.arange(10_000, 11_024))
    assert data.labels(torch.arange(3)) is None
    assert data.captions(torch.arange(3)) is None
    assert actions_of(data, torch.arange(0)).shape == (0, 75)


def test_fingerprint_and_clips_depend_on_the_seed_and_the_kind_of_clip() -> None:
    first, other = opened(), opened(seed=1)
    prints = {data.fingerprint for data in (first, other, opened(64), opened(frames=8))}
    assert len(prints) == 4
    assert first.fingerprint == opened().fingerprint
    assert not torch.equal(first.videos(torch.arange(4)), other.videos(torch.arange(4)))


def test_clips_that_cannot_be_drawn_are_refused_in_words() -> None:
    with pytest.raises(DataError, match="16 pixels or more, a multiple of 16; got 40x40"):
        opened(40)
    with pytest.raises(DataError, match=r"grid-agent draws square clips .* got 64x32"):
        open_grid_agent(Clip(frames=4, size=(64, 32)))
    with pytest.raises(DataError, match="got stride 3"):
        open_grid_agent(Clip(frames=4, size=(64, 64), stride=3))

"""VideoGPT's prior: parameter counts, what a code can see, conditions, and the cache."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from visgen.models.prior import Block, Cache, Prior, PriorConfig, Seen
from visgen.seeds import Draws
from visgen_kernels import BlockList

PAPER = PriorConfig(out_bias=False, position_axes=4, codes=1024)
TINY = PriorConfig(
    grid=(2, 8, 8),
    code_dim=6,
    codes=16,
    width=24,
    layers=2,
    frame_size=8,
    frame_channels=12,
    frame_depths=(1, 1, 1, 1),
    cross_values=12,
    text_layers=1,
    text_tokens=5,
)
CONDITIONS: dict[str, dict[str, Any]] = {
    "none": {},
    "class": {"classes": 3},
    "frames": {"frames": 2},
    "frames and class": {"frames": 2, "classes": 3},
    "actions and text": {"actions": 4, "words": ("a", "red", "square")},
    "text in norms": {"words": ("a", "red", "square"), "text_in_norms": True},
    "class and text in norms": {"classes": 3, "words": ("a", "red"), "text_in_norms": True},
    "everything": {"frames": 2, "classes": 3, "actions": 4, "words": ("a", "red")},
}


def count(config: PriorConfig) -> int:
    with torch.device("meta"):
        model = config.build()
    return sum(p.numel() for p in model.parameters())


def test_published_parameter_counts() -> None:
    assert count(PriorConfig()) == 33_238_464
    assert count(PriorConfig(classes=101)) == 35_196_864
    assert count(PriorConfig(frames=1)) == 72_471_920
    assert count(PriorConfig(frames=1, frame_size=128)) == 72_474_480


def test_parameter_counts_of_the_papers_family() -> None:
    small = replace(PAPER, grid=(8, 32, 32), width=512)
    assert count(small) == 25_868_928
    assert count(replace(small, layers=16)) == 51_071_616
    large = replace(PAPER, width=1024, layers=20, num_heads=8)
    assert count(large) == 253_174_016
    assert count(replace(large, classes=101)) == 261_570_816
    looking = replace(small, frames=1, frame_channels=576, cross_values=512)
    assert count(looking) == 34_790_016 + 6_336 + 73_317_056


def tiny(name: str = "none", *, sparse: bool = False, legacy: bool = False) -> Prior:
    torch.manual_seed(0)
    model = replace(TINY, **CONDITIONS[name], sparse=sparse, legacy_norm=legacy).build()
    torch.nn.init.normal_(model.out.weight, std=0.3)  # zeros at first: nothing would be seen
    return model


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def look(model: Prior, batch: int = 2) -> Seen:
    config = model.config
    return model.look(
        batch,
        labels=torch.tensor([0, 2]) if config.classes else None,
        actions=draw(batch, config.actions) if config.actions else None,
        frames=draw(batch, 3, config.frames, 8, 8) / 4 if config.frames else None,
        words=torch.tensor([[0, 1, 2], [1, 0, 0]]) if config.words else None,
        lengths=torch.tensor([3, 1]) if config.words else None,
    )


@pytest.mark.parametrize("codes", [16, 100])
def test_first_loss_is_the_logarithm_of_the_codebook(codes: int) -> None:
    model = replace(TINY, codes=codes).build()
    logits = model(draw(2, 2, 8, 8, 6), Seen())
    target = torch.arange(2 * 128) % codes
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target)
    assert float(loss.detach()) == pytest.approx(math.log(codes), abs=1e-6)


@pytest.mark.parametrize("name", CONDITIONS)
@pytest.mark.parametrize("sparse", [False, True])
@torch.no_grad()
def test_cached_logits_equal_full_ones(name: str, sparse: bool) -> None:
    model = tiny(name, sparse=sparse)
    vectors, seen = draw(2, 2, 8, 8, 6), look(model)
    full = model(vectors, seen)
    flat, cache = vectors.flatten(1, 3), model.cache(seen, 2)
    steps = [
        model.step(None if i == 0 else flat[:, i - 1], cache) for i in range(model.config.tokens)
    ]
    torch.testing.assert_close(torch.stack(steps, 1), full, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_cache_that_is_used_again_gives_the_same() -> None:
    model = tiny("class")
    flat, seen = draw(2, 128, 6), look(model)

    def steps(cache: Cache) -> Tensor:
        found = [model.step(None if i == 0 else flat[:, i - 1], cache) for i in range(128)]
        return torch.stack(found, 1)

    first = model.cache(seen, 2)
    before = steps(first)
    memory = [x.data_ptr() for x in first.memory]
    for x in first.memory:
        x.fill_(torch.nan)  # what was there before has no influence
    again = model.cache(seen, 2, reused=first)
    assert [x.data_ptr() for x in again.memory] == memory
    assert torch.equal(steps(again), before)


@pytest.mark.parametrize("sparse", [False, True])
@torch.no_grad()
def test_a_code_has_no_influence_on_itself_and_those_before(sparse: bool) -> None:
    model = tiny(sparse=sparse)
    vectors = draw(1, 2, 8, 8, 6)
    before = model(vectors, Seen())
    changed = vectors.clone()
    changed.view(1, 128, 6)[:, 77] += 1.0
    after = model(changed, Seen())
    torch.testing.assert_close(after[:, :78], before[:, :78], rtol=0, atol=1e-6)
    assert (after[:, 78] - before[:, 78]).abs().max() > 1e-3


@torch.no_grad()
def test_the_last_code_has_no_influence_at_all() -> None:
    model, vectors = tiny(), draw(1, 2, 8, 8, 6)
    changed = vectors.clone()
    changed[:, -1, -1, -1] = 9.0
    assert torch.equal(model(changed, Seen()), model(vectors, Seen()))


@torch.no_grad()
def test_sparse_attention_sees_only_listed_blocks() -> None:
    model = tiny(sparse=True)
    model.blocks = model.blocks[:1]
    listed = BlockList.strided(2, 8, 8).listed()
    vectors = draw(1, 2, 8, 8, 6)
    logits = model(vectors, Seen())
    for block in range(4):
        changed = vectors.clone()
        # Token i holds the code before it: codes 32 b - 1 .. 32 b + 30 stand in block b.
        changed.view(1, 128, 6)[:, max(0, 32 * block - 1) : 32 * block + 31] += 1.0
        moved = (model(changed, Seen()) - logits).abs().amax(-1)[0].view(4, 32).amax(-1) > 1e-6
        assert moved.tolist() == listed[:, block].tolist()


@torch.no_grad()
@pytest.mark.parametrize("legacy", [False, True])
def test_a_vector_of_zeros_is_a_plain_norm(legacy: bool) -> None:
    model = tiny("class", legacy=legacy)
    plain = tiny(legacy=legacy)
    shared = {k: v for k, v in model.state_dict().items() if k in plain.state_dict()}
    plain.load_state_dict(shared, strict=False)
    vectors = draw(2, 2, 8, 8, 6)
    nobody = model.look(2)
    assert nobody.vector is not None
    assert not nobody.vector.any()
    torch.testing.assert_close(model(vectors, nobody), plain(vectors, Seen()))


@torch.no_grad()
def test_a_one_hot_class_scales_the_norm_as_published() -> None:
    norm = tiny("class").norm
    scale, _ = norm.affine(torch.eye(3))
    torch.testing.assert_close(scale, torch.full_like(scale, 1 + 3**-0.5))


@torch.no_grad()
def test_legacy_norm_adds_epsilon_outside_the_root() -> None:
    norm = tiny(legacy=True).norm
    x = draw(1, 3, 24) * 1e-3
    centred = x - x.mean(-1, keepdim=True)
    expected = centred * (1e-5 + 1 / centred.square().mean(-1, keepdim=True).sqrt())
    torch.testing.assert_close(norm(x, norm.affine(None)), expected)


@pytest.mark.parametrize("name", [name for name in CONDITIONS if name != "none"])
@torch.no_grad()
def test_what_a_sample_lacks_is_as_if_nobody_had_it(name: str) -> None:
    model = tiny(name)
    vectors, config = draw(2, 2, 8, 8, 6), model.config
    absent = {
        kind: torch.tensor([True, False]) for kind in ("labels", "actions", "frames", "words")
    }
    some = model.look(
        2,
        labels=torch.tensor([0, 2]) if config.classes else None,
        actions=draw(2, config.actions) if config.actions else None,
        frames=draw(2, 3, config.frames, 8, 8) if config.frames else None,
        words=torch.tensor([[0, 1], [1, 0]]) if config.words else None,
        lengths=torch.tensor([2, 1]) if config.words else None,
        given=absent,
    )
    mixed, nobody = model(vectors, some), model(vectors, model.look(2))
    torch.testing.assert_close(mixed[1], nobody[1], rtol=0, atol=1e-5)
    assert (mixed[0] - nobody[0]).abs().max() > 1e-3


@torch.no_grad()
def test_every_condition_is_obeyed_by_the_logits() -> None:
    model, vectors = tiny("everything"), draw(1, 2, 8, 8, 6).expand(2, -1, -1, -1, -1)
    frames = draw(1, 3, 2, 8, 8).expand(2, -1, -1, -1, -1).clone()
    actions, words = draw(1, 4).expand(2, -1).clone(), torch.tensor([[0, 1], [0, 1]])

    def logits_of(
        labels: Tensor | None = None,
        actions: Tensor = actions,
        frames: Tensor = frames,
        words: Tensor = words,
    ) -> Tensor:
        labels, lengths = torch.tensor([1, 1]) if labels is None else labels, torch.tensor([2, 2])
        seen = model.look(
            2, labels=labels, actions=actions, frames=frames, words=words, lengths=lengths
        )
        return model(vectors, seen)

    logits = logits_of()
    torch.testing.assert_close(logits[0], logits[1])
    for changed in (
        logits_of(labels=torch.tensor([1, 2])),
        logits_of(actions=actions + torch.tensor([[0.0], [1.0]])),
        logits_of(frames=frames + torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1)),
        logits_of(words=torch.tensor([[0, 1], [1, 1]])),
    ):
        assert (changed[1] - changed[0]).abs().max() > 1e-4


@torch.no_grad()
def test_the_norms_follow_the_mean_of_a_sentence_s_own_tokens() -> None:
    model = tiny("class and text in norms")
    seen, vector = look(model), look(model).vector
    assert vector is not None
    assert seen.tokens is not None
    torch.testing.assert_close(vector[0, 3:], seen.tokens[0].mean(0))  # three words
    torch.testing.assert_close(vector[1, 3:], seen.tokens[1, 0])  # one, and padding
    absent = model.look(2, labels=torch.tensor([0, 2]))
    assert absent.vector is not None
    assert not absent.vector[:, 3:].any()
    assert torch.equal(absent.vector[:, :3], vector[:, :3])


@torch.no_grad()
def test_neighbour_heads_begin_by_looking_at_one_code_each() -> None:
    """Under quiet codes about half of a head's attention goes to the input of its neighbour."""
    torch.manual_seed(0)
    config = replace(
        TINY, grid=(3, 8, 8), width=96, layers=3, position_std=0.5, neighbour_heads=True
    )
    model, (times, rows, columns) = config.build(), config.grid
    x = model.embed(draw(times * rows * columns, 6)) + model.positions().flatten(0, -2)
    found = []
    expected = {
        (0, 0): (-1, 0, 0), (0, 3): (0, -1, 0), (1, 0): (-1, 0, -1), (2, 3): (-2, 0, 0),
    }  # fmt: skip
    for (number, head), (dt, dy, dx) in expected.items():
        block = model.blocks[number]
        assert isinstance(block, Block)
        q, k, _ = block.attention.qkv(block.norm1(x, block.norm1.affine(None))).chunk(3, -1)
        part = slice(24 * head, 24 * head + 24)
        scores = q[:, part] @ k[:, part].mT * 24**-0.5
        best = scores.argmax(-1).view(config.grid)
        future = torch.ones_like(scores, dtype=torch.bool).triu(1)
        shares = scores.masked_fill(future, -torch.inf).softmax(-1)
        for t in range(-dt, times):
            for y in range(-dy, rows):
                for at in range(max(0, -dx - 1), columns - dx - 1):  # its input is in this row
                    shown = ((t + dt) * rows + y + dy) * columns + at + dx + 1
                    assert int(best[t, y, at]) == shown
                    found.append(float(shares[(t * rows + y) * columns + at, shown]))
    assert sum(found) / len(found) > 0.4


@torch.no_grad()
def test_neighbour_heads_begin_by_looking_at_the_frames_own_place() -> None:
    torch.manual_seed(0)
    config = replace(
        TINY,
        grid=(3, 8, 8),
        width=96,
        layers=1,
        frames=2,
        frame_size=16,
        frame_channels=24,
        position_std=0.5,
        neighbour_heads=True,
    )
    model, (times, rows, columns) = config.build(), config.grid
    x = (model.positions().flatten(0, -2) + 0.01 * draw(times * rows * columns, 96))[None]
    assert model.frame_positions is not None
    features = (model.frame_positions() + 0.01 * draw(2, 4, 4, 24)).flatten(0, 2)[None]
    block = model.blocks[0]
    assert isinstance(block, Block)
    assert block.cross is not None
    assert block.norm2 is not None
    queries = block.cross.query(block.norm2(x, block.norm2.affine(None)))
    keys, _ = block.cross.keys_and_values(features)
    best = torch.einsum("qhc,khc->hqk", queries[0].unflatten(-1, (4, -1)), keys[0]).argmax(-1)
    place = torch.arange(rows)
    own = (place[:, None] // 2 * 4 + place[None, :] // 2).expand(4, times, -1, -1)
    assert torch.equal(best.view(4, times, rows, columns) % 16, own)  # of either frame


def test_dropout_is_the_same_for_the_same_step_and_off_in_eval() -> None:
    model, vectors = tiny(), draw(2, 2, 8, 8, 6)
    draws = Draws(torch.tensor([1, 2]), "train", 3)
    quiet = model(vectors, Seen(), draws)
    torch.testing.assert_close(quiet, model(vectors, Seen()))
    model.train()
    torch.testing.assert_close(model(vectors, Seen(), draws), model(vectors, Seen(), draws))
    later = model(vectors, Seen(), Draws(draws.seeds, "train", 4))
    assert (later - model(vectors, Seen(), draws)).abs().max() > 1e-3


def test_sizes_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="width=25 is divided by 4 heads"):
        PriorConfig(width=25)
    with pytest.raises(ValueError, match="blocks of 32 codes"):
        PriorConfig(grid=(1, 3, 5), sparse=True)
    with pytest.raises(ValueError, match="text_in_norms=True without words"):
        PriorConfig(text_in_norms=True)
    with pytest.raises(ValueError, match="16 channels an axis and 24 a head"):
        replace(TINY, grid=(8, 8, 8), position_std=0.5, neighbour_heads=True)
    with pytest.raises(ValueError, match="wants full attention"):
        replace(TINY, width=72, neighbour_heads=True, sparse=True)
    near = replace(TINY, grid=(3, 8, 8), width=96, position_std=0.5, neighbour_heads=True)
    with pytest.raises(ValueError, match=r"position_std=0\.01: below 0\.1"):
        replace(near, position_std=0.01)
    with pytest.raises(ValueError, match="has an axis of 2"):
        replace(near, grid=(2, 8, 8))
    with pytest.raises(ValueError, match="wants 16 of the frames' channels an axis"):
        replace(near, frames=1, frame_size=32, frame_channels=24)
    with pytest.raises(ValueError, match="frame_size=30 is a multiple of 4"):
        PriorConfig(frames=1, frame_size=30)

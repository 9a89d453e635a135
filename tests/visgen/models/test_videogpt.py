"""VideoGPT whole: presets, drawing codes, guidance, longer clips, conditions that do not fit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visgen.conditions import Actions, ClassLabel, Conditions, FirstFrames, Text
from visgen.models.prior import PriorConfig
from visgen.models.videogpt import (
    PRESETS,
    Sampling,
    VideoGPT,
    VideoGPTConfig,
    draw,
)
from visgen.models.vqvae import VQVAEConfig
from visgen.pixels import from_unit, to_unit
from visgen.seeds import sample_seeds, uniform

TINY = VideoGPTConfig(
    vqvae=VQVAEConfig(
        frames=8,
        size=(16, 16),
        downsample=(2, 4, 4),
        width=12,
        inner_width=6,
        residual_layers=1,
        code_dim=6,
        codes=16,
    ),
    prior=PriorConfig(
        grid=(4, 4, 4),
        code_dim=6,
        codes=16,
        width=24,
        layers=2,
        frame_size=16,
        frame_channels=12,
        frame_depths=(1, 1, 1, 1),
        cross_values=12,
        text_layers=1,
        text_tokens=5,
    ),
)


def tiny(**changes: Any) -> VideoGPT:
    torch.manual_seed(0)
    model = replace(TINY, prior=replace(TINY.prior, **changes)).build()
    torch.nn.init.normal_(model.prior.out.weight, std=0.5)
    return model.double()


def seeds(n: int) -> Tensor:
    return sample_seeds(0, torch.arange(n))


@pytest.mark.parametrize(
    ("name", "vqvae", "prior"),
    [
        ("videogpt-kinetics-4x4x4", 21_141_619, 33_238_464),
        ("videogpt-bair", 21_141_619, 72_471_920),
        ("videogpt-paper-bair", 15_801_747, 108_113_408),
        ("videogpt-paper-ucf101", 23_174_707, 253_174_016),
        ("videogpt-paper-ucf101-class", 23_174_707, 261_570_816),
        ("videogpt-paper-vizdoom", 15_801_747, 25_868_928),
    ],
)
def test_parameters_of_presets(name: str, vqvae: int, prior: int) -> None:
    with torch.device("meta"):
        networks = PRESETS[name].build().networks()
    counts = {part: sum(p.numel() for p in net.parameters()) for part, net in networks.items()}
    assert counts == {"vqvae": vqvae, "prior": prior}


def test_every_preset_has_the_published_number_of_codes() -> None:
    tokens = {name: preset.prior.tokens for name, preset in PRESETS.items()}
    assert tokens["videogpt-paper-moving-mnist"] == 1024
    for name in ("videogpt-paper-bair", "videogpt-paper-vizdoom", "videogpt-kinetics-2x4x4"):
        assert tokens[name] == 8192
    for name in ("videogpt-bair", "videogpt-ucf101", "videogpt-paper-tgif"):
        assert tokens[name] == 4096


def test_samples_are_clips_of_bytes_that_depend_on_their_seed_alone() -> None:
    model = tiny()
    whole = model.generate(seeds(5))
    assert whole.shape == (5, 8, 3, 16, 16)
    assert whole.dtype == torch.uint8
    parts = torch.cat([model.generate(seeds(5)[i : i + 2]) for i in (0, 2, 4)])
    assert torch.equal(parts, whole)
    assert torch.equal(model.generate(seeds(5).flip(0)).flip(0), whole)
    assert len({tuple(clip.flatten().tolist()) for clip in whole}) == 5


@torch.no_grad()
def test_codes_are_drawn_from_the_full_models_probabilities() -> None:
    model = tiny()
    codes = model.sample_codes(seeds(3), None, Sampling())
    numbers = uniform(seeds(3), "codes-0", (64,))
    logits = model.prior(model.vqvae.embed(codes), model.look(None, 3))
    for place in range(64):
        again = draw(logits[:, place], numbers[:, place], Sampling())
        assert torch.equal(again, codes.flatten(1)[:, place])


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
    numbers = (torch.arange(10_000) + 0.5) / 10_000
    share = torch.bincount(draw(logits.expand(10_000, -1), numbers, Sampling()), minlength=4)
    torch.testing.assert_close(share / 10_000, logits[0].softmax(-1), rtol=0, atol=2e-4)


def test_temperature_top_k_and_top_p_leave_out_what_they_should() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]]).expand(1000, -1)
    numbers = (torch.arange(1000) + 0.5) / 1000

    def drawn(**options: float) -> set[int]:
        return set(draw(logits, numbers, Sampling(**options)).tolist())  # type: ignore[arg-type]

    assert drawn() == {0, 1, 2, 3}
    assert drawn(temperature=0) == {1}
    assert drawn(temperature=0.01) == {1}
    assert drawn(top_k=1) == {1}
    assert drawn(top_k=2) == {1, 2}
    assert drawn(top_k=9) == {0, 1, 2, 3}
    # Probabilities are 0.644, 0.237, 0.087, 0.032 of codes 1, 2, 0, 3.
    assert drawn(top_p=0.6) == {1}
    assert drawn(top_p=0.7) == {1, 2}
    assert drawn(top_p=0.9) == {0, 1, 2}
    assert drawn(top_p=1e-9) == {1}
    kept = draw(logits, numbers, Sampling(top_k=2))
    share = float((kept == 1).double().mean())
    assert share == pytest.approx(0.644 / (0.644 + 0.237), abs=2e-3)


def test_numbers_close_to_one_draw_the_last_code_that_may_be_drawn() -> None:
    number = torch.tensor([1 - 2**-24])
    assert draw(torch.tensor([[0.0, 0.0, -200.0]]), number, Sampling()).tolist() == [1]
    assert draw(torch.tensor([[0.0, 1.0, 0.0]]), number, Sampling(top_k=2)).tolist() == [1]


@torch.no_grad()
def test_guidance_knows_sentences_shorter_than_the_longest() -> None:
    """Guidance of 0 is no condition, of 1 the condition alone."""
    model = tiny(words=("a", "red", "ball"), frames=1)
    first = torch.randint(0, 256, (2, 1, 3, 16, 16), dtype=torch.uint8)
    asked = Conditions((Text(("a ball", "a red ball")), FirstFrames(first)))
    free = model.sample_codes(seeds(2), None, Sampling())
    assert torch.equal(model.sample_codes(seeds(2), asked, Sampling(guidance=0.0)), free)
    under = model.sample_codes(seeds(2), asked, Sampling())
    nearly = model.sample_codes(seeds(2), asked, Sampling(guidance=1.0 + 1e-6))
    assert torch.equal(nearly, under)
    assert not torch.equal(under, free)


def test_guidance_moves_logits_away_from_those_without_a_condition() -> None:
    model = tiny(classes=3)
    label = ClassLabel(torch.tensor([2, 0]))
    free = model.sample_codes(seeds(2), None, Sampling())
    under = model.sample_codes(seeds(2), label, Sampling())
    assert torch.equal(model.sample_codes(seeds(2), label, Sampling(guidance=0.0)), free)
    guided = model.sample_codes(seeds(2), label, Sampling(guidance=3.0))
    assert not torch.equal(guided, under)
    numbers = uniform(seeds(2), "codes-0", (64,))
    vectors = model.vqvae.embed(guided)
    with_label = model.prior(vectors, model.look(label, 2))
    without = model.prior(vectors, model.look(None, 2))
    logits = without + 3.0 * (with_label - without)
    again = [draw(logits[:, i], numbers[:, i], Sampling()) for i in range(64)]
    assert torch.equal(torch.stack(again, 1), guided.flatten(1))


@torch.no_grad()
def test_longer_clips_go_on_from_the_codes_before() -> None:
    model = tiny()
    short, long = model.generate(seeds(2)), model.generate(seeds(2), sampling=Sampling(frames=19))
    assert long.shape == (2, 19, 3, 16, 16)
    assert torch.equal(long[:, :8], short)
    first = model.sample_codes(seeds(2), None, Sampling())
    second = model.sample_codes(seeds(2), None, Sampling(), known=first[:, 2:], stream="codes-1")
    assert torch.equal(second[:, :2], first[:, 2:])
    assert torch.equal(long[:, 8:12], model.decode(second)[:, 4:])


@torch.no_grad()
def test_longer_clips_look_at_the_frames_that_a_window_begins_with() -> None:
    model = tiny(frames=1)
    begins = FirstFrames(torch.randint(0, 256, (2, 1, 3, 16, 16), dtype=torch.uint8))
    short = model.generate(seeds(2), begins)
    long = model.generate(seeds(2), begins, Sampling(frames=12))
    codes = model.sample_codes(seeds(2), begins, Sampling())
    second = model.sample_codes(
        seeds(2), FirstFrames(short[:, 4:5]), Sampling(), known=codes[:, 2:], stream="codes-1"
    )
    assert torch.equal(long[:, 8:], model.decode(second)[:, 4:])


@torch.no_grad()
def test_nats_are_those_of_the_codes_under_the_prior() -> None:
    model = tiny()
    clips = torch.randint(0, 256, (3, 8, 3, 16, 16), dtype=torch.uint8)
    codes = model.vqvae.encode(to_unit(clips).double())
    logits = model.prior(model.vqvae.embed(codes), model.look(None, 3))
    expected = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none")
    nats = model.nats_per_code(clips)
    torch.testing.assert_close(nats, expected.view(3, -1).mean(1).to(nats), rtol=1e-5, atol=1e-5)
    torch.nn.init.zeros_(model.prior.out.weight)
    torch.testing.assert_close(model.nats_per_code(clips), torch.full((3,), 16.0).log().to(nats))


def test_words_that_are_not_known_are_one_word() -> None:
    model = tiny(words=("a", "red", "square"))
    known = model.generate(seeds(1), Text(("a red square",)))
    assert torch.equal(known, model.generate(seeds(1), Text(("A  Red square",))))
    strange = model.generate(seeds(1), Text(("a crimson square",)))
    assert torch.equal(strange, model.generate(seeds(1), Text(("a scarlet square",))))
    with pytest.raises(ValueError, match="a sentence has 6 words, this model reads 5"):
        model.generate(seeds(1), Text(("a a a a a a",)))


def test_conditions_that_do_not_fit_are_named() -> None:
    model = tiny(classes=3, actions=2)
    with pytest.raises(ValueError, match=r"not made for Text; it takes ClassLabel, Actions"):
        model.generate(seeds(1), Text(("a",)))
    with pytest.raises(ValueError, match=r"ClassLabel for 2 samples wants the shape \(2,\)"):
        model.generate(seeds(2), ClassLabel(torch.tensor([1])))
    with pytest.raises(ValueError, match="classes are 0 to 2, got 3 to 3"):
        model.generate(seeds(1), ClassLabel(torch.tensor([3])))
    with pytest.raises(ValueError, match="actions say what happens in 8 frames, got frames=12"):
        model.generate(seeds(1), Actions(torch.zeros(1, 2)), Sampling(frames=12))
    with pytest.raises(ValueError, match="hold ClassLabel twice"):
        Conditions((ClassLabel(torch.tensor([1])), ClassLabel(torch.tensor([2]))))
    with pytest.raises(ValueError, match="it takes none"):
        tiny().generate(seeds(1), ClassLabel(torch.tensor([1])))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1.0}, "0 or more"),
        ({"top_p": 0.0}, "top_p=0.0: above 0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"guidance": -2.0}, "guidance=-2.0"),
    ],
)
def test_sampling_that_makes_no_sense_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sampling(**options)


def test_parts_that_do_not_fit_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="the prior's codes=32 is not the VQ-VAE's 16"):
        replace(TINY, prior=replace(TINY.prior, codes=32))
    with pytest.raises(ValueError, match="looks at frames of 32 pixels"):
        replace(TINY, prior=replace(TINY.prior, frames=1, frame_size=32))


def test_bytes_come_back_from_the_models_range() -> None:
    clips = torch.arange(256, dtype=torch.uint8).view(1, 1, 1, 16, 16).expand(1, 2, 3, 16, 16)
    assert torch.equal(from_unit(to_unit(clips)), clips)
    assert from_unit(torch.tensor([-9.0, 9.0]).view(1, 1, 2, 1, 1)).flatten().tolist() == [0, 255]
    with pytest.raises(ValueError, match=r"clips are uint8 \(n, t, 3, h, w\)"):
        to_unit(clips.float())

"""ConvLSTM and 3-D U-Net: published size, causality, and what they promise of given frames."""

import pytest
import torch

from visgen.baselines import conv_lstm, unet3d
from visgen.baselines.conv_lstm import Cell, ConvLSTMConfig
from visgen.baselines.predictor import Predictor
from visgen.baselines.unet3d import UNet3d, UNet3dConfig
from visgen.checkpoints import load_weights, save_weights
from visgen.checkpoints.weights import part_states
from visgen.conditions import ClassLabel, Conditions, FirstFrames

PRESETS = {**conv_lstm.PRESETS, **unet3d.PRESETS}
TINY = [name for name in PRESETS if name.endswith("-tiny")]
SEEDS = torch.arange(3)


def built(name: str) -> Predictor:
    torch.manual_seed(0)
    return PRESETS[name].build()


def given(count: int = 3, frames: int = 4, side: int = 32) -> FirstFrames:
    generator = torch.Generator().manual_seed(1)
    shape = (count, frames, 3, side, side)
    return FirstFrames(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))


def test_conv_lstm_has_the_papers_number_of_parameters() -> None:
    with torch.device("meta"):
        model = conv_lstm.PRESETS["conv-lstm-moving-mnist"].build()
    assert sum(p.numel() for p in model.parameters()) == 7_585_296


@pytest.mark.parametrize("name", TINY)
def test_tiny_ones_are_small(name: str) -> None:
    assert sum(p.numel() for p in built(name).parameters()) <= 300_000


def test_a_cell_without_spatial_kernel_is_the_papers_equation() -> None:
    torch.manual_seed(0)
    cell = Cell(2, 3, 1).double()
    torch.nn.init.normal_(cell.peepholes)
    x, h, c = (torch.randn(1, n, 1, 1, dtype=torch.float64) for n in (2, 3, 3))
    weight, bias = cell.gates.weight[:, :, 0, 0], cell.gates.bias
    assert bias is not None
    i, f, g, o = (weight @ torch.cat([x, h], 1).flatten() + bias).chunk(4)
    w_ci, w_cf, w_co = cell.peepholes.flatten(1)
    old = c.flatten()
    memory = torch.sigmoid(f + w_cf * old) * old + torch.sigmoid(i + w_ci * old) * g.tanh()
    hidden = torch.sigmoid(o + w_co * memory) * memory.tanh()
    got = cell(x, (h, c))
    torch.testing.assert_close(got[0].flatten(), hidden)
    torch.testing.assert_close(got[1].flatten(), memory)


def test_no_frame_of_the_unet_depends_on_a_later_one() -> None:
    torch.manual_seed(0)
    net = UNet3d(UNet3dConfig(frames=6, context=2, size=8, widths=(4, 6, 8)))
    torch.nn.init.normal_(net.out.weight)
    x = torch.randn(1, 2, 6, 8, 8)
    changed = x.clone()
    changed[:, :, 4:] += 1
    before, after = net.correction(x), net.correction(changed)
    torch.testing.assert_close(before[:, :, :4], after[:, :, :4], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, :, 4], after[:, :, 4])


def test_the_untrained_unet_copies_the_last_frame() -> None:
    condition = given()
    clips = built("unet3d-tiny").generate(SEEDS, condition)
    assert torch.equal(clips[:, 4:], condition.frames[:, 3:].expand(-1, 12, -1, -1, -1))


@pytest.mark.parametrize("name", TINY)
def test_a_clip_begins_with_the_given_frames_and_hangs_on_nothing_else(name: str) -> None:
    model, condition = built(name), given()
    if name.startswith("unet"):
        assert isinstance(model.predictor, UNet3d)
        torch.nn.init.normal_(model.predictor.out.weight)
    clips = model.generate(SEEDS, condition)
    assert (clips.dtype, clips.shape) == (torch.uint8, (3, 16, 3, 32, 32))
    assert torch.equal(clips[:, :4], condition.frames)
    again = model.generate(SEEDS + 99, Conditions((condition,)))
    assert torch.equal(again, clips)  # deterministic, whatever the seeds
    alone = model.generate(SEEDS[:1], FirstFrames(condition.frames[1:2]))
    assert (alone[0].int() - clips[1].int()).abs().max() <= 1
    context = model.frames(condition.frames)
    assert model.predict(context).shape == (3, 12, 3, 32, 32)


@pytest.mark.parametrize("name", TINY)
def test_wrong_and_missing_conditions_are_refused(name: str) -> None:
    model = built(name)
    labels = ClassLabel(torch.zeros(3, dtype=torch.int64))
    for wrong in (None, labels, Conditions((labels, given()))):
        with pytest.raises(ValueError, match="give FirstFrames"):
            model.generate(SEEDS, wrong)
    with pytest.raises(ValueError, match="4 frames of 32x32"):
        model.generate(SEEDS, given(frames=3))
    with pytest.raises(ValueError, match="4 frames of 32x32"):
        model.generate(SEEDS, given(side=16))
    with pytest.raises(ValueError, match="3 clips were asked for"):
        model.generate(SEEDS, given(count=2))
    with pytest.raises(ValueError, match="predicts from"):
        model.predict(torch.zeros(1, 4, 1, 32, 32))


def test_grey_models_take_the_mean_of_colours_and_give_grey() -> None:
    torch.manual_seed(0)
    model = ConvLSTMConfig(frames=5, context=2, size=8, widths=(4,), kernel=3).build()
    clips = model.generate(SEEDS, given(frames=2, side=8))
    assert torch.equal(clips[:, 2:, 0], clips[:, 2:, 2])
    frames = model.frames(given(frames=2, side=8).frames)
    assert frames.shape == (3, 2, 1, 8, 8)


@pytest.mark.parametrize("name", TINY)
def test_saved_weights_come_back_as_the_same_model(name: str, tmp_path) -> None:
    model = built(name)
    path = tmp_path / "weights.safetensors"
    save_weights(path, part_states(model.networks()), {})
    torch.manual_seed(5)
    again = PRESETS[name].build()
    load_weights(again, path)
    assert torch.equal(again.generate(SEEDS, given()), model.generate(SEEDS, given()))


def test_impossible_sizes_are_refused() -> None:
    for wrong, says in (
        ({"context": 20}, "1 to 19"),
        ({"channels": 2}, "grey"),
        ({"size": 30}, "multiple of"),
    ):
        with pytest.raises(ValueError, match=says):
            ConvLSTMConfig(**wrong)  # pyright: ignore[reportArgumentType]
        with pytest.raises(ValueError, match=says):
            UNet3dConfig(**wrong)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="use 5"):
        ConvLSTMConfig(kernel=4)

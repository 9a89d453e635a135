"""Checkpoints of VideoGPT's released code, made here by torch.save, through the command.

Names and shapes are typed from the published layout, values are filled in by the published formula,
and what the converted model computes was computed by the released code.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from visgen.checkpoints import CheckpointError, load_weights
from visgen.checkpoints.lightning import read_lightning
from visgen.models.videogpt import VideoGPT, VideoGPTConfig
from visgen.models.vqvae import VQVAEConfig
from visgen_bench import cli
from visgen_bench.convert import convert_videogpt

Shapes = dict[str, tuple[int, ...]]
C, D, K, E = 12, 6, 16, 24
OPTIONS = {"sequence_length": 8, "resolution": 16, "downsample": [4, 2, 2], "batch_size": 8}
PRIOR_OPTIONS = {
    "sequence_length": 8, "resolution": 16, "heads": 4, "attn_type": "full", "dropout": 0.2,
    "attn_dropout": 0.3, "vqvae": "/somewhere/else/vqvae.ckpt",
}  # fmt: skip


def norm3d(prefix: str, width: int) -> Shapes:
    names = ("weight", "bias", "running_mean", "running_var")
    return {f"{prefix}.{name}": (width,) for name in names} | {f"{prefix}.num_batches_tracked": ()}


def vqvae_shapes() -> Shapes:
    """C 12, D 6, K 16, one residual layer, two strided convolutions."""
    shapes: Shapes = {
        "encoder.convs.0.conv.weight": (C, 3, 4, 4, 4),
        "encoder.convs.0.conv.bias": (C,),
        "encoder.convs.1.conv.weight": (C, C, 4, 4, 4),
        "encoder.convs.1.conv.bias": (C,),
        "encoder.conv_last.conv.weight": (C, C, 3, 3, 3),
        "encoder.conv_last.conv.bias": (C,),
        "decoder.convts.0.convt.weight": (C, C, 4, 4, 4),
        "decoder.convts.0.convt.bias": (C,),
        "decoder.convts.1.convt.weight": (C, 3, 4, 4, 4),
        "decoder.convts.1.convt.bias": (3,),
        "pre_vq_conv.conv.weight": (D, C, 1, 1, 1),
        "pre_vq_conv.conv.bias": (D,),
        "post_vq_conv.conv.weight": (C, D, 1, 1, 1),
        "post_vq_conv.conv.bias": (C,),
        "codebook.embeddings": (K, D),
        "codebook.N": (K,),
        "codebook.z_avg": (K, D),
    }
    for side in ("encoder", "decoder"):
        block = f"{side}.res_stack.0.block"
        shapes |= norm3d(f"{block}.0", C) | norm3d(f"{block}.3", C // 2) | norm3d(f"{block}.6", C)
        shapes |= norm3d(f"{side}.res_stack.1", C)
        shapes[f"{block}.2.conv.weight"] = (C // 2, C, 3, 3, 3)
        shapes[f"{block}.5.conv.weight"] = (C, C // 2, 1, 1, 1)
        for axis in "wht":
            for w in ("w_qs", "w_ks", "w_vs", "fc"):
                shapes[f"{block}.8.attn_{axis}.{w}.weight"] = (C, C)
            shapes[f"{block}.8.attn_{axis}.fc.bias"] = (C,)
    return shapes


def prior_shapes(classes: int = 0, frames: int = 0, masks: bool = True) -> Shapes:
    """E 24, two layers, 2 x 8 x 8 codes; the ResNet has one block a group and 24 channels."""

    def norm(prefix: str) -> Shapes:
        if classes:
            return {f"{prefix}.w.weight": (E, classes), f"{prefix}.wb.weight": (E, classes)}
        return {f"{prefix}.g": (E,), f"{prefix}.b": (E,)}

    shapes: Shapes = {"fc_in.weight": (E, D), "fc_out.weight": (K, E)} | norm("norm")
    shapes["attn_stack.right_shift.sos"] = (E,)
    shapes |= {f"attn_stack.pos_embd.emb.d_{i}": (n, 8) for i, n in enumerate((2, 8, 8))}
    for b in range(2):
        block = f"attn_stack.attn_nets.{b}"
        shapes |= norm(f"{block}.pre_attn_norm") | norm(f"{block}.pre_fc_norm")
        shapes |= {f"{block}.attn.{w}.weight": (E, E) for w in ("w_qs", "w_ks", "w_vs", "fc")}
        shapes[f"{block}.attn.fc.bias"] = (E,)
        shapes |= {f"{block}.fc_block.0.weight": (96, E), f"{block}.fc_block.0.bias": (96,)}
        shapes |= {f"{block}.fc_block.2.weight": (E, 96), f"{block}.fc_block.2.bias": (E,)}
        if masks:
            shapes[f"{block}.attn.attn.mask"] = (128, 128)
        if frames:
            shapes |= norm(f"{block}.pre_enc_norm")
            shapes[f"{block}.enc_attn.w_qs.weight"] = (E, E)
            shapes[f"{block}.enc_attn.w_ks.weight"] = (E, 24)
            shapes[f"{block}.enc_attn.w_vs.weight"] = (24, 24)
            shapes[f"{block}.enc_attn.fc.weight"] = (E, 24)
            shapes[f"{block}.enc_attn.fc.bias"] = (E,)
    if frames:
        shapes |= {f"cond_pos_embd.emb.d_{i}": (n, 8) for i, n in enumerate((frames, 4, 4))}
        shapes["resnet.stem.0.weight"] = (64, 3, 3, 3, 3)
        shapes |= {f"resnet.stem.1.norm.norm.{n}": (64,) for n in ("weight", "bias")}
        for g, (before, width) in enumerate(((64, 64), (64, 64 * 2), (128, 256), (256, 24)), 1):
            start = f"resnet.group{g}.start_block"
            shapes[f"{start}.proj_conv.weight"] = (width, before, 1, 1, 1)
            shapes[f"{start}.conv1.weight"] = (width, before, 3, 3, 3)
            shapes[f"{start}.conv2.weight"] = (width, width, 3, 3, 3)
            for bnr in ("proj_bnr", "bnr1", "bnr2"):
                shapes |= {f"{start}.{bnr}.norm.norm.{n}": (width,) for n in ("weight", "bias")}
    return shapes


def filled(shapes: Shapes) -> dict[str, Tensor]:
    """Values by the published formula, from the place of a key in the sorted list of names."""
    counted = sorted(k for k in shapes if not k.endswith((".mask", "num_batches_tracked")))
    state = {
        k: torch.zeros(shape, dtype=torch.float32 if k.endswith("mask") else torch.int64)
        for k, shape in shapes.items()
        if k not in counted
    }
    for number, key in enumerate(counted):
        shape = shapes[key]
        j = torch.arange(math.prod(shape), dtype=torch.float64)
        u = ((7919 * j + 104729 * (number + 1)) % 10007) / 10007 * 2 - 1
        if key == "codebook.N":
            value = torch.ones_like(u)
        elif key.endswith("running_var"):
            value = 1 + u / 2
        elif len(shape) == 1:
            value = 0.1 * u + (1.0 if key.endswith((".weight", ".g")) else 0.0)
        elif key.startswith("codebook."):
            value = u / 2
        else:
            value = u * math.sqrt(3 * shape[0] / u.numel())
        state[key] = value.view(shape).float()
    return state


def saved(path: Path, state: dict[str, Tensor], options: dict[str, object], **more: object) -> Path:
    """A file as Lightning 1.3 writes it."""
    trainer = {"epoch": 3, "global_step": 9, "pytorch-lightning_version": "1.3.0"}
    hyper = {"args": argparse.Namespace(**options)}
    torch.save({**trainer, "state_dict": state, "hyper_parameters": hyper, **more}, path)
    return path


def prior_state(*, classes: int = 0, frames: int = 0, masks: bool = True) -> dict[str, Tensor]:
    inside = {f"vqvae.{key}": tensor for key, tensor in filled(vqvae_shapes()).items()}
    return inside | filled(prior_shapes(classes, frames, masks))


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `convert videogpt` in this process: (exit code, stdout, stderr)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(
            sys, "argv", ["visgen-bench", "convert", "videogpt", *map(str, arguments)]
        )
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def video() -> Tensor:
    j = torch.arange(2 * 3 * 8 * 16 * 16, dtype=torch.float64)
    return (0.5 * torch.sin(0.013 * j)).float().view(2, 3, 8, 16, 16)


def about(x: Tensor, values: float | list[float]) -> None:
    torch.testing.assert_close(x.detach(), torch.tensor(values), rtol=0, atol=1e-4)


@torch.no_grad()
def test_a_vqvae_computes_what_the_released_code_does(invoke, tmp_path: Path) -> None:
    file = saved(tmp_path / "bair", filled(vqvae_shapes()), OPTIONS)
    out = tmp_path / "vqvae.safetensors"
    code, printed, _ = invoke(file, "--out", out)
    assert code == 0
    assert "VQ-VAE, no preset: VQVAEConfig(frames=8, size=(16, 16)" in printed
    found = convert_videogpt(file, out)
    assert found.config == VQVAEConfig(
        frames=8, size=(16, 16), downsample=(4, 2, 2), width=12, inner_width=6,
        residual_layers=1, code_dim=6, codes=16,
    )  # fmt: skip
    assert isinstance(found.config, VQVAEConfig)
    model = torch.nn.Module()
    model.networks = lambda: {"vqvae": vqvae}  # type: ignore[assignment]
    vqvae = found.config.build()
    load_weights(model, out)
    reconstruction = vqvae.decode(vqvae.encode(video()))
    about(reconstruction.flatten()[:4], [0.04499, 0.0285, 0.09072, 0.02896])


@torch.no_grad()
@pytest.mark.parametrize(("classes", "nats"), [(0, 2.969471), (5, 2.834664)])
def test_a_prior_computes_what_the_released_code_does(
    invoke, tmp_path: Path, classes: int, nats: float
) -> None:
    file = saved(tmp_path / "prior", prior_state(classes=classes), PRIOR_OPTIONS)
    out = tmp_path / "prior.safetensors"
    code, printed, _ = invoke(file, "--out", out, "--json")
    assert code == 0
    assert json.loads(printed)["presets"] == []
    config = convert_videogpt(file, out).config
    assert isinstance(config, VideoGPTConfig)
    prior = config.prior
    assert (prior.num_heads, prior.sparse, prior.classes, prior.grid) == (
        4,
        False,
        classes,
        (2, 8, 8),
    )
    model: VideoGPT = config.build()
    load_weights(model, out)
    codes = model.vqvae.encode(video())
    seen = model.prior.look(2, labels=torch.tensor([1, 4]) if classes else None)
    logits = model.prior(model.vqvae.embed(codes), seen)
    about(F.cross_entropy(logits.flatten(0, 1), codes.flatten()), nats)


def test_frames_and_sparse_attention_are_told_by_the_keys(tmp_path: Path) -> None:
    options = {k: v for k, v in PRIOR_OPTIONS.items() if k != "attn_type"}
    file = saved(tmp_path / "prior", prior_state(frames=1, masks=False), options)
    config = convert_videogpt(file, tmp_path / "out.safetensors").config
    assert isinstance(config, VideoGPTConfig)
    prior = config.prior
    assert (prior.sparse, prior.frames, prior.frame_size) == (True, 1, 16)
    assert (prior.frame_channels, prior.frame_depths, prior.cross_values) == (24, (1, 1, 1, 1), 24)
    load_weights(config.build(), tmp_path / "out.safetensors")


def test_a_prior_without_its_vqvae_wants_the_vqvaes_file(invoke, tmp_path: Path) -> None:
    file = saved(tmp_path / "prior", filled(prior_shapes()), PRIOR_OPTIONS)
    vqvae = saved(tmp_path / "vqvae", filled(vqvae_shapes()), OPTIONS)
    out = tmp_path / "out.safetensors"
    code, _, err = invoke(file, "--out", out)
    assert code == 2
    assert "--vqvae FILE" in err
    assert invoke(file, "--out", out, "--vqvae", vqvae)[0] == 0


def test_options_that_no_shape_tells_are_asked_for_and_taken(invoke, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    for state, options, name, value in (
        (prior_state(), PRIOR_OPTIONS, "heads", "4"),
        (filled(vqvae_shapes()), OPTIONS, "downsample", "4,2,2"),
        (filled(vqvae_shapes()), OPTIONS, "resolution", "16"),
        (filled(vqvae_shapes()), OPTIONS, "sequence_length", "8"),
    ):
        lacking = {k: v for k, v in options.items() if k != name}
        file = saved(tmp_path / "file", state, lacking)
        code, _, err = invoke(file, "--out", out)
        assert (code, out.exists()) == (2, False)
        assert f"--option {name}=" in err
        assert invoke(file, "--out", out, "--option", f"{name}={value}")[0] == 0
        out.unlink()


def test_what_does_not_fit_is_named_and_nothing_is_written(invoke, tmp_path: Path) -> None:
    state, out = filled(vqvae_shapes()), tmp_path / "out.safetensors"
    broken = {**state, "pre_vq_conv.conv.bias": torch.zeros(7)}
    strange = {**state, "encoder.extra": torch.zeros(1)}
    infinite = {**state, "codebook.N": torch.full((16,), torch.inf)}
    for some, options, says in (
        (broken, OPTIONS, r"to_code.bias has shape (7,), the model needs (6,)"),
        (strange, OPTIONS, "encoder.extra is no tensor of VideoGPT's released VQ-VAE"),
        (infinite, OPTIONS, "not finite"),
        (state, {**OPTIONS, "downsample": [4, 4, 8]}, "wants 3"),
        ({"head.weight": torch.zeros(1)}, OPTIONS, "neither a VQ-VAE"),
        (prior_state(), {**PRIOR_OPTIONS, "attn_type": "sparse"}, "attn_type=sparse"),
    ):
        file = saved(tmp_path / "file", some, options)
        code, printed, err = invoke(file, "--out", out)
        assert (code, printed) == (2, "")
        assert says in err
        assert [p.name for p in tmp_path.iterdir()] == ["file"]
    assert invoke(saved(tmp_path / "file", state, OPTIONS), "--out", tmp_path / "x.pt")[0] == 2


def test_damaged_and_other_files_are_refused(invoke, tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole", filled(vqvae_shapes()), OPTIONS).read_bytes()
    file, out = tmp_path / "file", tmp_path / "out.safetensors"
    for content, says in (
        (whole[: len(whole) // 2], "no whole checkpoint"),
        (b"PK\x03\x04", "no whole checkpoint"),
        (b"hello", "does not begin as a zip"),
        (b"", "does not begin as a zip"),
    ):
        file.write_bytes(content)
        code, _, err = invoke(file, "--out", out)
        assert code == 2
        assert says in err
        assert not out.exists()
    torch.save({"weight": torch.zeros(1)}, file)
    assert "has no state_dict" in invoke(file, "--out", out)[2]
    assert "is not a file" in invoke(tmp_path / "nowhere", "--out", out)[2]


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def test_code_in_a_pickle_is_refused_and_does_not_run(invoke, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    file = saved(
        tmp_path / "file", filled(vqvae_shapes()), OPTIONS, callbacks=Evil(f"touch {mark}")
    )
    code, _, err = invoke(file, "--out", tmp_path / "out.safetensors")
    assert code == 2
    assert "system, which may run code when it is opened; it was not opened" in err
    assert not mark.exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_a_class_of_lightning_needs_no_lightning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = ModuleType(name)
    callback = type("ModelCheckpoint", (), {"__module__": name})
    vars(module)["ModelCheckpoint"] = callback
    with monkeypatch.context() as patch:  # only to write the file
        for part in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, part, ModuleType(part))
        patch.setitem(sys.modules, name, module)
        state = filled(vqvae_shapes())
        file = saved(tmp_path / "file", state, OPTIONS, callbacks={callback: {"best": 0.1}})
    assert "pytorch_lightning" not in sys.modules
    found = read_lightning(file)
    assert "pytorch_lightning" not in sys.modules
    assert found.options == OPTIONS
    assert found.state.keys() == state.keys()


def test_another_family_is_refused(monkeypatch: pytest.MonkeyPatch, capsys, tmp_path: Path) -> None:
    arguments = ["visgen-bench", "convert", "dalle", "x", "--out", "y.safetensors"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    assert 'convert knows no "dalle"' in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="name that ends so"):
        convert_videogpt(tmp_path / "x", tmp_path / "y.pt")

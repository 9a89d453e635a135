"""Which configuration a released VideoGPT checkpoint has: shapes say most, options the rest.

Widths, codes, layers, the grid, frames and classes are read from shapes (`videogpt.py` has the
names). Not in any shape are the number of heads, the downsampling of each axis, and the length and
size of clips: these are options that the training was started with.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from visgen.checkpoints.files import CheckpointError
from visgen.models.prior import PriorConfig
from visgen.models.vqvae import VQVAEConfig

Options = Mapping[str, object]
State = Mapping[str, Tensor]


def vqvae_config(
    state: State, options: Options, grid: tuple[int, int, int] | None = None
) -> VQVAEConfig:
    """Of a VQ-VAE under the released names.

    Args:
        state: Its tensors.
        options: `sequence_length`, `resolution` and, without a grid, `downsample`.
        grid: Of codes, where a prior tells it; the downsampling follows from it.

    Raises:
        CheckpointError: naming the option or key that is missing or does not fit.
    """
    codes, dim = _shape(state, "codebook.embeddings", 2)
    width = _shape(state, "encoder.conv_last.conv.weight", 5)[0]
    layers = _count(state, r"encoder\.res_stack\.(\d+)\.block\.")
    inner = _shape(state, "encoder.res_stack.0.block.2.conv.weight", 5)[0] if layers else width // 2
    frames, side = _whole(options, "sequence_length"), _whole(options, "resolution")
    if grid is None:
        downsample = _downsample(options)
    else:
        whole = (frames, side, side)
        if any(size % parts for size, parts in zip(whole, grid, strict=True)):
            raise CheckpointError(
                f"options sequence_length={frames} and resolution={side} are no multiples of the "
                f"prior's grid {grid}; give the ones it was trained with."
            )
        t, h, w = (size // parts for size, parts in zip(whole, grid, strict=True))
        downsample = (t, h, w)
    try:
        config = VQVAEConfig(
            frames=frames, size=(side, side), downsample=downsample, width=width,
            inner_width=inner, residual_layers=layers, code_dim=dim, codes=codes,
        )  # fmt: skip
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    convs = _count(state, r"encoder\.convs\.(\d+)\.")
    if convs != len(config.strides):
        raise CheckpointError(
            f"the file has {convs} convolutions in encoder.convs, downsample={downsample} wants "
            f"{len(config.strides)}; check the options downsample, sequence_length, resolution."
        )
    return config


def prior_config(state: State, options: Options) -> PriorConfig:
    """Of a prior under the released names, without the VQ-VAE in it.

    `heads` is an option that is needed; `attn_type`, `dropout` and `attn_dropout` are read if they
    are there. Attention is full if masks are stored, else as `attn_type` says.

    Raises:
        CheckpointError: naming the option or key that is missing or does not fit.
    """
    width, dim = _shape(state, "fc_in.weight", 2)
    codes = _shape(state, "fc_out.weight", 2)[0]
    t, h, w = (_shape(state, f"attn_stack.pos_embd.emb.d_{axis}", 2)[0] for axis in range(3))
    classes = _shape(state, "norm.w.weight", 2)[1] if "norm.w.weight" in state else 0
    frames, seen = 0, PriorConfig()
    if "cond_pos_embd.emb.d_0" in state:
        (frames, part), rows = (_shape(state, f"cond_pos_embd.emb.d_{i}", 2) for i in (0, 1))
        a, b, c, d = (_count(state, rf"resnet\.group{g}\.blocks\.(\d+)\.") for g in range(1, 5))
        seen = replace(
            seen,
            frame_size=4 * rows[0],
            frame_channels=3 * part,
            frame_depths=(a + 1, b + 1, c + 1, d + 1),
            cross_values=_shape(state, "attn_stack.attn_nets.0.enc_attn.w_vs.weight", 2)[0],
        )
    elif "resolution" in options:
        seen = replace(seen, frame_size=_whole(options, "resolution"))
    hidden = "attn_stack.attn_nets.0.fc_block.0.weight"
    try:
        return replace(
            seen, grid=(t, h, w), code_dim=dim, codes=codes, width=width,
            layers=_count(state, r"attn_stack\.attn_nets\.(\d+)\."),
            num_heads=_whole(options, "heads"), mlp_ratio=_shape(state, hidden, 2)[0] // width,
            dropout=_share(options, "dropout", 0.2),
            attention_dropout=_share(options, "attn_dropout", 0.3),
            sparse=_sparse(state, options), legacy_norm=True, classes=classes, frames=frames,
        )  # fmt: skip
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(str(error)) from error


def _sparse(state: State, options: Options) -> bool:
    full = any(key.endswith(".attn.attn.mask") for key in state)
    kind = options.get("attn_type", "full" if full else "sparse")
    if kind not in ("full", "sparse") or (kind == "sparse" and full):
        raise CheckpointError(
            f"option attn_type={kind}, and the file has {'' if full else 'no '}masks of full "
            "attention; it is full (with masks) or sparse (without)."
        )
    return kind == "sparse"


def _count(state: State, pattern: str) -> int:
    numbers = [int(match[1]) for key in state if (match := re.match(pattern, key))]
    return max(numbers, default=-1) + 1


def _shape(state: State, key: str, axes: int) -> tuple[int, ...]:
    if key not in state:
        raise CheckpointError(f"the file has no {key}, which released checkpoints have.")
    if state[key].ndim != axes:
        raise CheckpointError(f"{key} has shape {tuple(state[key].shape)}, not {axes} axes.")
    return tuple(state[key].shape)


def _missing(name: str, example: str) -> CheckpointError:
    return CheckpointError(
        f'the file\'s hyper-parameters have no option "{name}", which no shape tells; give it, as '
        f"in --option {name}={example}."
    )


def _whole(options: Options, name: str) -> int:
    value = options.get(name)
    if value is None:
        raise _missing(name, {"heads": "4", "sequence_length": "16"}.get(name, "64"))
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"option {name}={value!r} is no whole number of 1 or more.")
    return value


def _downsample(options: Options) -> tuple[int, int, int]:
    value = options.get("downsample")
    if value is None:
        raise _missing("downsample", "4,4,4")
    if isinstance(value, list | tuple) and len(value) == 3:
        t, h, w = value
        if isinstance(t, int) and isinstance(h, int) and isinstance(w, int):
            return t, h, w
    raise CheckpointError(f"option downsample={value!r} is not three whole numbers, as in 4,4,4.")


def _share(options: Options, name: str, usual: float) -> float:
    value = options.get(name, usual)
    if not isinstance(value, int | float) or not 0 <= value < 1:
        raise CheckpointError(f"option {name}={value!r} is no number from 0 to below 1.")
    return float(value)

"""Names of VideoGPT's released code -> ours: VQ-VAE and prior of its published checkpoints.

The three projections of each attention are one matrix here, and the three axes of axial attention
share their matrices too; everything else is renamed. Buffers of masks are dropped: a mask is
computed. Our codebook also stores that it was initialised.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from visgen.checkpoints.files import CheckpointError

AXES = "wht"  # in the order of our axial attention
_BLOCK = {"0": "norm1", "2.conv": "conv1", "3": "norm2", "5.conv": "conv2", "6": "norm3"}
_VQVAE = (
    (r"encoder\.convs\.(\d+)\.conv\.(\w+)", r"encoder.convs.\1.\2"),
    (r"encoder\.conv_last\.conv\.(\w+)", r"encoder.last.\1"),
    (r"decoder\.convts\.(\d+)\.convt\.(\w+)", r"decoder.convs.\1.\2"),
    (r"pre_vq_conv\.conv\.(\w+)", r"to_code.\1"),
    (r"post_vq_conv\.conv\.(\w+)", r"from_code.\1"),
    (r"codebook\.embeddings", r"codebook.codes"),
    (r"codebook\.N", r"codebook.counts"),
    (r"codebook\.z_avg", r"codebook.sums"),
)
_NORMS = {"pre_attn_norm": "norm1", "pre_enc_norm": "norm2", "pre_fc_norm": "norm3"}
_NORM_PARTS = {"g": "weight", "b": "bias", "w.weight": "scale.weight", "wb.weight": "shift.weight"}
_PRIOR = (
    (r"fc_in\.weight", "embed.weight"),
    (r"fc_out\.weight", "out.weight"),
    (r"attn_stack\.right_shift\.sos", "start"),
    (r"attn_stack\.pos_embd\.emb\.d_(\d)", r"positions.tables.\1"),
    (r"cond_pos_embd\.emb\.d_(\d)", r"frame_positions.tables.\1"),
    (r"resnet\.stem\.0\.weight", "frame_encoder.stem.weight"),
    (r"resnet\.stem\.1\.norm\.norm\.(\w+)", r"frame_encoder.stem_norm.\1"),
    (r"attn_stack\.attn_nets\.(\d+)\.attn\.fc\.(\w+)", r"blocks.\1.attention.out.\2"),
    (r"attn_stack\.attn_nets\.(\d+)\.enc_attn\.w_qs\.weight", r"blocks.\1.cross.query.weight"),
    (r"attn_stack\.attn_nets\.(\d+)\.enc_attn\.w_ks\.weight", r"blocks.\1.cross.key.weight"),
    (r"attn_stack\.attn_nets\.(\d+)\.enc_attn\.w_vs\.weight", r"blocks.\1.cross.value.weight"),
    (r"attn_stack\.attn_nets\.(\d+)\.enc_attn\.fc\.(\w+)", r"blocks.\1.cross.out.\2"),
    (r"attn_stack\.attn_nets\.(\d+)\.fc_block\.0\.(\w+)", r"blocks.\1.widen.\2"),
    (r"attn_stack\.attn_nets\.(\d+)\.fc_block\.2\.(\w+)", r"blocks.\1.narrow.\2"),
)
_IN_BLOCK = {
    "proj_conv": "shortcut", "proj_bnr": "shortcut_norm", "conv1": "conv1", "bnr1": "norm1",
    "conv2": "conv2", "bnr2": "norm2",
}  # fmt: skip
_QKV = ("w_qs", "w_ks", "w_vs")


def vqvae_from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A VQ-VAE's state under our names.

    Raises:
        CheckpointError: naming the first key that the released VQ-VAE does not have.
    """
    layers = _counted(state, r"encoder\.res_stack\.(\d+)\.") - 1  # the last one is a norm
    found, axial = {}, {}
    for key, tensor in state.items():
        renamed = _renamed(key, _VQVAE) or _stack_name(key, layers)
        if renamed is not None:
            found[renamed] = tensor
        elif match := re.fullmatch(r"(\w+)\.res_stack\.(\d+)\.block\.8\.attn_(\w)\.(.+)", key):
            axial.setdefault(f"{match[1]}.stack.blocks.{match[2]}.axial", {})[
                match[3], match[4]
            ] = tensor
        else:
            raise CheckpointError(f"{key} is no tensor of VideoGPT's released VQ-VAE.")
    for prefix, parts in axial.items():
        rows = [_part(parts, axis, f"{w}.weight", prefix) for axis in AXES for w in _QKV]
        found[f"{prefix}.qkv.weight"] = torch.cat(rows)
        columns = [_part(parts, axis, "fc.weight", prefix) for axis in AXES]
        found[f"{prefix}.out.weight"] = torch.cat(columns, 1)
        biases = [_part(parts, axis, "fc.bias", prefix) for axis in AXES]
        found[f"{prefix}.bias"] = torch.stack(biases)
    found["codebook.initialized"] = torch.tensor(True)
    return found


def prior_from_released(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A prior's state, without the VQ-VAE in it, under our names.

    Raises:
        CheckpointError: naming the first key that the released prior does not have.
    """
    found: dict[str, Tensor] = {}
    projections: dict[str, dict[str, Tensor]] = {}
    groups = [_counted(state, rf"resnet\.group{g}\.blocks\.(\d+)\.") + 1 for g in range(1, 5)]
    for key, tensor in state.items():
        if key.endswith(".attn.attn.mask"):
            continue
        renamed = _renamed(key, _PRIOR) or _norm_name(key) or _frame_name(key, groups)
        if renamed is not None:
            found[renamed] = tensor
        elif match := re.fullmatch(r"attn_stack\.attn_nets\.(\d+)\.attn\.(w_[qkv]s)\.weight", key):
            projections.setdefault(match[1], {})[match[2]] = tensor
        else:
            raise CheckpointError(f"{key} is no tensor of VideoGPT's released prior.")
    for number, parts in projections.items():
        if parts.keys() != set(_QKV):
            missing = ", ".join(sorted(set(_QKV) - parts.keys()))
            raise CheckpointError(f"attn_stack.attn_nets.{number}.attn has no {missing}.")
        found[f"blocks.{number}.attention.qkv.weight"] = torch.cat([parts[w] for w in _QKV])
    return found


def _renamed(key: str, rules: tuple[tuple[str, str], ...]) -> str | None:
    for pattern, name in rules:
        if match := re.fullmatch(pattern, key):
            return match.expand(name)
    return None


def _counted(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers from 0 a pattern's group takes."""
    numbers = [int(match[1]) for key in state if (match := re.match(pattern, key))]
    return max(numbers, default=-1) + 1


def _stack_name(key: str, layers: int) -> str | None:
    match = re.fullmatch(r"(encoder|decoder)\.res_stack\.(\d+)\.(.+)", key)
    if match is None:
        return None
    side, number, rest = match[1], int(match[2]), match[3]
    if number == layers and not rest.startswith("block."):
        return f"{side}.stack.norm.{rest}"
    inner = re.fullmatch(r"block\.(0|2\.conv|3|5\.conv|6)\.(\w+)", rest)
    return None if inner is None else f"{side}.stack.blocks.{number}.{_BLOCK[inner[1]]}.{inner[2]}"


def _norm_name(key: str) -> str | None:
    if match := re.fullmatch(r"norm\.(g|b|w\.weight|wb\.weight)", key):
        return f"norm.{_NORM_PARTS[match[1]]}"
    pattern = r"attn_stack\.attn_nets\.(\d+)\.(\w+_norm)\.(g|b|w\.weight|wb\.weight)"
    match = re.fullmatch(pattern, key)
    if match is None or match[2] not in _NORMS:
        return None
    return f"blocks.{match[1]}.{_NORMS[match[2]]}.{_NORM_PARTS[match[3]]}"


def _frame_name(key: str, groups: list[int]) -> str | None:
    """Blocks of the four groups are counted through here; `groups` are their lengths."""
    pattern = r"resnet\.group(\d)\.(start_block|blocks\.(\d+))\.(\w+)\.(weight|norm\.norm\.\w+)"
    match = re.fullmatch(pattern, key)
    if match is None or match[4] not in _IN_BLOCK or not 1 <= int(match[1]) <= 4:
        return None
    number = sum(groups[: int(match[1]) - 1]) + (0 if match[3] is None else int(match[3]) + 1)
    name = match[5].removeprefix("norm.norm.")
    return f"frame_encoder.blocks.{number}.{_IN_BLOCK[match[4]]}.{name}"


def _part(parts: Mapping[tuple[str, str], Tensor], axis: str, name: str, where: str) -> Tensor:
    if (axis, name) not in parts:
        raise CheckpointError(f"{where}: attn_{axis}.{name} is missing.")
    return parts[axis, name]

"""Released checkpoints to our weight files, and the preset that they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from visgen.checkpoints import CheckpointError, save_weights
from visgen.checkpoints.lightning import LightningFile, read_lightning
from visgen.checkpoints.released_configs import prior_config, vqvae_config
from visgen.checkpoints.videogpt import prior_from_released, vqvae_from_released
from visgen.checkpoints.weights import check_shapes, part_states
from visgen.models.videogpt import PRESETS, VideoGPTConfig
from visgen.models.vqvae import VQVAEConfig

_INSIDE = "vqvae."  # of a prior's file: the VQ-VAE whose codes it models


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        path: The file, with parts `vqvae` and, of a prior's file, `prior`.
        sha256: Of that file.
        presets: Presets that the weights fit; none if the configuration is no preset's.
        config: The configuration, of both parts or of the VQ-VAE alone.
        notes: What else there is to know.
    """

    path: Path
    sha256: str
    presets: tuple[str, ...]
    config: VideoGPTConfig | VQVAEConfig
    notes: tuple[str, ...] = ()

    def line(self) -> str:
        """One line for the user."""
        kind = "VQ-VAE and prior" if isinstance(self.config, VideoGPTConfig) else "VQ-VAE"
        which = f"preset {', '.join(self.presets)}" if self.presets else f"no preset: {self.config}"
        return f"{self.path}: {kind}, {which}"


def convert_videogpt(
    file: Path, out: Path, *, vqvae: Path | None = None, options: Mapping[str, object] | None = None
) -> Converted:
    """Convert a checkpoint of VideoGPT's released code; `out` appears whole or not at all.

    Args:
        file: A VQ-VAE's or a prior's. A prior's file holds its VQ-VAE too.
        out: The .safetensors file to write.
        vqvae: The VQ-VAE's own file, for a prior's file without one.
        options: Hyper-parameters that the file lacks, or has wrong; they overrule it.

    Raises:
        CheckpointError: for files or options that cannot be used.
        OSError: if `out` cannot be written.
    """
    if out.suffix != ".safetensors":
        raise CheckpointError(f"{out} would hold safetensors; give a name that ends so.")
    source = read_lightning(file)
    given = {**source.options, **(options or {})}
    if any(key.startswith("codebook.") for key in source.state):
        if vqvae is not None:
            raise CheckpointError(f"{file} is a VQ-VAE itself; leave --vqvae {vqvae} out.")
        config = vqvae_config(source.state, given)
        states = _under("vqvae", vqvae_from_released(source.state))
        _compare(states, {"vqvae": config}, file)
        presets = tuple(name for name, preset in PRESETS.items() if preset.vqvae == config)
        return _written(out, states, presets, config, ())
    if not any(key.startswith("attn_stack.") for key in source.state):
        first = next(iter(source.state))
        raise CheckpointError(
            f"{file} is neither a VQ-VAE (codebook.*) nor a prior (attn_stack.*) of VideoGPT's "
            f"released code; its first tensor is {first}."
        )
    inside, notes = _vqvae_of(source, file, vqvae)
    prior_state = {k: t for k, t in source.state.items() if not k.startswith(_INSIDE)}
    prior = prior_config(prior_state, given)
    first_stage = vqvae_config(inside, given, prior.grid)
    try:
        whole = VideoGPTConfig(vqvae=first_stage, prior=prior)
    except ValueError as error:
        raise CheckpointError(f"{file}: {error}") from error
    states = _under("vqvae", vqvae_from_released(inside))
    states |= _under("prior", prior_from_released(prior_state))
    _compare(states, {"vqvae": first_stage, "prior": prior}, file)
    presets = tuple(name for name, preset in PRESETS.items() if preset == whole)
    return _written(out, states, presets, whole, notes)


def _vqvae_of(
    source: LightningFile, file: Path, vqvae: Path | None
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The VQ-VAE's tensors: the prior's file's own before those of a file beside it."""
    inside = {k.removeprefix(_INSIDE): t for k, t in source.state.items() if k.startswith(_INSIDE)}
    if inside:
        note = f"{file} holds its VQ-VAE itself, which was taken; --vqvae {vqvae} was not read"
        return inside, () if vqvae is None else (note,)
    if vqvae is None:
        raise CheckpointError(
            f"{file} is a prior without its VQ-VAE (no vqvae.*); give the VQ-VAE's file: "
            "--vqvae FILE."
        )
    return read_lightning(vqvae).state, ()


def _under(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{part}.{name}": tensor for name, tensor in state.items()}


def _compare(states: Mapping[str, Tensor], parts: Mapping[str, object], file: Path) -> None:
    """Refuse what the model of this configuration would refuse, and values that are not finite."""
    with torch.device("meta"):
        networks = {name: config.build() for name, config in parts.items()}  # type: ignore[attr-defined]
    check_shapes(states, part_states(networks), file)
    for name, tensor in states.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{file}: {name} has values that are not finite.")


def _written(
    out: Path,
    states: Mapping[str, Tensor],
    presets: tuple[str, ...],
    config: VideoGPTConfig | VQVAEConfig,
    notes: tuple[str, ...],
) -> Converted:
    metadata = {"presets": ",".join(presets), "config": json.dumps(asdict(config), sort_keys=True)}
    return Converted(out, save_weights(out, states, metadata), presets, config, notes)

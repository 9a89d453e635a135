"""Activation checkpointing: a block's activations are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def maybe_recompute(block: Callable[..., Tensor], *inputs: object, recompute: bool) -> Tensor:
    """`block(*inputs)`, whose activations are kept only if `recompute` is False.

    Our blocks draw noise from counters, so the second computation sees the same noise and no
    generator state needs to be kept.
    """
    if not (recompute and torch.is_grad_enabled()):
        return block(*inputs)
    out = checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
    return out  # type: ignore[return-value]

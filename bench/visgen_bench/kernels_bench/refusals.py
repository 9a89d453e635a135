"""Why a backend cannot take part, in one sentence: found before anything is run."""

from __future__ import annotations

from visgen_bench.kernels_bench.names import (
    COMPILED,
    INSTALLED,
    OURS,
    SDPA,
    is_installed,
    split_sdpa,
)
from visgen_bench.kernels_bench.problem import DTYPES
from visgen_bench.kernels_bench.request import Group
from visgen_kernels import Blocks1d, Blocks2d, Causal, Full, SlidingWindow, unsupported
from visgen_kernels.shapes import Shape


def refusal(name: str, shape: Shape, group: Group) -> str | None:
    """The reason, or None if the backend can be tried."""
    codes = shape.kind == "codebook"
    if group.direction != "forward" and shape.kind != "attention":
        index = "the nearest code is an index, which has no derivative"
        return index if codes else "a decoding step is not differentiated"
    if name in OURS:
        return unsupported(
            name,
            device=group.device_type,
            dtype=DTYPES[group.dtype],
            head_dims=(shape.d, shape.d_v),
            second_derivative=group.direction == "double_backward",
        )
    if codes != (name == "distances"):
        return f"{shape.id} is {'a look-up of codes' if codes else 'attention'}, {name} is not"
    if name in SDPA:
        return _of_sdpa(name, group)
    return _of_peer(name, shape, group)


def _of_sdpa(name: str, group: Group) -> str | None:
    forced, _ = split_sdpa(name)
    if group.direction == "double_backward" and forced != "math":
        return "only SDPA's MATH backend has a second derivative; compare with sdpa-math"
    if forced in ("efficient", "cudnn") and group.device_type == "cpu":
        return f"SDPA's {forced} backend needs a GPU; a CPU has flash and math"
    return None


def _of_peer(name: str, shape: Shape, group: Group) -> str | None:
    mask = shape.made_mask
    if name == "sdpa-augmented" and not shape.key_bias:
        return f"{shape.id} has no key bias to augment with"
    if name == "sdpa-unfolded" and not isinstance(mask, Blocks1d | Blocks2d):
        return f"{shape.id} has no block-local mask to unfold"
    if group.direction == "double_backward" and name not in ("eager", "distances"):
        return f"{name} has no second derivative"
    if name == "flex" and group.device_type == "cpu":
        return "FlexAttention is compiled for a GPU here; on a CPU it has no backward pass"
    if name in INSTALLED:
        return _of_package(name, shape, group)
    return _without_compiler(group) if name in COMPILED else None


def _without_compiler(group: Group) -> str | None:
    import shutil

    if group.device_type != "cpu" or any(shutil.which(c) for c in ("g++", "clang++", "c++")):
        return None
    return "torch.compile on a CPU needs a C++ compiler (g++ or clang++), none found"


def _of_package(name: str, shape: Shape, group: Group) -> str | None:
    if not is_installed(name):
        return f"{name} is not installed (it is no dependency; pip install {name})"
    if group.device_type == "cpu":
        return f"{name} needs a GPU"
    if name == "natten":
        return "NATTEN's windows keep their size at the borders, which is other maths"
    mask = shape.made_mask
    windowed = isinstance(mask, SlidingWindow) and mask.global_tokens == 0
    simple = isinstance(mask, Full | Causal) or (windowed and name == "flash_attn")
    if isinstance(mask, Causal) and (mask.group != 1 or shape.n_q != shape.n_k):
        simple = False
    if not simple or shape.bias or shape.key_bias or shape.key_lengths:
        return f"{name} cannot do {shape.extras}"
    if name == "flash_attn" and shape.d != shape.d_v:
        return f"flash_attn wants one head dimension, got {shape.d} and {shape.d_v}"
    if name == "flash_attn" and group.dtype == "fp32":
        return "flash_attn computes in bf16 and fp16"
    return None

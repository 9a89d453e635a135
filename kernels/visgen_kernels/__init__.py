"""Fused attention and codebook kernels, with their definitions in plain PyTorch."""

from visgen_kernels.attention import (
    DENSE_FLOPS,
    ImplementationUnavailable,
    attention,
    attention_flops,
    resolve,
    unsupported,
)
from visgen_kernels.biases import RelativePosition2d
from visgen_kernels.codebook import code_sums, nearest_code
from visgen_kernels.decode import attention_decode
from visgen_kernels.key_blocks import KeyBlocks
from visgen_kernels.layouts import Axis, Sequence, Windows
from visgen_kernels.masks import (
    BlockList,
    Blocks1d,
    Blocks2d,
    Causal,
    Full,
    SameGroup,
    SlidingWindow,
)

__all__ = [
    "DENSE_FLOPS",
    "Axis",
    "BlockList",
    "Blocks1d",
    "Blocks2d",
    "Causal",
    "Full",
    "ImplementationUnavailable",
    "KeyBlocks",
    "RelativePosition2d",
    "SameGroup",
    "Sequence",
    "SlidingWindow",
    "Windows",
    "attention",
    "attention_decode",
    "attention_flops",
    "code_sums",
    "nearest_code",
    "resolve",
    "unsupported",
]

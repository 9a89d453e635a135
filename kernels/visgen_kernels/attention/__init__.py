"""Attention behind one call: layouts, masks and biases, on several implementations."""

from visgen_kernels.attention.entry import (
    ImplementationUnavailable,
    attention,
    resolve,
    unsupported,
)
from visgen_kernels.attention.flops import DENSE_FLOPS, attention_flops

__all__ = [
    "DENSE_FLOPS",
    "ImplementationUnavailable",
    "attention",
    "attention_flops",
    "resolve",
    "unsupported",
]

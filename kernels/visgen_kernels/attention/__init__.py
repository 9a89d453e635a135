"""Attention behind one call: layouts, masks and biases, on several implementations."""

from visgen_kernels.attention.entry import attention, resolve, unsupported

__all__ = ["attention", "resolve", "unsupported"]

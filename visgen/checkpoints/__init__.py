"""Weights in safetensors files: written atomically, checked by name and shape, never unpickled."""

from visgen.checkpoints.files import CheckpointError, check, read, sha256_of, write
from visgen.checkpoints.weights import load_weights, save_weights

__all__ = [
    "CheckpointError",
    "check",
    "load_weights",
    "read",
    "save_weights",
    "sha256_of",
    "write",
]

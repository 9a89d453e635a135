"""The backends that can stand in a comparison, by name, and who is compared by default.

| name | what |
|---|---|
| triton, chunked | ours, called as models call them: attention, decoding, codes |
| eager | heads permuted, scores, bias, mask, softmax, product: every n x n array exists |
| sdpa | torch's SDPA, from the model's layout and back |
| sdpa-math, -flash, -efficient, -cudnn | the same with one backend forced |
| ...-copied | the same with q, k, v made contiguous first |
| ...-kernel | SDPA alone: contiguous head-major tensors, a mask made before, no copies |
| sdpa-augmented | a key bias as one more column of q and k (L2 scores), padded to 8 |
| sdpa-unfolded | block-local masks as one call over blocks with the keys they can see |
| sdpa-compiled, flex | SDPA and FlexAttention under torch.compile |
| flash_attn, xformers, natten | only if installed |
| distances | of a codebook: a matrix of distances with argmin |

SDPA is handed strided views; layouts that are no view are copied.
"ours" on the command line is triton on a GPU and chunked on a CPU.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from visgen_kernels.shapes import Shape

SHARE = "attention's share"  # what a run of `kernels share` calls itself in its configuration
OURS = ("triton", "chunked")
FORCED = ("math", "flash", "efficient", "cudnn")
HOWS = ("", "copied", "kernel")
SDPA = tuple(
    "-".join(part for part in ("sdpa", forced, how) if part)
    for forced in ("", *FORCED)
    for how in HOWS
)
INSTALLED = ("flash_attn", "xformers", "natten")
COMPILED = ("sdpa-compiled", "flex")
BACKENDS = (
    *OURS,
    "eager",
    *SDPA,
    "sdpa-augmented",
    "sdpa-unfolded",
    *COMPILED,
    *INSTALLED,
    "distances",
)
# Baselines that a speed-up is stated against, where they were measured.
_ON_CPU = ("sdpa", "sdpa-copied", "sdpa-kernel", "sdpa-math")
_ON_GPU = (
    "sdpa", "sdpa-kernel", "sdpa-flash", "sdpa-flash-kernel", "sdpa-efficient",
    "sdpa-efficient-kernel", "sdpa-cudnn", "sdpa-cudnn-kernel", "sdpa-math",
)  # fmt: skip


def split_sdpa(name: str) -> tuple[str, str]:
    """(forced backend or "", how) of a name in `SDPA`."""
    parts = name.split("-")[1:]
    forced = next((part for part in parts if part in FORCED), "")
    return forced, next((part for part in parts if part in HOWS), "")


def is_installed(package: str) -> bool:
    """Can it be imported? It is not imported here."""
    return importlib.util.find_spec(package) is not None


def default_backends(shape: Shape, direction: str, device_type: str) -> tuple[str, ...]:
    """Ours, and every peer that can do the maths in this direction on this kind of device."""
    gpu = device_type != "cpu"
    ours = "triton" if gpu else "chunked"
    if shape.kind == "codebook":
        return (ours, "distances")
    if direction == "double_backward":
        return (ours, "eager", "sdpa-math")
    names = [ours, "eager", *(_ON_GPU if gpu else _ON_CPU)]
    if shape.key_bias:
        names.append("sdpa-augmented")
    if type(shape.made_mask).__name__ in ("Blocks1d", "Blocks2d"):
        names.append("sdpa-unfolded")
    if gpu:
        names += COMPILED
    return (*names, *(name for name in INSTALLED if gpu and is_installed(name)))

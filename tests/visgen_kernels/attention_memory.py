"""Peak memory of attention calls, measured in this process (run by test_attention_memory).

    attention_memory.py views | penalty

Prints one line of JSON: megabytes that the resident set's peak grew by, results included.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from visgen_kernels import Axis, Windows, attention
from visgen_kernels.layouts import Layout


def status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def growth(call: Callable[[], object]) -> float:
    """Megabytes (10^6 bytes) by which one call raises the peak."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = status("VmRSS")
    kept = call()
    grown = (status("VmHWM") - before) * 1024 / 1e6
    del kept
    return grown


def views(layout: Layout, *grid: int) -> dict[str, float]:
    qkv = torch.ones(1, *grid, 3, 8, 64).requires_grad_()
    grad = torch.ones(1, *grid, 8, 64)

    def infer() -> Tensor:
        with torch.no_grad():
            return attention(qkv, layout=layout)

    out = attention(qkv, layout=layout)
    return {
        "tensor": grad.numel() * 4 / 1e6,
        "infer": growth(infer),
        "backward": growth(lambda: torch.autograd.grad(out, qkv, grad)),
    }


def penalty() -> float:
    """First and second derivative at 4 heads x 4096 tokens x 48."""
    qkv = torch.ones(1, 4096, 3, 4, 48).requires_grad_()
    grad = torch.ones(1, 4096, 4, 48)

    def call() -> object:
        (first,) = torch.autograd.grad(attention(qkv), qkv, grad, create_graph=True)
        return torch.autograd.grad(first, qkv, torch.ones_like(first))

    return growth(call)


def main() -> None:
    torch.set_num_threads(1)
    attention(torch.ones(1, 64, 3, 2, 8).requires_grad_()).sum().backward()  # loads what is lazy
    if sys.argv[1] == "penalty":
        found: object = penalty()
    else:
        found = {
            "temporal": views(Axis(1), 16, 2000),
            "spatial": views(Axis(2), 160, 200),
            "windows": views(Windows(10, 10), 160, 200),
        }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()

"""Peers that need a compiler or a package: compiled SDPA, FlexAttention, flash_attn, xformers.

None of these packages is a dependency; they are compared with where they are installed.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
import torch._functorch.config
from torch import Tensor

from visgen_bench.kernels_bench.calls import Side
from visgen_bench.kernels_bench.problem import Problem
from visgen_kernels import BlockList, Causal, Full, SameGroup, SlidingWindow

# Of FlexAttention: (batch, head, query, key) -> bool; (score, batch, head, query, key) -> score.
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
ScoreMod = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def make_side(name: str, problem: Problem) -> Side:
    """Compiled SDPA, FlexAttention, flash_attn or xformers."""
    # A compiled backward pass may give its buffers away, unless it is to run again, as here.
    torch._functorch.config.donated_buffer = False
    compiled = True
    if name == "sdpa-compiled":
        forward = torch.compile(compiled_function(problem), dynamic=False)
    elif name == "flex":
        forward = flex(problem, compiled=True)
    else:
        compiled = False
        forward = {"flash_attn": _flash_attn, "xformers": _xformers}[name](problem)
    return Side(
        forward=forward,
        leaves=problem.leaves,
        grad=problem.grad,
        cotangents=problem.cotangents,
        compiled=compiled,
    )


def compiled_function(problem: Problem) -> Callable[[], Tensor]:
    """SDPA from the model's layout and back, for torch.compile."""
    from visgen_bench.kernels_bench.sides import sdpa

    # Buffers are made outside of what is compiled.
    _ = problem.hidden, problem.bias_index
    return lambda: sdpa(problem)


def flex(problem: Problem, *, compiled: bool) -> Callable[[], Tensor]:
    """FlexAttention; not compiled it is slow, and right."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    s, hides = problem.shape, mask_mod(problem)
    block = None
    if hides is not None:
        each = isinstance(problem.mask, SameGroup) or problem.lengths is not None
        sequences = s.sequences if each else None
        block = create_block_mask(
            hides, sequences, None, s.n_q, s.n_k, device=str(problem.device), _compile=compiled
        )
    score = score_mod(problem)
    run: Any = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention

    def forward() -> Tensor:
        q, k, v = problem.heads()
        return problem.join(run(q, k, v, score_mod=score, block_mask=block, scale=problem.scale))

    return forward


def mask_mod(problem: Problem) -> MaskMod | None:
    """Mask and key lengths as FlexAttention wants them; None if all is visible."""
    seen, lengths = _seen(problem), problem.lengths
    if lengths is None:
        return seen
    per_sample = problem.shape.layout.sequences(problem.shape.key_grid or problem.shape.grid)

    def within(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        present = j < lengths[b // per_sample]
        return present if seen is None else present & seen(b, h, i, j)

    return within


def _seen(problem: Problem) -> MaskMod | None:
    mask, shift = problem.mask, problem.shape.n_k - problem.shape.n_q
    if isinstance(mask, Full):
        return None
    if isinstance(mask, SameGroup):
        ids = mask.sequences(problem.shape.layout).to(problem.device)
        return lambda b, h, i, j: ids[b % len(ids), i] == ids[b % len(ids), j]
    if isinstance(mask, BlockList):
        listed, block = mask.listed().to(problem.device), mask.block
        return lambda b, h, i, j: listed[i // block, j // block] & (j <= i)
    return lambda b, h, i, j: mask.visible(i + shift, j)


def score_mod(problem: Problem) -> ScoreMod | None:
    """The biases, taken from their trained tensors; None if there are none."""
    table, key_bias = problem.leaves.get("table"), None
    if problem.shape.key_bias:
        bias = problem.leaves["key_bias"]
        key_bias = problem.shape.layout.split(bias, problem.axes)  # (z, n, h)
    if table is None and key_bias is None:
        return None
    rows, columns = problem.shape.bias or (1, 1)

    def changed(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        if table is not None:
            y = i // columns - j // columns + rows - 1
            x = i % columns - j % columns + columns - 1
            score = score + table[y * (2 * columns - 1) + x, h]
        if key_bias is not None:
            score = score + key_bias[b, j, h]
        return score

    return changed


def _sequences(problem: Problem) -> list[Tensor]:
    """q, k, v (z, n, h, d), as flash_attn and xformers take them."""
    return [problem.shape.layout.split(x, problem.axes) for x in problem.tokens()]


def _joined(problem: Problem, out: Tensor) -> Tensor:
    s = problem.shape
    return s.layout.join(out, s.batch, s.grid).contiguous()


def _flash_attn(problem: Problem) -> Callable[[], Tensor]:
    run = importlib.import_module("flash_attn").flash_attn_func
    mask, window = problem.mask, (-1, -1)
    if isinstance(mask, SlidingWindow):
        window = (mask.radius, mask.radius)
    causal = isinstance(mask, Causal)
    return lambda: _joined(
        problem,
        run(
            *_sequences(problem),
            softmax_scale=problem.scale,
            causal=causal,
            window_size=window,
        ),
    )


def _xformers(problem: Problem) -> Callable[[], Tensor]:
    ops = importlib.import_module("xformers.ops")
    bias = ops.LowerTriangularMask() if isinstance(problem.mask, Causal) else None
    return lambda: _joined(
        problem,
        ops.memory_efficient_attention(*_sequences(problem), attn_bias=bias, scale=problem.scale),
    )

"""Every backend over a problem: ours, eager PyTorch, and the routes through torch's SDPA.

All but `-kernel` ones start from the projections as a Linear layer leaves them and end token-major,
so each side pays for the layout copies that it needs. Masks are made once; a trained bias is
gathered from its table in every call, as the models do that know no fused bias.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from visgen_bench.kernels_bench.calls import Side
from visgen_bench.kernels_bench.names import SDPA, split_sdpa
from visgen_bench.kernels_bench.problem import Problem
from visgen_kernels import Blocks1d, Blocks2d, attention
from visgen_kernels.decode import attention_decode

_FORCED = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


def make_side(name: str, problem: Problem) -> Side:
    """A backend's side of a comparison; `refusals.refusal` said that it can be made."""
    if name in SDPA:
        return _sdpa_side(name, problem)
    forwards: dict[str, Callable[[Problem], Tensor]] = {
        "eager": eager,
        "sdpa-augmented": augmented,
        "distances": distances,
    }
    if name in forwards:
        forward = forwards[name]
        return _whole(problem, lambda: forward(problem))
    if name == "sdpa-unfolded":
        return _unfolded_side(problem)
    if name in ("triton", "chunked"):
        return _whole(problem, lambda: ours(problem, name), compiled=name == "triton")
    from visgen_bench.kernels_bench import other_peers

    return other_peers.make_side(name, problem)


def _whole(problem: Problem, forward: Callable[[], Tensor], *, compiled: bool = False) -> Side:
    return Side(
        forward=forward,
        leaves=problem.leaves,
        grad=problem.grad,
        cotangents=problem.cotangents,
        compiled=compiled,
    )


def ours(problem: Problem, implementation: str) -> Tensor:
    """One call of `visgen_kernels`: attention (packed where the shape is), decoding, codes."""
    if problem.shape.kind == "codebook":
        from visgen_kernels.codebook import nearest_code

        vectors, codes = problem.leaves["q"], problem.leaves["k"]
        return nearest_code(vectors, codes, implementation=implementation)
    if problem.shape.kind == "decode":
        return attention_decode(
            *problem.tokens(), problem.cached, scale=problem.scale, implementation=implementation
        )
    tensors = (problem.leaves["qkv"],) if problem.packed else problem.tokens()
    return attention(*tensors, **problem.arguments(), implementation=implementation)


def eager(problem: Problem) -> Tensor:
    """Plain PyTorch, as the models' own repositories write it."""
    q, k, v = problem.heads()
    scores = (q @ k.mT) * problem.scale
    for term in (problem.position_bias(), problem.key_shift()):
        if term is not None:
            scores = scores + term
    if problem.hidden is not None:
        scores = scores.masked_fill(problem.hidden, -torch.inf)
    return problem.join(scores.softmax(dim=-1) @ v)


def sdpa(problem: Problem, *, copied: bool = False) -> Tensor:
    """SDPA with whatever mask it needs materialised."""
    q, k, v = problem.heads()
    if copied:
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    added = None if problem.is_causal else problem.added()
    out = scaled_dot_product_attention(
        q, k, v, attn_mask=added, is_causal=problem.is_causal, scale=problem.scale
    )
    return problem.join(out)


def _sdpa_side(name: str, problem: Problem) -> Side:
    forced, how = split_sdpa(name)
    side = _kernel_only(problem) if how == "kernel" else None

    def forward() -> Tensor:
        return side.forward() if side else sdpa(problem, copied=how == "copied")

    def only() -> Tensor:
        with sdpa_kernel(_FORCED[forced]):
            return forward()

    chosen = only if forced else forward
    if side is None:
        return _whole(problem, chosen)
    return Side(
        forward=chosen,
        leaves=side.leaves,
        grad=side.grad,
        cotangents=side.cotangents,
        whole=False,
    )


def _kernel_only(problem: Problem) -> Side:
    """SDPA on tensors that lie as it likes them best; its mask is made before."""
    with torch.no_grad():
        made = (x.clone(memory_format=torch.contiguous_format) for x in problem.heads())
        q, k, v = (x.requires_grad_() for x in made)
        added = None if problem.is_causal else problem.added()
    leaves = {"q": q, "k": k, "v": v}
    if added is not None and added.is_floating_point():
        leaves["added"] = added = added.clone(memory_format=torch.contiguous_format)
        added.requires_grad_()
    layout, axes = problem.shape.layout, problem.axes
    grad = layout.split(problem.grad, axes).transpose(1, 2).contiguous()
    return Side(
        forward=lambda: scaled_dot_product_attention(
            q, k, v, attn_mask=added, is_causal=problem.is_causal, scale=problem.scale
        ),
        leaves=leaves,
        grad=grad,
        cotangents={name: torch.randn_like(leaves[name]) for name in "qkv"},
        whole=False,
    )


def augmented(problem: Problem) -> Tensor:
    """A key bias c as a column: [scale q, 1] . [k, c] = scale q.k + c, padded to a multiple of 8.

    v gets as many columns of zeros, because the fused backends want one head dimension.
    """
    q, k, v = problem.heads()
    shift = problem.key_shift()
    if shift is None:
        raise ValueError(f"{problem.shape.id} has no key bias to augment with.")
    missing = -(q.shape[-1] + 1) % 8
    ones = q.new_ones(*q.shape[:-1], 1)
    q = pad(torch.cat([q * problem.scale, ones], -1), (0, missing))
    k = pad(torch.cat([k, shift.mT], -1), (0, missing))
    width = v.shape[-1]
    v = pad(v, (0, q.shape[-1] - width))
    added = problem.added(with_key_bias=False)
    out = scaled_dot_product_attention(q, k, v, attn_mask=added, scale=1.0)
    return problem.join(out[..., :width])


def _unfolded_side(problem: Problem) -> Side:
    """Block-local masks over a sequence: blocks of queries, each with the keys it can see."""
    mask = problem.mask
    if isinstance(mask, Blocks1d):
        own, keys = _pieces_1d(mask, problem.shape.n_q)
    elif isinstance(mask, Blocks2d):
        own, keys = _pieces_2d(mask)
    else:
        raise ValueError(f"{problem.shape.id} has no block-local mask to unfold.")
    own, keys = own.to(problem.device), keys.to(problem.device)  # (blocks, rows), (blocks, keys)
    inside = keys.clamp(min=0)
    seen = mask.visible(own[:, :, None], inside[:, None]) & (keys >= 0)[:, None]
    seen = seen.repeat(problem.shape.sequences, 1, 1)[:, None]
    back = torch.argsort(own.flatten())

    def forward() -> Tensor:
        q, k, v = problem.heads()
        q = q[:, :, own].transpose(1, 2).flatten(0, 1)  # (z blocks, h, rows, d)
        k, v = (x[:, :, inside].transpose(1, 2).flatten(0, 1) for x in (k, v))
        out = scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=problem.scale)
        out = out.unflatten(0, (-1, len(own))).transpose(1, 2).flatten(2, 3)
        return problem.join(out[:, :, back])

    return _whole(problem, forward)


def _pieces_1d(mask: Blocks1d, n: int) -> tuple[Tensor, Tensor]:
    """Tokens of each block, and of it and its predecessor; -1 where there is none."""
    own = torch.arange(n).view(-1, mask.block)
    return own, torch.cat([own - mask.block, own], 1).clamp(min=-1)


def _pieces_2d(mask: Blocks2d) -> tuple[Tensor, Tensor]:
    """Tokens of each block, and of the rectangle that its strips lie in; -1 beyond the map."""
    (height, width), (rows, cols), (above, left) = mask.map, mask.query, mask.flange
    number = torch.arange(height * width).view(height, width)
    own = number.unfold(0, rows, rows).unfold(1, cols, cols).reshape(-1, rows * cols)
    wide = pad(number, (left, left, above, 0), value=-1)
    around = wide.unfold(0, rows + above, rows).unfold(1, cols + 2 * left, cols)
    return own, around.reshape(len(own), -1)


def distances(problem: Problem) -> Tensor:
    """Nearest codes by the whole matrix |e|^2 - 2 z.e: int64 (n,)."""
    z, codes = problem.leaves["q"], problem.leaves["k"]
    return torch.addmm(codes.square().sum(-1)[None], z, codes.mT, alpha=-2.0).argmin(-1)

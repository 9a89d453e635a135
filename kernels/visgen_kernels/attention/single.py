"""Calls whose scores are all one chunk: the maths of `chunked`, every array once, without a walk.

Around a short call the walk over blocks, tiles and heads costs more than the arithmetic. Here every
tensor is copied as (items, n, d), one item per sequence and head, and each product is one call.
Where something hidden may have leaked, as 0 * NaN, the answer is None, and `chunked` looks closer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from visgen_kernels.attention.chunk import Scratch
from visgen_kernels.attention.gradients import Cotangents, Needs
from visgen_kernels.attention.problem import Call, Geometry, all_finite, key_shift
from visgen_kernels.biases import reduce_square, square_bias
from visgen_kernels.dropout import keep_factors
from visgen_kernels.masks import Full, one_tile, visible


def takes(call: Call, q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Is it such a call?"""
    sizes = Geometry(call.layout, q.shape, k.shape, v.shape[-1])
    if not sizes.single or call.mask.leaves_empty_rows(sizes.n_q, sizes.n_k):
        return False
    return one_tile(call.mask, sizes.n_q)


def forward(
    call: Call, q: Tensor, k: Tensor, v: Tensor, *, with_lse: bool
) -> tuple[Tensor, Tensor, Tensor] | None:
    """As `chunked.forward`, which keeps the weights."""
    single = _Single(call, q, k, v)
    kept = single.like.new_empty(single.scores)
    scores = single.logits(kept.flatten(0, 1))
    lse = single.like.new_empty(0)
    if with_lse:
        lse = single.joined(scores.logsumexp(-1), q.shape[:-1], single.dtype)
    weights = torch.softmax(scores, -1, out=scores)
    out = single.product("o", single.dropped(weights), single.v)
    if single.guarded and not all_finite(out):
        return None
    return single.joined(out, (*q.shape[:-1], v.shape[-1]), q.dtype), lse, kept


def backward(
    call: Call,
    grad: Tensor,
    kept: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    needs: Needs,
    packed: bool,
) -> list[Tensor] | None:
    """As `chunked.backward`, from the weights that were kept."""
    single = _Single(call, q, k, v)
    p, g, scale = kept.flatten(0, 1), single.items(grad, "g"), call.scale
    dq = dk = dv = ds = None
    if needs.v:
        dv = single.product("dv", single.dropped(p).mT, g)
    if needs.scores:
        ds = single.dropped_in_place(single.product("ds", g, single.v.mT))
        softmax_backward(ds, p)
        if needs.q:
            dq = single.product("dq", ds, single.k, scale)
        if needs.k:
            dk = single.product("dk", ds.mT, single.q, scale)
    return single.results((dq, dk, dv), ds, needs, packed)


def double_backward(
    call: Call,
    cotangents: Cotangents,
    grad: Tensor,
    out: Tensor,
    kept: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    needs_grad: bool,
    needs: Needs,
    packed: bool,
) -> list[Tensor] | None:
    """As `chunked_double.double_backward`, whose names these are, from the kept weights."""
    single = _Single(call, q, k, v)
    p, g, scale = kept.flatten(0, 1), single.items(grad, "g"), call.scale
    given = zip((cotangents.q, cotangents.k, cotangents.v), "uwx", strict=True)
    u, w, x = (None if c is None else single.items(c, name) for c, name in given)
    n = single.score_cotangent(cotangents, u, w)
    softmax_backward(n, p)
    dropped_n = single.dropped(n)
    first, gq, gk, gv, gs = [], None, None, None, None
    if needs.v:
        gv = single.product("gv", dropped_n.mT, g)
    if needs_grad:
        gg = single.product("gg", dropped_n, single.v)
        if x is not None:
            gg.baddbmm_(single.dropped(p), x)
        first = [single.joined(gg, grad.shape, grad.dtype)]
    if needs.scores:
        d = single.dropped_in_place(single.product("d", g, single.v.mT))
        d.sub_(single.items(out, "o").mul_(g).sum(-1, keepdim=True))
        z, ds = n.mul_(d), d.mul_(p)
        if x is not None:
            z.addcmul_(single.dropped_in_place(single.product("r", g, x.mT)), p)
        gs = z.addcmul_(p, z.sum(-1, keepdim=True), value=-1.0)
        if needs.q:
            gq = single.product("gq", gs, single.k, scale)
            if w is not None:
                gq.baddbmm_(ds, w, alpha=scale)
        if needs.k:
            gk = single.product("gk", gs.mT, single.q, scale)
            if u is not None:
                gk.baddbmm_(ds.mT, u, alpha=scale)
    results = single.results((gq, gk, gv), gs, needs, packed)
    if results is None or (single.guarded and not all_finite(*first)):
        return None
    return first + results


class _Single(Geometry):
    """Tensors of a call as (items, n, d), and what makes scores and gradients of them."""

    def __init__(self, call: Call, q: Tensor, k: Tensor, v: Tensor) -> None:
        super().__init__(call.layout, q.shape, k.shape, v.shape[-1])
        self.call, self.axes, self.tensors = call, q.ndim - 3, (q, k, v)
        self.dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
        self.like = q.new_empty(0, dtype=self.dtype)  # dtype and device of everything new
        self.scratch = Scratch(self.like)
        self.q, self.k, self.v = self.items(q, "q"), self.items(k, "k"), self.items(v, "v")
        # What keys add may hide them.
        unhidden = call.key_bias is None and call.key_lengths is None
        self.guarded = not (unhidden and isinstance(call.mask, Full))

    def items(self, x: Tensor, name: str) -> Tensor:
        """(b, *grid, h, ...) -> (items, n, ...), copied to memory of that name."""
        x = self.call.layout.split(x, self.axes).transpose(1, 2)
        memory = self.scratch.array(name, x.shape[0] * x.shape[1], *x.shape[2:])
        memory.view(x.shape).copy_(x)
        return memory

    def product(self, name: str, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
        """Scale * a @ b, in memory of that name."""
        out = self.scratch.array(name, len(a), a.shape[1], b.shape[2])
        return torch.baddbmm(out, a, b, beta=0.0, alpha=scale, out=out)

    def joined(self, x: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """(items, n, ...) -> (b, *grid, h, ...) of that shape, new and contiguous."""
        return self.like.new_empty(shape, dtype=dtype).copy_(self._joined(x, shape))

    def _joined(self, x: Tensor, shape: Sequence[int]) -> Tensor:
        x = x.unflatten(0, (self.sequences, self.heads)).transpose(1, 2)
        return self.call.layout.join(x, shape[0], shape[1 : 1 + self.axes])

    def logits(self, out: Tensor) -> Tensor:
        """Scores, -inf where hidden, written into out (items, n_q, n_k)."""
        call, shift, beta = self.call, key_shift(self.call, self, self.like), 0.0
        if call.table is not None and call.size is not None:
            out.view(self.scores).copy_(square_bias(call.table, call.size, self.dtype))
            beta = 1.0
        torch.baddbmm(out, self.q, self.k.mT, beta=beta, alpha=call.scale, out=out)
        if shift is not None:
            out.view(self.scores).add_(shift)
        if not isinstance(call.mask, Full):
            out.view(self.scores).masked_fill_(self._hidden(), -torch.inf)
        return out

    def _hidden(self) -> Tensor:
        """(1 or sequences, 1, n_q, n_k) bool, true where the mask hides."""
        mask, layout, shift = self.call.mask, self.call.layout, self.n_k - self.n_q
        rows, keys = (torch.arange(n, device=self.q.device) for n in (self.n_q, self.n_k))
        seen = visible(mask, layout, rows, keys, shift).to(self.q.device)
        if len(seen) > 1:  # of the sequences of one sample
            seen = seen.repeat(self.sequences // len(seen), 1, 1)
        return seen.logical_not()[:, None]

    def dropped(self, weights: Tensor) -> Tensor:
        """Weights after dropout, themselves without."""
        return weights if not self.call.dropout else weights * self._factors()

    def dropped_in_place(self, gradient: Tensor) -> Tensor:
        """The gradient of dropped weights as that of all weights."""
        return gradient if not self.call.dropout else gradient.mul_(self._factors())

    def _factors(self) -> Tensor:
        device, seed = self.q.device, self.call.seed
        if seed is None:
            raise ValueError("dropout > 0 wants a seed (an int64 tensor of one element).")
        items, rows, keys = (
            torch.arange(n, device=device) for n in (len(self.q), self.n_q, self.n_k)
        )
        return keep_factors(int(seed), items, rows, keys, self.call.dropout, self.dtype)

    def score_cotangent(self, given: Cotangents, u: Tensor | None, w: Tensor | None) -> Tensor:
        """M (items, n_q, n_k): the cotangent of the scores' gradient."""
        m = self.scratch.array("m", len(self.q), self.n_q, self.n_k)
        scale, beta = self.call.scale, 0.0
        if given.table is not None and self.call.size is not None:
            m.view(self.scores).copy_(square_bias(given.table, self.call.size, self.dtype))
            beta = 1.0
        if u is not None:
            m.baddbmm_(u, self.k.mT, beta=beta, alpha=scale)
            beta = 1.0
        if w is not None:
            m.baddbmm_(self.q, w.mT, beta=beta, alpha=scale)
            beta = 1.0
        if not beta:
            m.zero_()
        if given.key_bias is not None:
            m.add_(self.items(given.key_bias, "y")[:, None])
        return m

    def results(
        self,
        gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
        ds: Tensor | None,
        needs: Needs,
        packed: bool,
    ) -> list[Tensor] | None:
        """Gradients in the user's layout and dtypes, those needed; ds: of the scores.

        None if something hidden may have leaked.
        """
        call, (q, k, v) = self.call, self.tensors
        pairs = [(x, like) for x, like in zip(gradients, (q, k, v), strict=True) if x is not None]
        if packed and pairs:
            found = [q.new_empty(*q.shape[:-2], 3, *q.shape[-2:])]
            for part, (x, like) in zip(found[0].unbind(-3), pairs, strict=True):
                part.copy_(self._joined(x, like.shape))
        else:
            found = [self.joined(x, like.shape, like.dtype) for x, like in pairs]
        if needs.table and ds is not None and call.table is not None and call.size is not None:
            square = ds.view(self.scores).sum(dim=0)
            found.append(reduce_square(square, call.size).to(call.table.dtype))
        if needs.key_bias and ds is not None and call.key_bias is not None:
            shift = ds.sum(dim=1)
            found.append(self.joined(shift, call.key_bias.shape, call.key_bias.dtype))
        return None if self.guarded and not all_finite(*found) else found


def softmax_backward(grad: Tensor, weights: Tensor) -> None:
    """Grad becomes weights o (grad - rowsum(weights o grad)), in place and in one pass."""
    torch.ops.aten._softmax_backward_data.out(grad, weights, -1, grad.dtype, grad_input=grad)

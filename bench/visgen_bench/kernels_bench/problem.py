"""A reference shape with content: the tensors that every side of a comparison starts from.

z sequences (of all samples), h heads, n tokens, d head dimension. Content is random, never zeros:
the time of a matrix product depends on the power that its bits draw.
"""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor

from visgen_kernels import RelativePosition2d
from visgen_kernels.biases import relative_index
from visgen_kernels.masks import Causal, Full, visible
from visgen_kernels.reference import attention_reference
from visgen_kernels.shapes import Shape

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Problem:
    """Leaves, masks and cotangents of one shape on one device.

    Attributes:
        leaves: What is differentiated: `qkv` (b, *grid, 3, h, d) or `q`, `k`, `v`; `table` and
            `key_bias`, float32 at least, where the shape has them. A codebook has `q` (n, d) and
            `k` (codes, d).
        grad: Of the output, (b, *grid, h, d_v).
        cotangents: Of the gradients of q, k, v (of `qkv` if packed), for a second backward pass.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        self.shape = shape
        self.device, self.dtype = torch.device(device), dtype
        self._generator = torch.Generator(device=self.device).manual_seed(seed)
        self.mask = shape.made_mask
        self.scale = shape.d**-0.5
        self.axes = len(self.shape.grid)
        self.leaves = self._leaves()
        for leaf in self.leaves.values():
            leaf.requires_grad_()
        b, grid, h = self.shape.batch, self.shape.grid, self.shape.heads
        self.lengths = self._lengths() if shape.key_lengths else None
        self.grad = self._draw(b, *grid, h, shape.d_v)
        names = [name for name in ("qkv", "q", "k", "v") if name in self.leaves]
        self.cotangents = {name: self._draw(*self.leaves[name].shape) for name in names}

    def _draw(self, *sizes: int) -> Tensor:
        drawn = torch.randn(sizes, generator=self._generator, device=self.device)
        return drawn.to(self.dtype)

    def _leaves(self) -> dict[str, Tensor]:
        s, leaves = self.shape, {}
        wide = torch.promote_types(self.dtype, torch.float32)  # of trained biases
        stored, keys = s.stored_heads or s.heads, s.key_grid or s.grid
        if s.kind == "codebook":  # vectors (n, d) and codes (codes, d)
            leaves["q"] = self._draw(s.batch * prod(s.grid), s.d)
            leaves["k"] = self._draw(prod(keys), s.d)
            return leaves
        if s.separate:
            leaves["q"] = self._draw(s.batch, *s.grid, stored, s.d)
            leaves["k"] = self._draw(s.batch, *keys, stored, s.d)
            leaves["v"] = self._draw(s.batch, *keys, stored, s.d_v)
        else:
            leaves["qkv"] = self._draw(s.batch, *s.grid, 3, stored, s.d)
        if s.bias is not None:
            rows = (2 * s.bias[0] - 1) * (2 * s.bias[1] - 1)
            leaves["table"] = self._draw(rows, s.heads).to(wide)
        if s.key_bias:
            leaves["key_bias"] = self._draw(s.batch, *keys, s.heads).to(wide)
        return leaves

    def _lengths(self) -> Tensor:
        """At least half of the keys, so that no query is without any."""
        n = self.shape.n_k
        drawn = torch.randint(
            (n + 1) // 2, n + 1, (self.shape.batch,), generator=self._generator, device=self.device
        )
        return drawn.to(torch.int32)

    @cached_property
    def cached(self) -> Tensor:
        """(b,) keys of each sample in a decoding step: the whole cache."""
        return torch.full((self.shape.batch,), self.shape.n_k, device=self.device)

    def tokens(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (b, *grid, h, d): views of the leaves."""
        if "qkv" in self.leaves:
            q, k, v = self.leaves["qkv"].unbind(-3)
        else:
            q, k, v = (self.leaves[name] for name in "qkv")
        heads = self.shape.heads
        return q[..., :heads, :], k[..., :heads, :], v[..., :heads, :]

    def heads(self) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v (z, h, n, d): views where strides can express the layout, else copies."""
        q, k, v = (self.shape.layout.split(x, self.axes).transpose(1, 2) for x in self.tokens())
        return q, k, v

    def join(self, out: Tensor) -> Tensor:
        """(z, h, n, d_v) -> (b, *grid, h, d_v), contiguous as the next Linear wants it."""
        s = self.shape
        return s.layout.join(out.transpose(1, 2), s.batch, s.grid).contiguous()

    def arguments(self) -> dict[str, Any]:
        """Everything beside q, k and v, by the names of `visgen_kernels.attention`."""
        bias = None
        if self.shape.bias is not None:
            bias = RelativePosition2d(self.leaves["table"], self.shape.bias)
        return {
            "layout": self.shape.layout,
            "mask": self.mask,
            "key_lengths": self.lengths,
            "bias": bias,
            "key_bias": self.leaves.get("key_bias"),
        }

    @property
    def packed(self) -> bool:
        """Can q, k and v be handed over as one tensor?"""
        return "qkv" in self.leaves and self.shape.stored_heads in (None, self.shape.heads)

    @property
    def is_causal(self) -> bool:
        """May SDPA be told so, instead of being given a mask?"""
        plain = self.shape.n_q == self.shape.n_k and self.lengths is None
        added = self.shape.bias is not None or self.shape.key_bias
        return isinstance(self.mask, Causal) and self.mask.group == 1 and plain and not added

    @cached_property
    def hidden(self) -> Tensor | None:
        """(z or 1, 1, n_q, n_k) bool, true where mask or lengths hide; None: all is visible.

        Made once, as models keep it in a buffer.
        """
        s, hidden = self.shape, None
        if not isinstance(self.mask, Full):
            rows, keys = torch.arange(s.n_q), torch.arange(s.n_k)
            seen = visible(self.mask, s.layout, rows, keys, s.n_k - s.n_q).to(self.device)
            hidden = ~seen.repeat(s.batch if len(seen) > 1 else 1, 1, 1)[:, None]
        if self.lengths is not None:
            lengths = self.lengths.repeat_interleave(s.layout.sequences(s.key_grid or s.grid))
            beyond = torch.arange(s.n_k, device=self.device) >= lengths[:, None, None, None]
            hidden = beyond if hidden is None else hidden | beyond
        return hidden

    @cached_property
    def bias_index(self) -> Tensor:
        """(n, n) rows of the table, a buffer of the models that gather."""
        return relative_index(self.shape.bias or (1, 1), self.device)

    def position_bias(self) -> Tensor | None:
        """(1, h, n, n) in the problem's dtype, gathered anew, as it is trained."""
        if self.shape.bias is None:
            return None
        return self.leaves["table"].to(self.dtype)[self.bias_index].permute(2, 0, 1)[None]

    def key_shift(self) -> Tensor | None:
        """(z, h, 1, n_k) in the problem's dtype."""
        if not self.shape.key_bias:
            return None
        bias = self.leaves["key_bias"].to(self.dtype)
        return self.shape.layout.split(bias, self.axes).transpose(1, 2)[:, :, None]

    def added(self, *, with_key_bias: bool = True) -> Tensor | None:
        """SDPA's mask: bool (true = visible) if nothing is added, else biases with -inf."""
        terms = [self.position_bias(), self.key_shift() if with_key_bias else None]
        present = [term for term in terms if term is not None]
        if not present:
            return None if self.hidden is None else ~self.hidden
        total = sum(present[1:], present[0])
        return total if self.hidden is None else total.masked_fill(self.hidden, -torch.inf)

    def of_sample(self, sample: int, dtype: torch.dtype) -> dict[str, Tensor]:
        """The leaves of one sample alone, in another dtype, as new leaves."""
        found = {}
        for name, leaf in self.leaves.items():
            own = leaf if name == "table" else leaf[sample : sample + 1]
            found[name] = own.detach().to(dtype).requires_grad_()
        return found

    def defined(self, sample: int, leaves: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
        """The definition (`visgen_kernels.reference`) on one sample's leaves, in their dtype."""
        heads = self.shape.heads
        tensors = leaves["qkv"].unbind(-3) if "qkv" in leaves else [leaves[x] for x in "qkv"]
        q, k, v = (x[..., :heads, :] for x in tensors)
        arguments = self.arguments()
        if self.lengths is not None:
            arguments["key_lengths"] = self.lengths[sample : sample + 1]
        if self.shape.bias is not None:
            arguments["bias"] = RelativePosition2d(leaves["table"], self.shape.bias)
        if self.shape.key_bias:
            arguments["key_bias"] = leaves["key_bias"]
        return attention_reference(q, k, v, scale=self.scale, **arguments)[0]

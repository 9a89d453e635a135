"""The same attention layer in several ways: ours, eager PyTorch, and routes through SDPA.

All of them start from the projections as a Linear layer leaves them, (b, *grid, 3 h d) or q, k and
v for themselves, and end at (b, *grid, h d_v), so that every side pays for its own layout copies.
Masks are built once, as models keep them in buffers; a bias is gathered from its table per call.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import pad, scaled_dot_product_attention

from visgen_kernels import Blocks1d, Blocks2d, Causal, Full, RelativePosition2d, attention
from visgen_kernels.biases import relative_index
from visgen_kernels.masks import visible
from visgen_kernels.shapes import Shape

Route = Callable[[], Tensor]


class Case:
    """Tensors of a layer, and every route over them."""

    def __init__(self, shape: Shape, batch: int, dtype: torch.dtype = torch.float32) -> None:
        self.shape, self.batch, self.mask = shape, batch, shape.made_mask
        self.l2 = shape.d**-0.5 / 2 if shape.key_bias else None  # scores are -t |q - k|^2
        generator = torch.Generator().manual_seed(0)

        def draw(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator).to(dtype)

        heads, d, stored = shape.heads, shape.d, shape.stored_heads or shape.heads
        if shape.separate:
            key_grid = shape.key_grid or shape.grid
            self.inputs = [
                draw(batch, *shape.grid, heads * d),
                draw(batch, *key_grid, heads * d),
                draw(batch, *key_grid, heads * shape.d_v),
            ]
        else:
            self.inputs = [draw(batch, *shape.grid, 3 * stored * d)]
        self.table = self.index = None
        if shape.bias is not None:
            rows = (2 * shape.bias[0] - 1) * (2 * shape.bias[1] - 1)
            self.table = draw(rows, heads).requires_grad_()
            self.index = relative_index(shape.bias).view(-1)
        self.leaves = [x.requires_grad_() for x in self.inputs]
        if self.table is not None:
            self.leaves.append(self.table)
        self.grad = draw(batch, *shape.grid, heads * shape.d_v)
        self.cotangent = draw(*self.inputs[0].shape)
        self.lengths = None
        if shape.key_lengths:  # every other sample is half as long
            odd = torch.arange(batch) % 2 == 1
            self.lengths = torch.full((batch,), shape.n_k).masked_fill(odd, shape.n_k // 2)
        self.hidden = self._hidden(shape.n_k)

    def _hidden(self, n_k: int) -> Tensor | None:
        """(z or 1, 1, n_q, n_k) bool, true where mask or lengths hide."""
        hidden, n_q = None, self.shape.n_q
        if not isinstance(self.mask, Full):
            rows, keys = torch.arange(n_q), torch.arange(n_k)
            seen = visible(self.mask, self.shape.layout, rows, keys, n_k - n_q)
            hidden = ~seen.repeat(self.batch if len(seen) > 1 else 1, 1, 1)[:, None]
        if self.lengths is not None:
            beyond = torch.arange(n_k) >= self.lengths[:, None, None, None]
            hidden = beyond if hidden is None else hidden | beyond
        return hidden

    def _tokens(self) -> list[Tensor]:
        """q, k, v (b, *grid, h, d), views of the projections."""
        shape = self.shape
        if shape.separate:
            return [x.unflatten(-1, (shape.heads, -1)) for x in self.inputs]
        packed = self.inputs[0].unflatten(-1, (3, -1, shape.d))
        return list(packed[..., : shape.heads, :].unbind(-3))

    def ours(self) -> Tensor:
        """One call of `visgen_kernels.attention`."""
        shape, bias = self.shape, None
        if self.table is not None and shape.bias is not None:
            bias = RelativePosition2d(self.table, shape.bias)
        if shape.separate or shape.stored_heads or self.l2 is not None:
            tensors = self._tokens()
        else:
            tensors = [self.inputs[0].unflatten(-1, (3, shape.heads, shape.d))]
        out = attention(
            *tensors,
            layout=shape.layout,
            mask=self.mask,
            bias=bias,
            key_lengths=self.lengths,
            key_bias=None if self.l2 is None else tensors[1].square().sum(-1) * -self.l2,
            implementation="chunked",
        )
        return out.flatten(-2)

    def _heads(self) -> list[Tensor]:
        """q, k, v (z, h, n, d); a copy where views cannot express the layout."""
        axes = len(self.shape.grid)
        return [self.shape.layout.split(x, axes).transpose(1, 2) for x in self._tokens()]

    def _join(self, out: Tensor) -> Tensor:
        """(z, h, n, d_v) -> (b, *grid, h d_v), contiguous, as the next Linear layer wants it."""
        joined = self.shape.layout.join(out.transpose(1, 2), self.batch, self.shape.grid)
        return joined.contiguous().flatten(-2)

    def _bias(self) -> Tensor | None:
        """(1, h, n, n), gathered."""
        if self.table is None or self.index is None or self.shape.bias is None:
            return None
        n = self.shape.n_q
        return self.table[self.index].view(n, n, -1).permute(2, 0, 1).contiguous()[None]

    def eager(self) -> Tensor:
        """Permuted heads, scores, bias, mask, softmax, product: every n x n array exists."""
        q, k, v = self._heads()
        scores = (q @ k.mT) * self.shape.d**-0.5
        bias = self._bias()
        if bias is not None:
            scores = scores + bias
        if self.l2 is not None:
            scores = scores - k.square().sum(-1)[:, :, None] * self.l2
        if self.hidden is not None:
            scores = scores.masked_fill(self.hidden, -torch.inf)
        return self._join(scores.softmax(dim=-1) @ v)

    def _added(self) -> Tensor | None:
        """What SDPA takes as its mask."""
        bias = self._bias()
        if bias is None:
            return None if self.hidden is None else ~self.hidden
        return bias if self.hidden is None else bias.masked_fill(self.hidden, -torch.inf)

    def _sdpa(self, copied: bool) -> Tensor:
        q, k, v = self._heads()
        if self.l2 is not None:  # 2 t q k - t k^2 as a product of vectors that are longer by one
            missing = -(self.shape.d + 1) % 8
            ones, squares = q.new_ones(*q.shape[:-1], 1), k.square().sum(-1, keepdim=True)
            q = pad(torch.cat([2 * self.l2 * q, ones], -1), (0, missing))
            k = pad(torch.cat([k, -self.l2 * squares], -1), (0, missing))
            v = pad(v, (0, missing + 1))
        if copied:
            q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
        causal = isinstance(self.mask, Causal) and self.lengths is None
        out = scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if causal else self._added(),
            is_causal=causal,
            scale=None if self.l2 is None else 1.0,
        )
        return self._join(out[..., : self.shape.d_v])

    def _unfolded_1d(self, mask: Blocks1d) -> Tensor:
        """Blocks of queries, each with its own and the previous block of keys, through SDPA."""
        q, k, v = self._heads()
        size = mask.block
        blocks = q.shape[2] // size
        q = q.unflatten(2, (blocks, size)).transpose(1, 2).flatten(0, 1)
        around = [pad(x, (0, 0, size, 0)).unfold(2, 2 * size, size).mT for x in (k, v)]
        k, v = (x.transpose(1, 2).flatten(0, 1) for x in around)
        rows, keys = torch.arange(size)[:, None], torch.arange(2 * size)
        seen = (keys <= rows + size).expand(blocks, size, 2 * size).clone()
        seen[0, :, :size] = False
        seen = seen.repeat(self.batch, 1, 1)[:, None]
        out = scaled_dot_product_attention(q, k, v, attn_mask=seen)
        out = out.unflatten(0, (-1, blocks)).transpose(1, 2).flatten(2, 3)
        return self._join(out)

    def _unfolded_2d(self, mask: Blocks2d) -> Tensor:
        """Blocks of queries, each with the whole rectangle its strips lie in, through SDPA."""
        q, k, v = self._heads()
        (height, width), (rows, cols), (above, left) = mask.map, mask.query, mask.flange
        y, x = height // rows, width // cols
        number = torch.arange(height * width).view(height, width)
        own = number.unfold(0, rows, rows).unfold(1, cols, cols).reshape(y * x, -1)
        wide = pad(number, (left, left, above, 0), value=-1)
        seen_by = wide.unfold(0, rows + above, rows).unfold(1, cols + 2 * left, cols)
        seen_by = seen_by.reshape(y * x, -1)
        present = seen_by >= 0
        seen = mask.visible(own[:, :, None], seen_by.clamp(min=0)[:, None]) & present[:, None]
        seen = seen.repeat(self.batch, 1, 1)[:, None]
        q = q[:, :, own].transpose(1, 2).flatten(0, 1)
        k, v = (t[:, :, seen_by.clamp(min=0)].transpose(1, 2).flatten(0, 1) for t in (k, v))
        out = scaled_dot_product_attention(q, k, v, attn_mask=seen)
        out = out.unflatten(0, (-1, y * x)).transpose(1, 2).flatten(2, 3)
        return self._join(out[:, :, torch.argsort(own.flatten())])

    def routes(self) -> dict[str, Route]:
        """Every route that can do the layer's maths, ours and eager first."""

        def math(copied: bool) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):
                return self._sdpa(copied)

        found: dict[str, Route] = {
            "ours": self.ours,
            "eager": self.eager,
            "sdpa": lambda: self._sdpa(False),
            "sdpa copied": lambda: self._sdpa(True),
            "math": lambda: math(False),
            "math copied": lambda: math(True),
        }
        mask = self.mask
        if isinstance(mask, Blocks1d):
            found["sdpa unfolded"] = lambda: self._unfolded_1d(mask)
        if isinstance(mask, Blocks2d):
            found["sdpa unfolded"] = lambda: self._unfolded_2d(mask)
        return found

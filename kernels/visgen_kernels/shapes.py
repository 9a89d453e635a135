"""Attention layers of the models that are compared: the shapes kernels are judged on.

Names are those of the reference table (README): G and D TransGAN's generator and discriminator, V
ViTGAN, I the Image Transformer, T VTN, W ViViT, P VideoGPT and its VQ-VAE, C cross-attention, X a
decoding step, S shifted windows, Q the codebook. Batches are ours. Nothing here has content: the
tensors are made on the meta device unless another is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from math import prod
from typing import Literal

import torch
from torch import Tensor

from visgen_kernels.attention.problem import Call
from visgen_kernels.layouts import Axis, Layout, Sequence, Windows
from visgen_kernels.masks import (
    BlockList,
    Blocks1d,
    Blocks2d,
    Causal,
    Full,
    Mask,
    SameGroup,
    SlidingWindow,
)

Kind = Literal["attention", "decode", "codebook"]
_SEQUENCE = Sequence()


@dataclass(frozen=True)
class Inputs:
    """Tensors of one call: q (b, *grid, h, d), k (b, *grid_k, h, d), v (b, *grid_k, h, d_v).

    A codebook's are q (n, d) and k (codes, d); v is k then.
    """

    q: Tensor
    k: Tensor
    v: Tensor


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One layer: its sizes, and how its tensors lie in memory.

    Attributes:
        id: Of the reference table.
        what: The layer in words.
        batch: Samples (ours).
        grid: Axes of the queries' tokens between batch and heads.
        heads: That attend.
        d: Head dimension of q and k.
        value_d: Of v, if it differs.
        key_grid: Of the keys and values, if it differs.
        layout: What is attended over.
        mask: Makes the mask.
        bias: Rows and columns of a relative position bias.
        key_bias: Whether keys carry a bias (L2 scores).
        key_lengths: Whether samples have their own number of keys.
        separate: q apart from k and v, as in cross-attention; else all are views of one projection.
        stored_heads: Heads in memory, if only some of them attend in this way.
        second_derivative: Whether training differentiates twice (gradient penalties).
        kind: `attention`, or what else the kernel is for.
    """

    id: str
    what: str
    batch: int
    grid: tuple[int, ...]
    heads: int
    d: int
    value_d: int | None = None
    key_grid: tuple[int, ...] | None = None
    layout: Layout = _SEQUENCE
    mask: Callable[[], Mask] = Full
    bias: tuple[int, int] | None = None
    key_bias: bool = False
    key_lengths: bool = False
    separate: bool = False
    stored_heads: int | None = None
    second_derivative: bool = False
    kind: Kind = "attention"

    @property
    def d_v(self) -> int:
        """Head dimension of v."""
        return self.d if self.value_d is None else self.value_d

    @property
    def n_q(self) -> int:
        """Queries of one sequence."""
        return self.layout.length(self.grid)

    @property
    def n_k(self) -> int:
        """Keys of one sequence."""
        return self.layout.length(self.key_grid or self.grid)

    @property
    def sequences(self) -> int:
        """Independent sequences, all samples together."""
        return self.batch * self.layout.sequences(self.grid)

    @property
    def score_matrices(self) -> int:
        """Sequences times heads."""
        return self.sequences * self.heads

    @cached_property
    def made_mask(self) -> Mask:
        """The mask, made once."""
        return self.mask()

    @cached_property
    def pairs(self) -> float:
        """Visible (query, key) pairs of one sequence and head, on average over sequences."""
        mask = self.made_mask
        if isinstance(mask, SameGroup):
            return mask.pairs_under(self.layout) / self.layout.sequences(self.grid)
        return mask.pairs(self.n_q, self.n_k)

    @property
    def extras(self) -> str:
        """Mask and biases in words, for tables: `causal`, `full+position bias`."""
        mask = type(self.made_mask).__name__
        name = {
            "Full": "full", "Causal": "causal", "SlidingWindow": "window", "Blocks1d": "1-D blocks",
            "Blocks2d": "2-D blocks", "BlockList": "block list", "SameGroup": "shifted windows",
        }[mask]  # fmt: skip
        parts = [name]
        parts += ["position bias"] if self.bias else []
        parts += ["key bias"] if self.key_bias else []
        parts += ["key lengths"] if self.key_lengths else []
        return "+".join(parts)

    def inputs(
        self, *, device: str | torch.device = "meta", dtype: torch.dtype = torch.bfloat16
    ) -> Inputs:
        """q, k and v as the model holds them; content is not set."""

        def empty(*sizes: int) -> Tensor:
            return torch.empty(sizes, device=device, dtype=dtype)

        if self.kind == "codebook":
            codes = empty(prod(self.key_grid or ()), self.d)
            return Inputs(empty(self.batch * prod(self.grid), self.d), codes, codes)
        stored = self.stored_heads or self.heads
        if self.separate:
            key_grid = self.key_grid or self.grid
            q = empty(self.batch, *self.grid, stored, self.d)
            k = empty(self.batch, *key_grid, stored, self.d)
            v = empty(self.batch, *key_grid, stored, self.d_v)
        else:
            q, k, v = empty(self.batch, *self.grid, 3, stored, self.d).unbind(-3)
        q, k, v = (x[..., : self.heads, :] for x in (q, k, v))
        return Inputs(q, k, v)

    def call(self, inputs: Inputs) -> Call:
        """Everything that is not q, k or v, on their device."""
        device, table, key_bias = inputs.q.device, None, None
        if self.bias is not None:
            rows, cols = self.bias
            offsets = (2 * rows - 1) * (2 * cols - 1)
            table = torch.empty(offsets, self.heads, device=device)
        if self.key_bias:
            key_bias = torch.empty(inputs.k.shape[:-1], device=device)
        lengths = None
        if self.key_lengths:
            lengths = torch.empty(self.batch, device=device, dtype=torch.int32)
        return Call(
            layout=self.layout,
            mask=self.made_mask,
            table=table,
            size=self.bias,
            key_bias=key_bias,
            key_lengths=lengths,
            seed=None,
            scale=self.d**-0.5,
            dropout=0.0,
        )


_WINDOW = Windows(16, 16)
_SHAPES = (
    *(
        Shape(
            id=id, what=f"TransGAN-G {set} {side}x{side}", batch=batch, grid=(side * side,),
            heads=4, d=d, bias=(side, side),
        )
        for id, set, batch, side, d in (
            ("G1", "CIFAR", 64, 8, 256),
            ("G2", "CIFAR", 64, 16, 64),
            ("G3b", "256", 16, 32, 256),
            ("G3", "CIFAR", 64, 32, 16),
            ("STL1", "STL", 64, 12, 256),
            ("STL2", "STL", 64, 24, 64),
            ("STL3", "STL", 64, 48, 16),
        )
    ),
    *(
        Shape(
            id=id, what=f"TransGAN-G-256, 16x16 windows of {side}x{side}", batch=16,
            grid=(side, side), heads=4, d=d, layout=_WINDOW, bias=(16, 16),
        )
        for id, side, d in (("G4", 64, 64), ("G5", 128, 16), ("G6", 256, 4))
    ),
    Shape(
        id="G7", what="TransGAN-G-256, cross to an 8x8 latent map at 256x256", batch=16,
        grid=(65_536,), key_grid=(64,), heads=4, d=4, separate=True,
    ),
    Shape(
        id="D1", what="TransGAN-D-256, 4x4 windows of 128x128", batch=16, grid=(128, 128), heads=4,
        d=24, layout=Windows(4, 4), second_derivative=True,
    ),
    Shape(
        id="D2", what="TransGAN-D-256, whole 64x64", batch=16, grid=(4096,), heads=4, d=48,
        second_derivative=True,
    ),
    Shape(
        id="D3", what="TransGAN-D-256, whole 32x32", batch=16, grid=(1024,), heads=4, d=96,
        second_derivative=True,
    ),
    Shape(
        id="D4", what="TransGAN-D CIFAR 16x16", batch=32, grid=(256,), heads=4, d=72,
        bias=(16, 16), second_derivative=True,
    ),
    Shape(
        id="D5", what="TransGAN-D church, whole 64x64", batch=16, grid=(4096,), heads=4, d=72,
        bias=(64, 64), second_derivative=True,
    ),
    Shape(
        id="V1", what="ViTGAN 64+1 tokens, L2", batch=64, grid=(65,), heads=6, d=64, key_bias=True,
        second_derivative=True,
    ),
    Shape(
        id="V2", what="ViTGAN 256+1 tokens, L2", batch=64, grid=(257,), heads=6, d=64,
        key_bias=True, second_derivative=True,
    ),
    Shape(
        id="I1", what="Image Transformer, 1-D blocks of 256", batch=8, grid=(3072,), heads=4,
        d=128, mask=lambda: Blocks1d(256),
    ),
    Shape(
        id="I2", what="Image Transformer, 2-D blocks 8x16, flange 8,16", batch=8, grid=(3072,),
        heads=8, d=64, mask=lambda: Blocks2d((32, 96), (8, 16), (8, 16)),
    ),
    Shape(id="T1", what="VTN clip, 16 frames + CLS", batch=16, grid=(17,), heads=12, d=64),
    Shape(
        id="T2", what="VTN whole video, 250 frames + CLS, window 9", batch=16, grid=(251,),
        heads=12, d=64, mask=lambda: SlidingWindow(9, 1),
    ),
    Shape(id="W1", what="ViViT-B/16x2, joint", batch=8, grid=(3137,), heads=12, d=64),
    Shape(
        id="W2", what="ViViT-B, spatial + CLS", batch=8, grid=(16, 197), heads=12, d=64,
        layout=Axis(2),
    ),
    Shape(
        id="W3", what="ViViT-B, temporal, 16 frames", batch=8, grid=(16, 196), heads=12, d=64,
        layout=Axis(1),
    ),
    Shape(
        id="W4", what="ViViT dot-product model, temporal half of the heads", batch=8,
        grid=(16, 196), heads=6, stored_heads=12, d=64, layout=Axis(1),
    ),
    Shape(
        id="P1", what="VideoGPT, causal over 4x32x32", batch=8, grid=(4096,), heads=4, d=144,
        mask=Causal,
    ),
    Shape(
        id="P2", what="VideoGPT, causal over 8x32x32", batch=4, grid=(8192,), heads=4, d=144,
        mask=Causal,
    ),
    Shape(
        id="P3", what="VideoGPT, strided-sparse over 4x32x32", batch=8, grid=(4096,), heads=4,
        d=144, mask=lambda: BlockList.strided(4, 32, 32),
    ),
    Shape(
        id="P4", what="VQ-VAE axial over 32 columns", batch=8, grid=(4, 32, 32), heads=2, d=120,
        layout=Axis(3),
    ),
    Shape(
        id="P5", what="VQ-VAE axial over 4 frames", batch=8, grid=(4, 32, 32), heads=2, d=120,
        layout=Axis(1),
    ),
    Shape(
        id="C1", what="captioner, cross to 14x14", batch=32, grid=(50,), key_grid=(196,), heads=8,
        d=64, key_lengths=True, separate=True,
    ),
    Shape(
        id="C2", what="VideoGPT, cross to frame features", batch=8, grid=(4096,), key_grid=(256,),
        heads=4, d=144, value_d=60, separate=True,
    ),
    Shape(
        id="X1", what="VideoGPT decoding step, 4096 in the cache", batch=8, grid=(1,),
        key_grid=(4096,), heads=4, d=144, separate=True, kind="decode",
    ),
    # Shifted windows (arXiv:2103.14030, section 3.2) with position bias, on the rolled map.
    Shape(
        id="S1", what="Swin-T stage 1 (arXiv:2103.14030), 7x7 windows of 56x56", batch=64,
        grid=(56, 56), heads=3, d=32, layout=Windows(7, 7), bias=(7, 7),
        mask=lambda: SameGroup.shifted((56, 56), (7, 7), 3),
    ),
    Shape(
        id="S2", what="SwinIR (arXiv:2108.10257), 8x8 windows of 64x64", batch=16, grid=(64, 64),
        heads=6, d=30, layout=Windows(8, 8), bias=(8, 8),
        mask=lambda: SameGroup.shifted((64, 64), (8, 8), 4),
    ),
    Shape(
        id="S3", what="HAT (arXiv:2205.04437), 16x16 windows of 64x64", batch=16, grid=(64, 64),
        heads=6, d=30, layout=_WINDOW, bias=(16, 16),
        mask=lambda: SameGroup.shifted((64, 64), (16, 16), 8),
    ),
    Shape(
        id="Q1", what="VQ codebook, 2048 codes of 256", batch=8, grid=(4096,), key_grid=(2048,),
        heads=1, d=256, separate=True, kind="codebook",
    ),
)  # fmt: skip

SHAPES: dict[str, Shape] = {shape.id: shape for shape in _SHAPES}


def find_shape(name: str) -> Shape:
    """A shape by its id.

    Raises:
        ValueError: naming the nearest id.
    """
    if name in SHAPES:
        return SHAPES[name]
    folded = {id.lower(): id for id in SHAPES}
    near = folded[get_close_matches(name.lower(), folded, n=1, cutoff=0.0)[0]]
    raise ValueError(f'unknown shape "{name}"; nearest: "{near}" (known: {", ".join(SHAPES)}).')

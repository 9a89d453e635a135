"""TransGAN at 32 and 48 px in plain eager PyTorch, structured as the released code is.

One fused qkv Linear, scores of every pair materialised, the relative position bias gathered through
a stored N x N index, softmax, a second product. It is what `transgan_step.py` times our model
against, and what a test compares our model's outputs with; the names of its tensors are the
released checkpoints' names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def relative_index(side: int) -> Tensor:
    """Row of the bias table for every pair of tokens of a side x side map: int64 (n, n)."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    places = torch.stack((y.flatten(), x.flatten()))  # (2, n)
    offsets = places[:, :, None] - places[:, None, :] + side - 1  # (2, n, n)
    return offsets[0] * (2 * side - 1) + offsets[1]


class Norm(nn.Module):
    """LayerNorm under the name `norm`, or pixel norm."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if kind == "ln" else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        if self.norm is not None:
            return self.norm(x)
        return x * torch.rsqrt(torch.mean(x**2, dim=2, keepdim=True) + 1e-8)


class Attention(nn.Module):
    """Materialised attention with a gathered bias and, in the discriminator, noise."""

    def __init__(self, width: int, side: int, noise: bool) -> None:
        super().__init__()
        self.heads = 4
        self.scale = (width // 4) ** -0.5
        self.side = side
        self.noise_strength_1 = nn.Parameter(torch.zeros(())) if noise else None
        if side:
            self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * side - 1) ** 2, 4))
            self.register_buffer("relative_position_index", relative_index(side))
        self.qkv = nn.Linear(width, width * 3, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """(b, n, d) and noise (b, n, 1) -> (b, n, d)."""
        b, n, d = x.shape
        if self.noise_strength_1 is not None and noise is not None:
            x = x + noise * self.noise_strength_1
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        attn = (q @ k.transpose(-2, -1)) * self.scale
        if self.side:
            index = self.get_buffer("relative_position_index").view(-1)
            bias = self.relative_position_bias_table[index].view(n, n, -1)
            attn = attn + bias.permute(2, 0, 1).contiguous().unsqueeze(0)
        attn = attn.softmax(dim=-1)
        x = (attn @ v).transpose(1, 2).reshape(b, n, d)
        return self.proj(x)


class Mlp(nn.Module):
    """fc1, GELU, fc2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """norm1, attn, norm2, mlp."""

    def __init__(self, width: int, side: int, norm: str, noise: bool = False) -> None:
        super().__init__()
        self.norm1 = Norm(norm, width)
        self.attn = Attention(width, side, noise)
        self.norm2 = Norm(norm, width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        x = x + self.attn(self.norm1(x), noise)
        return x + self.mlp(self.norm2(x))


class StageBlock(nn.Module):
    """The released code's list of blocks, under the name `block`."""

    def __init__(self, depth: int, width: int, side: int, norm: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(Block(width, side, norm) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        for block in self.block:
            x = block(x)
        return x


class EagerGenerator(nn.Module):
    """Latent (b, l) -> image (b, 3, 4 bottom, 4 bottom)."""

    def __init__(
        self, bottom: int, width: int, latent: int, depths: tuple[int, ...], norm: str
    ) -> None:
        super().__init__()
        self.bottom = bottom
        self.l1 = nn.Linear(latent, bottom**2 * width)
        self.pos_embed_1 = nn.Parameter(torch.zeros(1, bottom**2, width))
        self.pos_embed_2 = nn.Parameter(torch.zeros(1, (2 * bottom) ** 2, width // 4))
        self.pos_embed_3 = nn.Parameter(torch.zeros(1, (4 * bottom) ** 2, width // 16))
        self.blocks = StageBlock(depths[0], width, bottom, norm)
        self.upsample_blocks = nn.ModuleList(
            (
                StageBlock(depths[1], width // 4, 2 * bottom, norm),
                StageBlock(depths[2], width // 16, 4 * bottom, norm),
            )
        )
        self.deconv = nn.Sequential(nn.Conv2d(width // 16, 3, 1, 1, 0))

    def forward(self, z: Tensor) -> Tensor:
        """As the class says."""
        side = self.bottom
        x = self.l1(z).view(-1, side**2, self.pos_embed_1.shape[-1])
        x = self.blocks(x + self.pos_embed_1)
        positions = (self.pos_embed_2, self.pos_embed_3)
        for place, stage in zip(positions, self.upsample_blocks, strict=True):
            b, _, d = x.shape
            x = F.pixel_shuffle(x.permute(0, 2, 1).view(b, d, side, side), 2)
            side = 2 * side
            x = x.view(b, d // 4, side**2).permute(0, 2, 1)
            x = stage(x + place)
        return self.deconv(x.permute(0, 2, 1).view(-1, x.shape[-1], side, side))


class EagerDiscriminator(nn.Module):
    """Image (b, 3, s, s) and noise, one (b, n, 1) a block -> logit (b, 1)."""

    def __init__(self, size: int, width: int, depth: int, patch: int, norm: str) -> None:
        super().__init__()
        side = size // patch
        fine = width // 4 * 3
        self.fRGB_1 = nn.Conv2d(3, fine, patch, patch)
        self.fRGB_2 = nn.Conv2d(3, width // 4, 2 * patch, 2 * patch)
        self.pos_embed_1 = nn.Parameter(torch.zeros(1, side**2, fine))
        self.pos_embed_2 = nn.Parameter(torch.zeros(1, (side // 2) ** 2, width))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks_1 = nn.ModuleList(Block(fine, side, norm, True) for _ in range(depth))
        self.blocks_2 = nn.ModuleList(Block(width, side // 2, norm, True) for _ in range(depth))
        self.last_block = nn.Sequential(Block(width, 0, norm, True))
        self.norm = Norm(norm, width)
        self.head = nn.Linear(width, 1)

    def forward(self, images: Tensor, noise: list[Tensor]) -> Tensor:
        """As the class says."""
        noise = list(noise)
        b = images.shape[0]
        x = self.fRGB_1(images).flatten(2).permute(0, 2, 1) + self.pos_embed_1
        for block in self.blocks_1:
            x = block(x, noise.pop(0))
        n, d = x.shape[1:]
        side = int(n**0.5)
        x = F.avg_pool2d(x.permute(0, 2, 1).reshape(b, d, side, side), 2)
        x = x.flatten(2).permute(0, 2, 1)
        x = torch.cat((x, self.fRGB_2(images).flatten(2).permute(0, 2, 1)), dim=-1)
        x = x + self.pos_embed_2
        for block in self.blocks_2:
            x = block(x, noise.pop(0))
        x = torch.cat((self.cls_token.expand(b, -1, -1), x), dim=1)
        x = self.last_block[0](x, noise.pop(0))
        return self.head(self.norm(x)[:, 0])


def released_names(part: str, names: list[str]) -> dict[str, str]:
    """Our tensors' names -> the released checkpoint's, for `generator` or `discriminator`."""
    return {name: _released_name(part, name) for name in names}


def _released_name(part: str, name: str) -> str:
    for ours, theirs in (
        ("norm1.", "norm1.norm."),
        ("norm2.", "norm2.norm."),
        ("attention.bias_table", "attn.relative_position_bias_table"),
        ("attention.qkv.", "attn.qkv."),
        ("attention.out.", "attn.proj."),
        ("noise_strength", "attn.noise_strength_1"),
        ("mlp.widen.", "mlp.fc1."),
        ("mlp.narrow.", "mlp.fc2."),
    ):
        name = name.replace(ours, theirs)
    head, _, rest = name.partition(".")
    if part == "generator":
        if head == "positions":
            return f"pos_embed_{int(rest) + 1}"
        if head == "stages":
            stage, _, tail = rest.partition(".")
            where = "blocks" if stage == "0" else f"upsample_blocks.{int(stage) - 1}"
            return f"{where}.block.{tail}"
        return {"first": "l1", "to_rgb": "deconv.0"}[head] + f".{rest}"
    renamed = {
        "fine_patches": "fRGB_1",
        "coarse_patches": "fRGB_2",
        "fine_position": "pos_embed_1",
        "coarse_position": "pos_embed_2",
        "fine_blocks": "blocks_1",
        "coarse_blocks": "blocks_2",
        "class_token": "cls_token",
        "last_block": "last_block.0",
        "norm": "norm.norm",
        "head": "head",
    }[head]
    return f"{renamed}.{rest}" if rest else renamed

"""TransGAN (Jiang, Chang, Wang, NeurIPS 2021, arXiv:2102.07074).

"Two pure transformers can make one strong GAN": the networks at 32 x 32 (CIFAR-10) and 48 x 48
(STL-10), as in the released code where that differs from the paper: `LayerNorm` at 32 px,
`PixelNorm` at 48 px, four heads everywhere, noise in the discriminator only. Nothing is
autoregressive: one pass emits all pixels; at the last stage there is one token a pixel.

b batch, n tokens, d width; a stage's map is `side` x `side` tokens in row-major order. Differs from
the released code: the relative position index is computed, not stored as an N x N buffer, and the
discriminator is given augmented images instead of augmenting them itself
(`visgen.objectives.diffaugment`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visgen.layers.attention import SelfAttention
from visgen.layers.maps import as_map, as_tokens, average_pool, pixel_shuffle
from visgen.layers.mlp import MLP
from visgen.layers.norms import Norm, token_norm
from visgen.layers.recompute import maybe_recompute
from visgen.pixels import to_bytes
from visgen.seeds import Draws, normal
from visgen.tasks import refuse_condition

HEADS = 4  # in both networks and at every width; the released code ignores its own flag


@dataclass(frozen=True, kw_only=True)
class TransGANConfig:
    """The released code's names, spelled out; defaults are CIFAR-10 at 32 x 32."""

    bottom_width: int = 8  # side of the first map; the image's side is 4 times this
    generator_width: int = 1024  # width of the first stage; each next one has a quarter
    latent: int = 256
    generator_depths: tuple[int, int, int] = (5, 4, 2)
    generator_norm: Norm = "layer"
    discriminator_width: int = 384
    discriminator_depth: int = 3
    discriminator_norm: Norm = "layer"
    patch: int = 2
    family: str = "transgan"
    task: str = "image-generation"

    def __post_init__(self) -> None:
        if self.generator_width % 64:
            raise ValueError(
                f"generator_width={self.generator_width} must be a multiple of 64: "
                "the third stage has a sixteenth of it, in four heads."
            )
        if self.discriminator_width % 16:
            raise ValueError(
                f"discriminator_width={self.discriminator_width} must be a multiple of 16: "
                "the coarse scale has a quarter of it, in four heads."
            )
        side = 4 * self.bottom_width
        if side % (2 * self.patch):
            raise ValueError(
                f"an image of side {side} cannot be cut into patches of {self.patch} and "
                f"{2 * self.patch}; use a patch whose double divides {side}."
            )

    @property
    def position_bias(self) -> bool:
        """Attention has a relative position bias, which not every implementation can add."""
        return True

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return 4 * self.bottom_width, 4 * self.bottom_width

    def build(self, attention: str | None = None) -> TransGAN:
        """Both networks, initialised from torch's generator, in eval mode."""
        return TransGAN(self, attention).eval()


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, side: int | None, norm: Norm, attention: str | None) -> None:
        """`side` of the token map for the relative position bias, or None for no bias."""
        super().__init__()
        size = None if side is None else (side, side)
        self.norm1 = token_norm(norm, width)
        self.attention = SelfAttention(width, HEADS, bias_size=size, implementation=attention)
        self.norm2 = token_norm(norm, width)
        self.mlp = MLP(width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, n, d) -> (b, n, d)."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class NoisyBlock(Block):
    """A block whose attention sees noise: one normal number a token, the same for all its channels.

    The strength is learned from 0. The noise is active in eval mode too, as in the released code.
    """

    def __init__(self, width: int, side: int | None, norm: Norm, attention: str | None) -> None:
        super().__init__(width, side, norm, attention)
        self.noise_strength = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, draws: Draws) -> Tensor:  # type: ignore[override]
        """(b, n, d) and the batch's draws -> (b, n, d)."""
        noise = draws.normal("noise", (x.shape[1], 1)).to(x)  # (b, n, 1)
        x = x + self.attention(self.norm1(x) + self.noise_strength * noise)
        return x + self.mlp(self.norm2(x))


def position(tokens: int, width: int) -> nn.Parameter:
    """A learned position for every token: (1, n, d), truncated normal of deviation 0.02."""
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, width), std=0.02))


class Generator(nn.Module):
    """Latent -> image in three stages of growing maps (figure 2, left)."""

    def __init__(self, config: TransGANConfig, attention: str | None) -> None:
        super().__init__()
        self.recompute = False
        self.bottom_width = config.bottom_width
        width, side = config.generator_width, config.bottom_width
        self.first = nn.Linear(config.latent, side * side * width)
        self.positions = nn.ParameterList()
        self.stages = nn.ModuleList()
        for depth in config.generator_depths:
            self.positions.append(position(side * side, width))
            blocks = (Block(width, side, config.generator_norm, attention) for _ in range(depth))
            self.stages.append(nn.ModuleList(blocks))
            width, side = width // 4, side * 2
        self.to_rgb = nn.Conv2d(width * 4, 3, kernel_size=1)
        nn.init.xavier_uniform_(self.to_rgb.weight)

    def forward(self, latents: Tensor) -> Tensor:
        """Normal latents (b, latent) -> images (b, 3, h, w), about [-1, 1], not clamped."""
        side = self.bottom_width
        x = self.first(latents).unflatten(-1, (side * side, -1))  # (b, side^2, d)
        for stage, (place, blocks) in enumerate(zip(self.positions, self.stages, strict=True)):
            if stage:
                x = pixel_shuffle(x, side)  # (b, 4 side^2, d / 4)
                side = 2 * side
            x = x + place
            for block in blocks:  # type: ignore[union-attr]
                x = maybe_recompute(block, x, recompute=self.recompute)
        return self.to_rgb(as_map(x, side))  # (b, 3, side, side)


class Discriminator(nn.Module):
    """Image -> logit, from two scales of patches of the same image (figure 2, right).

    The fine scale has three quarters of the width; after its blocks it is pooled to the coarse
    scale's map and joined with the coarse patches. The class token joins only before the last
    block.
    """

    def __init__(self, config: TransGANConfig, attention: str | None) -> None:
        super().__init__()
        self.recompute = False
        width, patch, norm = config.discriminator_width, config.patch, config.discriminator_norm
        fine, coarse = width * 3 // 4, width // 4
        self.side = config.image_size[0] // patch
        depth = config.discriminator_depth
        self.fine_patches = nn.Conv2d(3, fine, kernel_size=patch, stride=patch)
        self.coarse_patches = nn.Conv2d(3, coarse, kernel_size=2 * patch, stride=2 * patch)
        self.fine_position = position(self.side**2, fine)
        self.coarse_position = position((self.side // 2) ** 2, width)
        self.fine_blocks = nn.ModuleList(
            NoisyBlock(fine, self.side, norm, attention) for _ in range(depth)
        )
        self.coarse_blocks = nn.ModuleList(
            NoisyBlock(width, self.side // 2, norm, attention) for _ in range(depth)
        )
        self.class_token = position(1, width)
        self.last_block = NoisyBlock(width, None, norm, attention)
        self.norm = token_norm(norm, width)
        self.head = nn.Linear(width, 1)
        self.apply(_initialise_discriminator)

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Images (b, 3, h, w) in [-1, 1] and the batch's draws for the noise -> logits (b,)."""
        x = as_tokens(self.fine_patches(images)) + self.fine_position  # (b, n, 3d/4)
        x = self._run(self.fine_blocks, x, draws.fork("fine"))
        pooled = average_pool(x, self.side)  # (b, n/4, 3d/4)
        x = torch.cat((pooled, as_tokens(self.coarse_patches(images))), dim=-1)  # (b, n/4, d)
        x = self._run(self.coarse_blocks, x + self.coarse_position, draws.fork("coarse"))
        x = torch.cat((self.class_token.expand(len(x), -1, -1), x), dim=1)  # (b, 1 + n/4, d)
        x = maybe_recompute(self.last_block, x, draws.fork("last"), recompute=self.recompute)
        return self.head(self.norm(x)[:, 0]).squeeze(-1)  # (b,)

    def _run(self, blocks: nn.ModuleList, x: Tensor, draws: Draws) -> Tensor:
        for place, block in enumerate(blocks):
            x = maybe_recompute(block, x, draws.fork(str(place)), recompute=self.recompute)
        return x


def _initialise_discriminator(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class TransGAN(nn.Module):
    """Generator and discriminator of one preset."""

    def __init__(self, config: TransGANConfig, attention: str | None) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.latent = config.latent
        self.generator = Generator(config, attention)
        self.discriminator = Discriminator(config, attention)

    def networks(self) -> dict[str, nn.Module]:
        """The two parts that are trained in turn."""
        return {"generator": self.generator, "discriminator": self.discriminator}

    def generate(self, seeds: Tensor, condition: None = None, sampling: None = None) -> Tensor:
        """Pictures for seeds int64 (n,): uint8 (n, 3, h, w)."""
        refuse_condition("TransGAN", condition)
        return self.generate_from(normal(seeds, "latent", (self.latent,)))

    @torch.no_grad()
    def generate_from(self, latents: Tensor) -> Tensor:
        """Pictures for normal latents (n, latent): uint8 (n, 3, h, w)."""
        return to_bytes(self.generator(latents))


PRESETS = {
    "transgan-cifar10": TransGANConfig(),
    "transgan-stl10": TransGANConfig(
        bottom_width=12,
        latent=512,
        generator_depths=(7, 5, 3),
        generator_norm="pixel",
        discriminator_norm="pixel",
    ),
    # Ours, to learn the digits in minutes on two cores.
    "transgan-digits8-tiny": TransGANConfig(
        bottom_width=2,
        generator_width=128,
        latent=64,
        generator_depths=(1, 1, 1),
        discriminator_width=96,
        discriminator_depth=2,
    ),
    "transgan-digits16-tiny": TransGANConfig(
        bottom_width=4,
        generator_width=256,
        latent=64,
        generator_depths=(1, 1, 1),
        discriminator_width=96,
        discriminator_depth=1,
    ),
    "transgan-digits32-tiny": TransGANConfig(
        bottom_width=8,
        generator_width=256,
        latent=64,
        generator_depths=(1, 1, 1),
        discriminator_width=96,
        discriminator_depth=1,
        patch=4,
    ),
}

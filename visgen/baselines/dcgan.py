"""DCGAN (Radford, Metz, Chintala, arXiv:1511.06434): the convolutional baseline.

Transposed convolutions with batch norm and ReLU in the generator, strided convolutions with batch
norm and LeakyReLU in the discriminator (section 3). The first map's side is a parameter so that
images of 8, 16, 32 and 48 pixels come out of 2 or 3 doublings; the paper's own network doubles four
times, from 4 to 64 pixels. The weights are drawn from N(0, 0.02) (section 4).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from visgen.pixels import to_bytes
from visgen.seeds import Draws, normal
from visgen.tasks import refuse_condition


@dataclass(frozen=True, kw_only=True)
class DCGANConfig:
    """Defaults are for CIFAR-10 at 32 x 32."""

    bottom: int = 4  # side of the first map
    doublings: int = 3
    width: int = (
        64  # of the generator's last and the discriminator's first hidden map; others double
    )
    latent: int = 100
    family: str = "dcgan"
    task: str = "image-generation"

    def __post_init__(self) -> None:
        if self.doublings < 1:
            raise ValueError(f"doublings={self.doublings}; at least 1 is needed.")

    @property
    def image_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        side = self.bottom << self.doublings
        return side, side

    def build(self, attention: str | None = None) -> DCGAN:
        """Both networks from torch's generator, in eval mode; there is no attention in them."""
        del attention
        return DCGAN(self).eval()


class Generator(nn.Module):
    """Latent -> image: a projection, then one transposed convolution a doubling (figure 1)."""

    def __init__(self, config: DCGANConfig) -> None:
        super().__init__()
        channels = config.width << (config.doublings - 1)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(config.latent, channels, config.bottom, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
        for _ in range(config.doublings - 1):
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels // 2),
                nn.ReLU(),
            ]
            channels //= 2
        layers += [nn.ConvTranspose2d(channels, 3, 4, stride=2, padding=1), nn.Tanh()]
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, latents: Tensor) -> Tensor:
        """Normal latents (b, latent) -> images (b, 3, h, w) in [-1, 1]."""
        return self.layers(latents[:, :, None, None])


class Discriminator(nn.Module):
    """Image -> logit by strided convolutions; no batch norm after the first, as in the paper."""

    def __init__(self, config: DCGANConfig) -> None:
        super().__init__()
        channels = config.width
        layers: list[nn.Module] = [
            nn.Conv2d(3, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for _ in range(config.doublings - 1):
            layers += [
                nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(2 * channels),
                nn.LeakyReLU(0.2),
            ]
            channels *= 2
        layers.append(nn.Conv2d(channels, 1, config.bottom))
        self.layers = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, images: Tensor, draws: Draws) -> Tensor:
        """Images (b, 3, h, w) in [-1, 1] -> logits (b,); nothing is drawn."""
        del draws
        return self.layers(images).flatten()


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, mean=1.0, std=0.02)
        nn.init.zeros_(module.bias)


class DCGAN(nn.Module):
    """Generator and discriminator of one preset."""

    def __init__(self, config: DCGANConfig) -> None:
        super().__init__()
        self.config = config
        self.image_size = config.image_size
        self.latent = config.latent
        self.generator = Generator(config)
        self.discriminator = Discriminator(config)

    def networks(self) -> dict[str, nn.Module]:
        """The two parts that are trained in turn."""
        return {"generator": self.generator, "discriminator": self.discriminator}

    def generate(self, seeds: Tensor, condition: None = None, sampling: None = None) -> Tensor:
        """Pictures for seeds int64 (n,): uint8 (n, 3, h, w)."""
        refuse_condition("DCGAN", condition)
        return self.generate_from(normal(seeds, "latent", (self.latent,)))

    @torch.no_grad()
    def generate_from(self, latents: Tensor) -> Tensor:
        """Pictures for normal latents (n, latent): uint8 (n, 3, h, w)."""
        return to_bytes(self.generator(latents))


PRESETS = {
    "dcgan-cifar10": DCGANConfig(width=128),
    "dcgan-stl10": DCGANConfig(bottom=6, width=128),
    "dcgan-digits8-tiny": DCGANConfig(bottom=2, doublings=2, width=48, latent=64),
    "dcgan-digits16-tiny": DCGANConfig(doublings=2, width=32, latent=64),
    "dcgan-digits32-tiny": DCGANConfig(doublings=3, width=16, latent=64),
}

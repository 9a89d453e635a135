"""The VQ-VAE of VideoGPT (Yan et al. 2021, arXiv:2104.10157, section 3.1).

A clip becomes a grid of codes: strided 3-D convolutions, residual blocks with axial attention, and
the nearest entry of a codebook that follows the encoder by moving averages (van den Oord et al.
2017, arXiv:1711.00937, appendix A.1).

b batch, t h w clip or latent grid, c channels, d code dimension, k codes. Two families carry the
name. The released code (whose checkpoints exist) halves the channels inside a residual block and
has no positions; the paper's code (whose figures are quoted) has 128 channels there, one table of
positions that all axial blocks add, and a 3 x 3 x 3 convolution from codes to the decoder. The
paper's text has LayerNorm in its blocks; both codes have BatchNorm, and so has this.

Differs from both codes: a codebook knows whether it was initialised, so that going on with training
keeps it; first codes and restarted ones are drawn in proportion to the squared distance from the
codes that there are, not as often as vectors are, and always with the noise that the released code
adds where vectors repeat; the last bias starts at the first batch's mean;
the variance is the recipe's; colours may be turned into opponent ones, and the encoder may see a
code's own cube of the clip alone; a maximal downsampling of 2 works.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log2

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from visgen.layers.positions import AxisPositions
from visgen.layers.same_padding import SameConv3d, SameConvTranspose3d
from visgen.seeds import Draws
from visgen_kernels import Axis, attention, code_sums, nearest_code

COMMITMENT = 0.25
DECAY = 0.99
_TINY = 1e-7
_ROWS_A_CODE = 16  # from which first codes are drawn: each of them takes a walk over all


@dataclass(frozen=True, kw_only=True)
class VQVAEConfig:
    """The released code's defaults: 16 x 128 x 128 to 4 x 32 x 32 codes."""

    frames: int = 16
    size: tuple[int, int] = (128, 128)
    downsample: tuple[int, int, int] = (4, 4, 4)  # frames, rows, columns
    width: int = 240
    inner_width: int = 120  # inside a residual block
    residual_layers: int = 4
    axial: bool = True
    num_heads: int = 2
    positions: bool = False
    code_kernel: int = 1  # of the convolution from codes to the decoder
    code_dim: int = 256
    codes: int = 2048
    restart_below: float = 1.0  # counts of a code, averaged over batches
    opponent: bool = False  # ours: the convolutions see and make `OpponentColours`
    cubes: bool = False  # ours: a code is made of its own cube of the clip alone, see `Encoder`

    def __post_init__(self) -> None:
        for name, size, by in zip(
            ("frames", "rows", "columns"), (self.frames, *self.size), self.downsample, strict=True
        ):
            if by < 1 or by & (by - 1):
                raise ValueError(f"downsample={self.downsample}: {name} by {by}, no power of two.")
            if size % by:
                raise ValueError(
                    f"{size} {name} are not a multiple of the downsampling by {by}; use "
                    f"{size - size % by or by}."
                )
        if max(self.downsample) == 1:
            raise ValueError(f"downsample={self.downsample}: at least one axis is made shorter.")
        if self.cubes and (self.axial or self.positions):
            raise ValueError(
                "cubes=True makes codes of their own cube of the clip alone; axial attention and "
                "positions bring in what is around it. Use axial=False and positions=False."
            )
        if self.width % self.num_heads or (self.positions and self.width % 3):
            raise ValueError(
                f"width={self.width} is divided by {self.num_heads} heads"
                + (" and by three axes of positions." if self.positions else ".")
            )

    @property
    def grid(self) -> tuple[int, int, int]:
        """Codes along time, rows and columns."""
        t, h, w = (
            n // by for n, by in zip((self.frames, *self.size), self.downsample, strict=True)
        )
        return t, h, w

    @property
    def strides(self) -> list[tuple[int, int, int]]:
        """Of the convolutions, first to last: an axis is halved while it still has to be."""
        times = [int(log2(by)) for by in self.downsample]
        halved = [[2 if n > i else 1 for n in times] for i in range(max(times))]
        return [(t, h, w) for t, h, w in halved]

    def build(self, attention: str | None = None) -> VQVAE:
        """Initialised from torch's generator, in eval mode."""
        return VQVAE(self, attention).eval()


class AxialAttention(nn.Module):
    """Attention along columns, rows and time, each for itself, of the same input; summed."""

    def __init__(self, width: int, num_heads: int, implementation: str | None) -> None:
        super().__init__()
        self.num_heads, self.implementation = num_heads, implementation
        self.qkv = nn.Linear(width, 9 * width, bias=False)  # [axis w, h, t | q, k, v | head]
        self.out = nn.Linear(3 * width, width, bias=False)  # [axis w, h, t]
        self.bias = nn.Parameter(torch.empty(3, width))  # one an axis; only their sum acts
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.out.weight, std=width**-0.5)
        nn.init.uniform_(self.bias, -(width**-0.5), width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(b, t, h, w, c) -> the same shape."""
        packed = self.qkv(x).unflatten(-1, (3, 3, self.num_heads, -1))
        along = [
            attention(
                packed[..., axis, :, :, :],
                layout=Axis(3 - axis),
                implementation=self.implementation,
            )
            for axis in range(3)
        ]  # each (b, t, h, w, heads, c / heads)
        return self.out(torch.cat([x.flatten(-2) for x in along], -1)) + self.bias.sum(0)


class ResidualBlock(nn.Module):
    """x + axial(conv1(conv(x))), each after a norm and a ReLU; conv has 3 places a side, or 1."""

    def __init__(self, config: VQVAEConfig, kernel: int, implementation: str | None) -> None:
        super().__init__()
        width, inner = config.width, config.inner_width
        self.norm1 = nn.BatchNorm3d(width)
        self.conv1 = SameConv3d(width, inner, kernel, bias=False)
        self.norm2 = nn.BatchNorm3d(inner)
        self.conv2 = SameConv3d(inner, width, 1, bias=False)
        self.axial = self.norm3 = None
        if config.axial:
            self.norm3 = nn.BatchNorm3d(width)
            self.axial = AxialAttention(width, config.num_heads, implementation)

    def forward(self, x: Tensor, positions: AxisPositions | None) -> Tensor:
        """(b, c, t, h, w) -> the same shape."""
        y = self.conv1(F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        if self.axial is None or self.norm3 is None:
            return x + y
        y = F.relu(self.norm3(y)).movedim(1, -1)  # (b, t, h, w, c)
        if positions is not None:
            y = y + positions()
        return x + self.axial(y).movedim(-1, 1)


class ResidualStack(nn.Module):
    """Residual blocks, a norm and a ReLU."""

    def __init__(self, config: VQVAEConfig, kernel: int, implementation: str | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(config, kernel, implementation) for _ in range(config.residual_layers)
        )
        self.norm = nn.BatchNorm3d(config.width)

    def forward(self, x: Tensor, positions: AxisPositions | None) -> Tensor:
        """(b, c, t, h, w) -> the same shape."""
        for block in self.blocks:
            x = block(x, positions)
        return F.relu(self.norm(x))


class OpponentColours(nn.Module):
    """Red, green and blue as brightness and two colour differences: an orthonormal basis.

    A squared error is the same in either. But colours differ less than brightness, and a network
    learns their differences late unless it sees and makes them as values of their own, at a scale
    like brightness' (the gains bring standard deviations of our drawn sets to 0.3 to 0.8).
    """

    basis: Tensor  # (3, 3), a row each
    gains: Tensor  # (3,)

    def __init__(self) -> None:
        super().__init__()
        rows = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 2.0, -1.0]])
        self.register_buffer("basis", F.normalize(rows, dim=1), persistent=False)
        self.register_buffer("gains", torch.tensor([3.0, 8.0, 8.0]), persistent=False)

    def split(self, clips: Tensor) -> Tensor:
        """(b, 3, t, h, w) in [-0.5, 0.5] -> the same shape; black is 0, as padding is."""
        return F.conv3d(clips + 0.5, (self.gains[:, None] * self.basis)[:, :, None, None, None])

    def join(self, values: Tensor) -> Tensor:
        """What the decoder makes, without the gains, -> clips around 0."""
        return F.conv3d(values, self.basis.T[:, :, None, None, None])


class Encoder(nn.Module):
    """Clip -> features of the latent grid.

    Kernels of 4 and 3 see far beyond a code's own cube of the clip: two strided convolutions, the
    last one and a residual block 26 pixels, and more frames than a tiny clip has. Its code then
    depends on things elsewhere and later, and the same ground gets ever other codes, which a prior
    has to guess. With `cubes` kernels are as large as strides, then 1, and equal cubes have equal
    codes: on the grid agent's clips, whose ground is one colour, the codes' entropy fell from 4.4
    to 0.8 nats (with the codebook's new way of drawing codes).
    """

    def __init__(self, config: VQVAEConfig, implementation: str | None) -> None:
        super().__init__()
        width, sides = config.width, 1 if config.cubes else 3
        channels_in = (3, *[width] * (len(config.strides) - 1))
        self.convs = nn.ModuleList(
            nn.Conv3d(channels, width, strides, strides)
            if config.cubes
            else SameConv3d(channels, width, 4, strides)
            for channels, strides in zip(channels_in, config.strides, strict=True)
        )
        self.last = SameConv3d(width, width, sides)
        self.stack = ResidualStack(config, sides, implementation)

    def forward(self, x: Tensor, positions: AxisPositions | None) -> Tensor:
        """(b, 3, T, H, W) -> (b, c, t, h, w)."""
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.stack(self.last(x), positions)


class Decoder(nn.Module):
    """Features of the latent grid -> clip; the strides come in the encoder's order."""

    def __init__(self, config: VQVAEConfig, implementation: str | None) -> None:
        super().__init__()
        self.stack = ResidualStack(config, 3, implementation)
        widths = [*[config.width] * (len(config.strides) - 1), 3]
        self.convs = nn.ModuleList(
            SameConvTranspose3d(config.width, channels, 4, strides)
            for channels, strides in zip(widths, config.strides, strict=True)
        )

    def forward(self, x: Tensor, positions: AxisPositions | None) -> Tensor:
        """(b, c, t, h, w) -> (b, 3, T, H, W)."""
        x = self.stack(x, positions)
        for conv in self.convs[:-1]:
            x = F.relu(conv(x))
        return self.convs[-1](x)


class Codebook(nn.Module):
    """k codes that follow the vectors that choose them, by moving averages."""

    codes: Tensor  # (k, d)
    counts: Tensor  # (k,), moving average of how many vectors chose a code in a batch
    sums: Tensor  # (k, d), that of their sums
    initialized: Tensor  # (), bool

    def __init__(self, codes: int, dim: int, restart_below: float) -> None:
        super().__init__()
        self.restart_below = restart_below
        self.register_buffer("codes", torch.randn(codes, dim))
        self.register_buffer("counts", torch.zeros(codes))
        self.register_buffer("sums", self.codes.clone())
        self.register_buffer("initialized", torch.zeros((), dtype=torch.bool))

    def forward(self, z: Tensor) -> Tensor:
        """Vectors (..., d) -> indices int64 (...) of their nearest codes, the lowest of equals."""
        return nearest_code(z, self.codes)

    @torch.no_grad()
    def initialize(self, rows: Tensor, draws: Draws) -> None:
        """The codes become vectors of the first batch (n, d), and each counts as chosen once.

        One after another they are drawn in proportion to the squared distance from the nearest code
        drawn before (k-means++, Arthur and Vassilvitskii 2007, section 2.2), of at most 16 vectors
        a code, evenly taken. Drawn as often as they are, most would be shades of what fills the
        clips.
        """
        rows = rows.detach().float()[:: -(-len(rows) // (_ROWS_A_CODE * len(self.codes)))]
        numbers = self._stream(draws).uniform("first", (len(self.codes),))[0].double()
        nearest = torch.full((len(rows),), torch.inf, device=rows.device)
        chosen = [(numbers[0] * len(rows)).long()]
        for number in numbers[1:]:
            distance = (rows - rows[chosen[-1]]).square().sum(1)
            nearest = torch.minimum(nearest, distance)
            chosen.append(_in_proportion(nearest, number[None])[0])
        drawn = self._told(rows[torch.stack(chosen)], draws)
        self.codes.copy_(drawn)
        self.sums.copy_(drawn)
        self.counts.fill_(1.0)
        self.initialized.fill_(True)

    @torch.no_grad()
    def update(self, rows: Tensor, indices: Tensor, draws: Draws) -> None:
        """Move the codes towards the vectors (n, d) that chose them (n,).

            N <- .99 N + .01 n     S <- .99 S + .01 s     e = S / (N smoothed)

        Then every code with N below `restart_below` becomes a vector of the batch; N and S stay.
        These are drawn in proportion to their squared distance from the code that they chose.
        """
        rows = rows.detach().float()
        far = (rows - self.codes[indices]).square().sum(1)
        counts, sums = code_sums(rows, indices, len(self.codes))
        counts, sums = counts.to(self.counts.dtype), sums.to(self.sums.dtype)
        if dist.is_initialized():
            dist.all_reduce(counts)
            dist.all_reduce(sums)
        self.counts.mul_(DECAY).add_(counts, alpha=1 - DECAY)
        self.sums.mul_(DECAY).add_(sums, alpha=1 - DECAY)
        total = self.counts.sum()
        smoothed = (self.counts + _TINY) / (total + len(self.counts) * _TINY) * total
        used = (self.counts >= self.restart_below)[:, None]
        stream = self._stream(draws)
        order = stream.uniform("order", (len(self.codes),))[0].argsort()
        within = stream.uniform("row", (len(self.codes),))[0].double()
        strata = (torch.arange(len(order), device=rows.device) + within) / len(order)
        drawn = self._told(rows[_in_proportion(far, strata)[order]], draws)
        self.codes.copy_(torch.where(used, self.sums / smoothed[:, None], drawn))

    def _stream(self, draws: Draws) -> Draws:
        return Draws(draws.seeds[:1].to(self.codes.device), f"{draws.stream}/codebook", draws.step)

    def _told(self, drawn: Tensor, draws: Draws) -> Tensor:
        """The first rank's vectors, with the released code's noise: a row may be drawn twice."""
        noise = self._stream(draws).normal("noise", tuple(drawn.shape))[0]
        drawn = (drawn + noise * (0.01 * drawn.shape[1] ** -0.5)).contiguous()
        if dist.is_initialized():
            dist.broadcast(drawn, 0)
        return drawn


def _in_proportion(weights: Tensor, numbers: Tensor) -> Tensor:
    """Places in weights (n,), each as likely as it weighs, by numbers (m,) in [0, 1): int64 (m,).

    Where nothing weighs anything, all places are alike.
    """
    cumulated = weights.double().clamp(min=1e-30).cumsum(0)
    return torch.searchsorted(cumulated, numbers * cumulated[-1], right=True).clamp_(
        max=len(weights) - 1
    )


class VQVAE(nn.Module):
    """Clips to codes and back. Clips are float (b, 3, T, H, W) in [-0.5, 0.5] inside."""

    def __init__(self, config: VQVAEConfig, implementation: str | None = None) -> None:
        super().__init__()
        self.config = config
        self.positions = None
        if config.positions:
            self.positions = AxisPositions(config.grid, config.width)
        self.colours = OpponentColours() if config.opponent else None
        self.encoder = Encoder(config, implementation)
        self.to_code = SameConv3d(config.width, config.code_dim, 1)
        self.codebook = Codebook(config.codes, config.code_dim, config.restart_below)
        self.from_code = SameConv3d(config.code_dim, config.width, config.code_kernel)
        self.decoder = Decoder(config, implementation)

    def vectors(self, clips: Tensor) -> Tensor:
        """Clips -> what is quantised, (b, t, h, w, d)."""
        seen = clips if self.colours is None else self.colours.split(clips)
        return self.to_code(self.encoder(seen, self.positions)).movedim(1, -1)

    def encode(self, clips: Tensor) -> Tensor:
        """Clips -> codes int64 (b, t, h, w)."""
        return self.codebook(self.vectors(clips))

    def embed(self, codes: Tensor) -> Tensor:
        """Codes int64 (...) -> their vectors (..., d)."""
        return F.embedding(codes, self.codebook.codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 (b, t, h, w) -> clips; values may lie a little outside [-0.5, 0.5]."""
        return self._decode(self.embed(codes))

    def _decode(self, vectors: Tensor) -> Tensor:
        made = self.decoder(self.from_code(vectors.movedim(-1, 1)), self.positions)
        return made if self.colours is None else self.colours.join(made)

    def loss(self, clips: Tensor, draws: Draws, variance: float) -> dict[str, Tensor]:
        """Squared error over the data's variance, plus the commitment of vectors to their codes.

        In training mode the codebook moves, after the codes of this batch were looked up, and the
        first (micro-)batch sets where training starts: codes, and the mean of what is decoded. (On
        dark clips of small things the last bias else needs a hundred steps to get there, and a
        hundred more pass before anything else is learned.)

        Args:
            variance: Of the values of all clips, which lie in [-0.5, 0.5].

        Returns:
            `loss` and, without gradient, `error` (squared, per value), `commitment`, `perplexity`
            (of this batch's codes) and `alive` (share of codes that would not be restarted).
        """
        z = self.vectors(clips)
        rows = z.flatten(0, -2)
        if self.training and not bool(self.codebook.initialized):
            self.codebook.initialize(rows, draws.fork("first"))
            self._start_at_mean(clips)
        indices = self.codebook(rows)
        e = self.embed(indices).view_as(z)
        commitment = COMMITMENT * F.mse_loss(z, e)
        error = F.mse_loss(self._decode(z + (e - z).detach()), clips)  # straight through
        if self.training:
            self.codebook.update(rows, indices, draws)
        return {
            "loss": error / variance + commitment,
            "error": error.detach(),
            "commitment": commitment.detach(),
            "perplexity": perplexity(indices, self.config.codes),
            "alive": (self.codebook.counts >= self.codebook.restart_below).float().mean(),
        }

    @torch.no_grad()
    def _start_at_mean(self, clips: Tensor) -> None:
        mean = clips.mean((0, 2, 3, 4))
        if dist.is_initialized():
            dist.all_reduce(mean)
            mean /= dist.get_world_size()
        bias = self.decoder.convs[-1].bias
        assert isinstance(bias, Tensor)
        bias.copy_(mean if self.colours is None else (self.colours.basis * mean).sum(1))


def perplexity(indices: Tensor, codes: int) -> Tensor:
    """Exponential of the entropy of the codes' frequencies: between 1 and the number of codes."""
    places, counts = indices.flatten(), torch.zeros(codes, device=indices.device)
    counts.index_add_(0, places, torch.ones_like(places, dtype=counts.dtype))
    share = counts / places.numel()
    return (-(share * (share + 1e-10).log()).sum()).exp()

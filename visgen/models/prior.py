"""The transformer prior of VideoGPT (Yan et al. 2021, arXiv:2104.10157, section 3.2).

It predicts the codes of a clip in raster order over time, rows and columns, each from those before
it: the codes' vectors, shifted by one, with learned positions, through blocks of causal attention.
Frames and text are attended to by every block; a vector (class, actions) scales and shifts every
norm. b batch, l codes of a clip, d code dimension, e width, k codebook size, m condition tokens of
f channels.

The released code and the paper's differ in the output projections' bias, in the width of the values
of cross-attention, and in the positions (the paper's code counts codebooks as a fourth axis). Text
is ours: a small bidirectional encoder over words, whose outputs are keys beside those of frames,
and whose mean may be part of the norms' vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visgen.layers.positions import AxisPositions
from visgen.layers.projection import Projection
from visgen.models.frame_encoder import DEPTHS, WIDTHS, FrameEncoder
from visgen.seeds import Draws
from visgen_kernels import BlockList, Causal, Full, attention, attention_decode

# Codes near the one that is drawn, (time, row, column) from it: all nine of the step before, two of
# the row above, and the same place two steps before.
_NEIGHBOURS = (
    *((-1, 0, 0), (-1, 0, 1), (-1, 1, 0), (0, -1, 0)),
    *((-1, 0, -1), (-1, -1, 0), (-1, 1, 1), (0, -1, 1)),
    *((-1, -1, -1), (-1, -1, 1), (-1, 1, -1), (-2, 0, 0)),
)
_NEIGHBOUR_SCORE = 3.0  # before the softmax, for each axis that fits


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """The released code's defaults, for clips of 4 x 32 x 32 codes."""

    grid: tuple[int, int, int] = (4, 32, 32)
    code_dim: int = 256
    codes: int = 2048
    width: int = 576
    layers: int = 8
    num_heads: int = 4
    mlp_ratio: int = 4
    dropout: float = 0.2
    attention_dropout: float = 0.3  # with full attention; the sparse one has none
    sparse: bool = False
    out_bias: bool = True
    position_axes: int = 3  # 4: with one for codebooks, of which there is one
    position_std: float = 0.01  # of the tables of positions at first
    neighbour_heads: bool = False  # ours: at first every head looks for one code near by
    legacy_norm: bool = False  # epsilon outside the root, as both codes have it
    classes: int = 0
    actions: int = 0  # numbers in an action vector
    frames: int = 0  # first frames that are looked at
    frame_size: int = 64
    frame_channels: int = 240
    frame_depths: tuple[int, int, int, int] = DEPTHS
    frame_widths: tuple[int, int, int] = WIDTHS
    cross_values: int = 240  # width of cross-attention's values
    words: tuple[str, ...] = ()  # that text may hold; none: no text
    text_tokens: int = 32
    text_layers: int = 4
    text_in_norms: bool = False  # the mean of a sentence's tokens is part of the norms' vector

    def __post_init__(self) -> None:
        if self.width % self.num_heads or self.width % self.position_axes:
            raise ValueError(
                f"width={self.width} is divided by {self.num_heads} heads and by "
                f"{self.position_axes} axes of positions; use a multiple of both."
            )
        if self.neighbour_heads:
            self._check_neighbour_heads()
        if self.cross_values % self.num_heads:
            raise ValueError(
                f"cross_values={self.cross_values} is not a multiple of {self.num_heads} heads."
            )
        if self.sparse and self.tokens % 32:
            raise ValueError(
                f"sparse attention goes by blocks of 32 codes; {self.grid} holds {self.tokens}."
            )
        if self.frames and (self.frame_size % 4 or self.frame_channels % 3):
            raise ValueError(
                f"frame_size={self.frame_size} is a multiple of 4, and "
                f"frame_channels={self.frame_channels} of 3 (axes of positions)."
            )
        if self.text_in_norms and not self.words:
            raise ValueError("text_in_norms=True without words; name the words, or leave it out.")

    def _check_neighbour_heads(self) -> None:
        head, part = self.width // self.num_heads, self.width // self.position_axes
        side, seen = self.frame_size // 4, self.frame_channels // 3
        if self.sparse:
            raise ValueError("neighbour_heads=True wants full attention; leave sparse out.")
        if self.position_std < 0.1:
            raise ValueError(
                f"position_std={self.position_std}: below 0.1 neighbour_heads cannot tell places "
                f"from codes; use 0.5."
            )
        if min(self.grid) < 3:
            raise ValueError(
                f"neighbour_heads=True looks two steps far, and {self.grid} has an axis of "
                f"{min(self.grid)}; leave it out."
            )
        if 2 * max(self.grid) > part or sum(self.grid) > head:
            raise ValueError(
                f"neighbour_heads=True wants {2 * max(self.grid)} channels an axis and "
                f"{sum(self.grid)} a head, to tell the places of {self.grid} apart; width="
                f"{self.width} has {part} and {head}. Widen it, or leave neighbour_heads out."
            )
        if self.frames and (2 * side > seen or 2 * side > head):
            raise ValueError(
                f"neighbour_heads=True wants {2 * side} of the frames' channels an axis, and of a "
                f"head's, to tell their places apart; frame_channels={self.frame_channels} has "
                f"{seen}, a head {head}. Widen them, or leave neighbour_heads out."
            )

    @property
    def tokens(self) -> int:
        """Codes of a clip."""
        return prod(self.grid)

    @property
    def vector(self) -> int:
        """Numbers of the vector that the norms follow; 0: they follow none."""
        text = self.frame_channels if self.text_in_norms else 0
        return self.classes + self.actions + text

    @property
    def looks(self) -> bool:
        """Is there anything to attend to beside the codes?"""
        return bool(self.frames or self.words)

    def build(self, attention: str | None = None) -> Prior:
        """Initialised from torch's generator, in eval mode."""
        return Prior(self, attention).eval()


@dataclass(frozen=True, eq=False)
class Seen:
    """A batch's conditions as the blocks take them.

    Attributes:
        vector: (b, c), zeros where a sample has none; None if the norms follow none.
        tokens: (b, m, f) to attend to; None if there are none.
        hidden: bool (b, m), true for tokens of a condition that a sample lacks.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    hidden: Tensor | None = None


Affine = tuple[Tensor, Tensor]


class TokenNorm(nn.Module):
    """LayerNorm whose scale and shift may follow a vector: 1 + W c and W' c.

    W starts at 1 / sqrt(c's length): a one-hot vector scales by 1 + that. c = 0 is a plain norm.
    """

    def __init__(self, width: int, vector: int, legacy: bool) -> None:
        super().__init__()
        self.legacy, self.vector = legacy, vector
        if vector:
            self.scale = Projection(vector, width, bias=False)
            self.shift = Projection(vector, width, bias=False)
            nn.init.constant_(self.scale.weight, vector**-0.5)
        else:
            self.weight = nn.Parameter(torch.ones(width))
            self.bias = nn.Parameter(torch.zeros(width))

    def affine(self, vector: Tensor | None) -> Affine:
        """Scale and shift that broadcast with (b, l, e)."""
        if not self.vector:
            return self.weight, self.bias
        assert vector is not None
        return 1 + self.scale(vector)[:, None], self.shift(vector)[:, None]

    def forward(self, x: Tensor, affine: Affine) -> Tensor:
        """(b, l, e) -> the same shape and dtype; computed in float32 or wider."""
        scale, shift = affine
        if x.dtype == scale.dtype == torch.float32 and not (self.legacy or self.vector):
            return F.layer_norm(x, x.shape[-1:], scale, shift)  # one operation for all
        wide = x if x.dtype == torch.float64 else x.float()
        if self.legacy:
            variance, mean = torch.var_mean(wide, -1, correction=0, keepdim=True)
            normed = (wide - mean) * (1e-5 + variance.rsqrt())
        else:
            normed = F.layer_norm(wide, wide.shape[-1:])
        return (normed * scale + shift).to(x.dtype)


class SelfAttention(nn.Module):
    """Causal attention among the codes: over all earlier ones, or over listed blocks of them."""

    def __init__(self, config: PriorConfig, implementation: str | None) -> None:
        super().__init__()
        width = config.width
        self.num_heads, self.implementation = config.num_heads, implementation
        self.dropout = 0.0 if config.sparse else config.attention_dropout
        self.mask = BlockList.strided(*config.grid) if config.sparse else Causal()
        self.qkv = Projection(width, 3 * width, bias=False)  # [q | k | v], each [head | channel]
        self.out = Projection(width, width, bias=config.out_bias)
        nn.init.normal_(self.qkv.weight, std=width**-0.5)
        nn.init.normal_(self.out.weight, std=(width * config.layers) ** -0.5)

    def forward(self, x: Tensor, draws: Draws | None) -> Tensor:
        """(b, l, e) -> (b, l, e)."""
        dropout, seed = 0.0, None
        if self.training and self.dropout and draws is not None:
            dropout, seed = self.dropout, draws.batch_seed("attention")
        mixed = attention(
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)),
            mask=self.mask,
            dropout=dropout,
            seed=seed,
            implementation=self.implementation,
        )
        return self.out(mixed.flatten(-2))

    def step(self, x: Tensor, memory: Tensor, lengths: Tensor, at: int) -> Tensor:
        """The code at `at`: (b, 1, e) -> (b, 1, e).

        memory: (2, b, h, l, e / h), keys and values of the codes before; this one's are written.
        """
        packed = self.qkv(x).view(len(x), 3, self.num_heads, -1)
        memory[:, :, :, at] = packed[:, 1:].transpose(0, 1)
        if x.device.type == "cpu" and isinstance(self.mask, Causal):
            # A query that sees all keys needs no lengths. Finding that out costs `attention_decode`
            # a seventh of a step (10.5 ms with it, 9.0 without): keys push Python out of caches.
            keys, values = memory[:, :, :, : at + 1].unbind()
            scores = (packed[:, 0, :, None] * keys.shape[-1] ** -0.5) @ keys.mT  # (b, h, 1, l)
            return self.out((scores.softmax(-1) @ values).view(x.shape))
        blocks = self.mask if isinstance(self.mask, BlockList) else None
        keys, values = memory.transpose(2, 3).unbind()
        mixed = attention_decode(packed[:, 0, None], keys, values, lengths, blocks=blocks)
        return self.out(mixed.flatten(-2))


class CrossAttention(nn.Module):
    """Codes attend to frames and words."""

    def __init__(self, config: PriorConfig, implementation: str | None) -> None:
        super().__init__()
        width, channels = config.width, config.frame_channels
        self.num_heads, self.implementation = config.num_heads, implementation
        self.query = Projection(width, width, bias=False)
        self.key = Projection(channels, width, bias=False)
        self.value = Projection(channels, config.cross_values, bias=False)
        self.out = Projection(config.cross_values, width, bias=config.out_bias)
        nn.init.normal_(self.query.weight, std=width**-0.5)
        nn.init.normal_(self.key.weight, std=channels**-0.5)
        nn.init.normal_(self.value.weight, std=channels**-0.5)
        nn.init.normal_(self.out.weight, std=(width * config.layers) ** -0.5)

    def keys_and_values(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(b, m, f) -> (b, m, h, e / h) and (b, m, h, values / h)."""
        heads = (self.num_heads, -1)
        return self.key(tokens).unflatten(-1, heads), self.value(tokens).unflatten(-1, heads)

    def forward(self, x: Tensor, pair: tuple[Tensor, Tensor], hidden: Tensor | None) -> Tensor:
        """(b, l, e) -> (b, l, e); hidden: bool (b, m)."""
        bias = None
        if hidden is not None:
            bias = torch.zeros_like(hidden, dtype=x.dtype).masked_fill_(hidden, -torch.inf)
            bias = bias[..., None].expand(-1, -1, self.num_heads)
        mixed = attention(
            self.query(x).unflatten(-1, (self.num_heads, -1)),
            *pair,
            mask=Full(),
            key_bias=bias,
            implementation=self.implementation,
        )
        return self.out(mixed.flatten(-2))


class Block(nn.Module):
    """x + attention(norm x), then x + cross-attention(norm x), then x + MLP(norm x)."""

    def __init__(self, config: PriorConfig, implementation: str | None) -> None:
        super().__init__()
        width, vector, legacy = config.width, config.vector, config.legacy_norm
        self.dropout = config.dropout
        self.norm1 = TokenNorm(width, vector, legacy)
        self.attention = SelfAttention(config, implementation)
        self.norm2 = self.cross = None
        if config.looks:
            self.norm2 = TokenNorm(width, vector, legacy)
            self.cross = CrossAttention(config, implementation)
        self.norm3 = TokenNorm(width, vector, legacy)
        self.widen = Projection(width, config.mlp_ratio * width)
        self.narrow = Projection(config.mlp_ratio * width, width)

    def forward(self, x: Tensor, seen: Seen, draws: Draws | None) -> Tensor:
        """(b, l, e) -> (b, l, e)."""
        vector = seen.vector
        x = x + self._drop(
            self.attention(self.norm1(x, self.norm1.affine(vector)), draws), "1", draws
        )
        if self.cross is not None and self.norm2 is not None and seen.tokens is not None:
            pair = self.cross.keys_and_values(seen.tokens)
            y = self.cross(self.norm2(x, self.norm2.affine(vector)), pair, seen.hidden)
            x = x + self._drop(y, "2", draws)
        return x + self._drop(self.mlp(self.norm3(x, self.norm3.affine(vector))), "3", draws)

    def mlp(self, x: Tensor) -> Tensor:
        """Linear, x sigmoid(1.702 x), Linear."""
        y = self.widen(x)
        return self.narrow(y * torch.sigmoid(1.702 * y))

    def _drop(self, x: Tensor, name: str, draws: Draws | None) -> Tensor:
        if not (self.training and self.dropout and draws is not None):
            return x
        generator = draws.generator(f"drop-{name}", x.device)
        keep = torch.empty_like(x).bernoulli_(1 - self.dropout, generator=generator)
        return x * keep / (1 - self.dropout)


class TextEncoder(nn.Module):
    """Words -> tokens of the width of frame features. Ours; no paper has it."""

    def __init__(self, config: PriorConfig, implementation: str | None) -> None:
        super().__init__()
        width = config.frame_channels
        self.implementation = implementation
        self.words = nn.Embedding(len(config.words) + 1, width)  # the last one: a word not known
        self.places = nn.Parameter(torch.randn(config.text_tokens, width) * 0.01)
        nn.init.normal_(self.words.weight, std=0.02)
        self.blocks = nn.ModuleList(
            TextBlock(width, config.num_heads) for _ in range(config.text_layers)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, words: Tensor, lengths: Tensor) -> Tensor:
        """Numbers int64 (b, m), of which the first lengths (b,) count -> (b, m, f)."""
        x = self.words(words) + self.places[: words.shape[1]]
        for block in self.blocks:
            x = block(x, lengths, self.implementation)
        return self.norm(x)


class TextBlock(nn.Module):
    """Pre-norm block of attention among words."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, lengths: Tensor, implementation: str | None) -> Tensor:
        """(b, m, f) -> (b, m, f)."""
        packed = self.qkv(self.norm1(x)).unflatten(-1, (3, self.num_heads, -1))
        mixed = attention(packed, key_lengths=lengths, implementation=implementation)
        x = x + self.out(mixed.flatten(-2))
        return x + self.narrow(F.gelu(self.widen(self.norm2(x))))


@dataclass(eq=False)
class Cache:
    """What the blocks keep of the codes before the next one.

    Attributes:
        memory: Keys and values, one (2, b, h, l, e / h) a block, written up to `at`.
        places: Positions of all codes, (l, e).
        affines: Scale and shift of every norm, in the order of their use.
        pairs: Keys and values of the conditions, one a block.
        hidden: As in `Seen`.
        at: Codes that are known.
    """

    memory: list[Tensor]
    places: Tensor
    affines: list[Affine]
    pairs: list[tuple[Tensor, Tensor]]
    hidden: Tensor | None
    at: int = 0


def _set_block(weight: Tensor, values: Tensor) -> None:
    """Set the upper left of a weight."""
    weight[: values.shape[0], : values.shape[1]] = values


def mean_of_shown(tokens: Tensor, hidden: Tensor) -> Tensor:
    """Mean of the tokens (b, m, f) that are not hidden, bool (b, m): (b, f); 0 where all are."""
    shown = (~hidden).to(tokens.dtype)[..., None]
    return (tokens * shown).sum(1) / shown.sum(1).clamp(min=1)


class Prior(nn.Module):
    """Logits of every code of a clip, from the codes before it."""

    def __init__(self, config: PriorConfig, implementation: str | None = None) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.embed = Projection(config.code_dim, width, bias=False)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.start = nn.Parameter(torch.randn(width) * 0.02)
        axes = (*config.grid, 1)[: config.position_axes]
        self.positions = AxisPositions(axes, width, config.position_std)
        self.frame_encoder = self.frame_positions = self.text_encoder = self.kinds = None
        if config.frames:
            side = config.frame_size // 4
            self.frame_encoder = FrameEncoder(
                config.frame_channels, config.frame_depths, config.frame_widths
            )
            self.frame_positions = AxisPositions(
                (config.frames, side, side), config.frame_channels, config.position_std
            )
        if config.words:
            self.text_encoder = TextEncoder(config, implementation)
        if config.frames and config.words:  # tells frames from words
            self.kinds = nn.Parameter(torch.zeros(2, config.frame_channels))
        self.blocks = nn.ModuleList(Block(config, implementation) for _ in range(config.layers))
        self.norm = TokenNorm(width, config.vector, config.legacy_norm)
        self.out = Projection(width, config.codes, bias=False)
        nn.init.zeros_(self.out.weight)  # the first loss is ln k
        if config.neighbour_heads:
            self._look_at_neighbours()

    @torch.no_grad()
    def _look_at_neighbours(self) -> None:
        """Let every head begin by looking for one code: of the step before, or of this one so far.

        As ConViT begins as a convolution (d'Ascoli et al. 2021, arXiv:2103.10697, section 3). A
        table of positions times its pseudo-inverse is the identity, so a head can have a channel
        for each place of each axis: keys mark their own place, queries the one that is looked for.
        The code of a place is the input of the next place, except of a row's last: there a head
        knows only the row and the step. Heads of cross-attention begin by looking for the frames'
        features of their own row and column.

        How sharply depends on how loud codes are beside positions: of the tiny presets' codes,
        which are about as loud, 12 to 19 % of the attention goes to the code looked for, against
        0.4 % at random, and of their frames 22 to 26 %. Begun at random, the grid agent's prior
        costs about 0.48 nats a code after 800 steps and knows nothing from the step before; begun
        so, 0.22 after 400.
        """
        config, width = self.config, self.config.width // self.config.num_heads
        scale = (_NEIGHBOUR_SCORE * width**0.5) ** 0.5
        # Norms divide by about the positions' size before queries and keys are made of them.
        own = [scale * config.position_std * torch.linalg.pinv(t).T for t in self.positions.tables]
        ways = cycle(_NEIGHBOURS)
        for block in self.blocks:
            assert isinstance(block, Block)
            queries, keys, _ = block.attention.qkv.weight.split(config.width)
            for first, (dt, dy, dx) in zip(range(0, config.width, width), ways, strict=False):
                moves = [
                    torch.ones(size - abs(by)).diag(-by)  # from place p to p + by
                    for size, by in zip(config.grid, (dt, dy, dx + 1), strict=True)
                ]
                looked_for = [move @ marks for move, marks in zip(moves, own, strict=False)]
                _set_block(queries[first:], torch.block_diag(*looked_for))
                _set_block(keys[first:], torch.block_diag(*own[:3]))
                if block.cross is not None and self.frame_positions is not None:
                    self._look_at_own_place(block.cross, first, own[1:3], scale)

    def _look_at_own_place(
        self, cross: CrossAttention, first: int, own: list[Tensor], scale: float
    ) -> None:
        """One head of cross-attention, from channel `first` on; `own` marks rows and columns."""
        assert self.frame_positions is not None
        tables = list(self.frame_positions.tables)
        seen = [scale * torch.linalg.pinv(table).T for table in tables[1:]]
        places = [
            F.one_hot(torch.arange(len(mine)) * len(theirs) // len(mine), len(theirs)).T.float()
            for mine, theirs in zip(own, seen, strict=True)
        ]
        looked_for = [place @ marks for place, marks in zip(places, own, strict=True)]
        mine, theirs = self.positions.tables[0].shape[1], tables[0].shape[1]  # channels of time
        _set_block(cross.query.weight[first:, mine:], torch.block_diag(*looked_for))
        _set_block(cross.key.weight[first:, theirs:], torch.block_diag(*seen))

    def forward(self, vectors: Tensor, seen: Seen, draws: Draws | None = None) -> Tensor:
        """Logits (b, l, k) of all codes.

        Args:
            vectors: (b, t, h, w, d) of the codes; that of the last one has no influence.
            seen: The conditions, from `look`.
            draws: For dropout in training mode; None: no dropout.
        """
        x = self.embed(vectors.flatten(1, -2))
        x = torch.cat([self.start.to(x.dtype).expand(len(x), 1, -1), x[:, :-1]], 1)
        x = x + self.positions().flatten(0, -2)
        for number, block in enumerate(self.blocks):
            x = block(x, seen, None if draws is None else draws.fork(f"block-{number}"))
        return self.out(self.norm(x, self.norm.affine(seen.vector)))

    def look(
        self,
        batch: int,
        *,
        labels: Tensor | None = None,
        actions: Tensor | None = None,
        frames: Tensor | None = None,
        words: Tensor | None = None,
        lengths: Tensor | None = None,
        given: dict[str, Tensor] | None = None,
    ) -> Seen:
        """Conditions as the blocks take them; what is None is nobody's condition.

        Args:
            batch: Samples.
            labels: int64 (b,).
            actions: float (b, config.actions).
            frames: float (b, 3, n, r, r) in [-0.5, 0.5].
            words: int64 (b, m), numbers of words; `lengths` (b,) of them count.
            lengths: int64 (b,).
            given: Of "labels", "actions", "frames", "words": bool (b,), the samples that have it;
                absent: all of them.
        """
        given, config = given or {}, self.config
        tokens, hidden, said = [], [], None
        if self.frame_encoder is not None and self.frame_positions is not None:
            found = (config.frames, config.frame_size // 4, config.frame_size // 4)
            shape = (batch, prod(found), config.frame_channels)
            if frames is None:
                tokens.append(self.start.new_zeros(shape))
                hidden.append(self._absent(batch, shape[1]))
            else:
                features = self.frame_encoder(frames) + self.frame_positions()
                tokens.append(features.flatten(1, 3))
                hidden.append(~self._given("frames", batch, given)[:, None].expand(-1, shape[1]))
        if self.text_encoder is not None:
            count = config.text_tokens if words is None else words.shape[1]
            if words is None or lengths is None:
                tokens.append(self.start.new_zeros(batch, count, config.frame_channels))
                hidden.append(self._absent(batch, count))
            else:
                tokens.append(self.text_encoder(words, lengths))
                beyond = torch.arange(count, device=words.device) >= lengths[:, None]
                hidden.append(beyond | ~self._given("words", batch, given)[:, None])
                said = mean_of_shown(tokens[-1], hidden[-1])
        vector = self._vector(batch, labels, actions, said, given) if config.vector else None
        if self.kinds is not None:
            tokens = [x + kind for x, kind in zip(tokens, self.kinds, strict=True)]
        if not tokens:
            return Seen(vector)
        return Seen(vector, torch.cat(tokens, 1), torch.cat(hidden, 1))

    def _vector(
        self,
        batch: int,
        labels: Tensor | None,
        actions: Tensor | None,
        said: Tensor | None,
        given: dict[str, Tensor],
    ) -> Tensor:
        parts = []
        if self.config.classes:
            part = self.start.new_zeros(batch, self.config.classes)
            if labels is not None:
                part = F.one_hot(labels, self.config.classes).to(part.dtype)
                part = part * self._given("labels", batch, given)[:, None]
            parts.append(part)
        if self.config.actions:
            part = self.start.new_zeros(batch, self.config.actions)
            if actions is not None:
                part = actions.to(part.dtype) * self._given("actions", batch, given)[:, None]
            parts.append(part)
        if self.config.text_in_norms:
            none = self.start.new_zeros(batch, self.config.frame_channels)
            parts.append(none if said is None else said)
        return torch.cat(parts, -1)

    def _given(self, name: str, batch: int, given: dict[str, Tensor]) -> Tensor:
        device = self.start.device
        return given.get(name, torch.ones(batch, dtype=torch.bool, device=device))

    def _absent(self, batch: int, count: int) -> Tensor:
        return torch.ones(batch, count, dtype=torch.bool, device=self.start.device)

    def cache(self, seen: Seen, batch: int, reused: Cache | None = None) -> Cache:
        """An empty cache for clips under these conditions; `reused` lends its memory."""
        config = self.config
        heads = config.num_heads
        shape = (2, batch, heads, config.tokens, config.width // heads)
        if reused is not None and reused.memory[0].shape == shape:
            memory = reused.memory
        else:
            memory = [self.start.new_empty(shape) for _ in self.blocks]
        affines, pairs = [], []
        for block in self.blocks:
            assert isinstance(block, Block)
            norms = (block.norm1, block.norm2, block.norm3)
            affines += [norm.affine(seen.vector) for norm in norms if norm is not None]
            if block.cross is not None and seen.tokens is not None:
                pairs.append(block.cross.keys_and_values(seen.tokens))
        affines.append(self.norm.affine(seen.vector))
        places = self.positions().flatten(0, -2)
        return Cache(memory, places, affines, pairs, seen.hidden)

    def step(self, vectors: Tensor | None, cache: Cache) -> Tensor:
        """Logits (b, k) of the code at `cache.at`, which moves on by one.

        vectors: (b, d) of the code before it; None at the first.
        """
        batch = cache.memory[0].shape[1]
        x = self.start.expand(batch, 1, -1) if vectors is None else self.embed(vectors)[:, None]
        x = x + cache.places[cache.at]
        lengths = torch.full((batch,), cache.at + 1, device=x.device)
        affines = iter(cache.affines)
        for number, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            y = block.norm1(x, next(affines))
            x = x + block.attention.step(y, cache.memory[number], lengths, cache.at)
            if block.cross is not None and block.norm2 is not None:
                y = block.norm2(x, next(affines))
                x = x + block.cross(y, cache.pairs[number], cache.hidden)
            x = x + block.mlp(block.norm3(x, next(affines)))
        cache.at += 1
        return self.out(self.norm(x, next(affines)))[:, 0]

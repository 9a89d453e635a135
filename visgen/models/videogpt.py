"""VideoGPT (Yan et al. 2021, arXiv:2104.10157): a VQ-VAE, and a transformer over its codes.

Codes are drawn one after another in raster order over time, rows and columns, and the VQ-VAE makes
a clip of them. b batch, l codes of a clip, k codebook size, n samples.

Ours beside the paper: temperature, top-k and top-p, classifier-free guidance
(arXiv:2207.12598: u + s (c - u) with logits under the condition and under none), and clips longer
than the model's, window after window: the last codes of one are the first of the next.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from visgen.conditions import (
    Actions,
    ClassLabel,
    Condition,
    Conditions,
    FirstFrames,
    Text,
    part_of,
    parts_of,
)
from visgen.models.prior import Prior, PriorConfig, Seen
from visgen.models.vqvae import VQVAE, VQVAEConfig
from visgen.pixels import from_unit, to_unit
from visgen.seeds import uniform


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How codes are drawn.

    Attributes:
        temperature: Divides the logits; below 1 likely codes become likelier. 0: the likeliest.
        top_k: Only so many of the likeliest codes are drawn; 0: all.
        top_p: Only the likeliest codes that together have this probability are drawn.
        guidance: Scale s of classifier-free guidance; 1: none.
        frames: Of the clip; 0: the model's. More are made window by window.
        overlap: Steps of the latent time that a window takes over from the one before it; 0: half.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance: float = 1.0
    frames: int = 0
    overlap: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or self.frames < 0 or self.overlap < 0:
            raise ValueError(f"{self}: temperature, top_k, frames and overlap are 0 or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(
                f"top_p={self.top_p}: above 0, at most 1 (which draws from all codes)."
            )
        if self.guidance < 0:
            raise ValueError(f"guidance={self.guidance}: 0 or more; 1 is no guidance.")


@dataclass(frozen=True, kw_only=True)
class VideoGPTConfig:
    """The two parts; their grids and codebooks must be the same."""

    vqvae: VQVAEConfig = field(default_factory=VQVAEConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    family: ClassVar[str] = "videogpt"
    task: ClassVar[str] = "video-generation"
    objectives: ClassVar[tuple[str, ...]] = ("vqvae", "prior")
    sampling_choices: ClassVar[type[Sampling]] = Sampling

    def __post_init__(self) -> None:
        for name in ("grid", "code_dim", "codes"):
            ours, theirs = getattr(self.prior, name), getattr(self.vqvae, name)
            if ours != theirs:
                raise ValueError(
                    f"the prior's {name}={ours} is not the VQ-VAE's {theirs}; they must be equal."
                )
        if self.prior.frames and (self.prior.frame_size,) * 2 != self.vqvae.size:
            raise ValueError(
                f"the prior looks at frames of {self.prior.frame_size} pixels, clips have "
                f"{self.vqvae.size}; set frame_size to their side."
            )

    @property
    def conditions(self) -> tuple[str, ...]:
        """What its clips can be asked for; each of them may also be left out."""
        prior = self.prior
        given = {"class": prior.classes, "frames": prior.frames}
        given |= {"text": len(prior.words), "actions": prior.actions}
        return tuple(name for name, has in given.items() if has)

    @property
    def context(self) -> int:
        """First frames that it looks at if they are given."""
        return self.prior.frames

    @property
    def clip_size(self) -> tuple[int, int, int]:
        """Frames, rows and columns of a clip."""
        return self.vqvae.frames, *self.vqvae.size

    def build(self, attention: str | None = None) -> VideoGPT:
        """Both parts, initialised from torch's generator, in eval mode."""
        return VideoGPT(self, attention).eval()


class VideoGPT(nn.Module):
    """VQ-VAE and prior of one preset."""

    def __init__(self, config: VideoGPTConfig, attention: str | None = None) -> None:
        super().__init__()
        self.config, self.clip_size = config, config.clip_size
        self.vqvae: VQVAE = config.vqvae.build(attention)
        self.prior: Prior = config.prior.build(attention)

    @property
    def code_count(self) -> int:
        """Codes that there are."""
        return self.config.vqvae.codes

    def networks(self) -> dict[str, nn.Module]:
        """The two parts, trained one after the other."""
        return {"vqvae": self.vqvae, "prior": self.prior}

    @torch.no_grad()
    def generate(
        self, seeds: Tensor, condition: Condition | None = None, sampling: Sampling | None = None
    ) -> Tensor:
        """Clips for seeds int64 (n,): uint8 (n, t, 3, h, w).

        Raises:
            ValueError: for a condition that the model was not made for, or of another size, and
                for actions of a clip longer than the model's.
        """
        sampling = sampling or Sampling()
        frames, step = sampling.frames or self.clip_size[0], self.config.vqvae.downsample[0]
        if frames > self.clip_size[0] and part_of(condition, Actions):
            raise ValueError(
                f"actions say what happens in {self.clip_size[0]} frames, got frames={frames}; "
                f"leave frames at 0."
            )
        times = self.config.prior.grid[0]
        overlap = min(sampling.overlap or max(1, times // 2), times - 1)
        if frames > self.clip_size[0] and not overlap:
            raise ValueError(
                f"a clip of {frames} frames needs a latent time of 2 or more; this model has 1."
            )
        clips, known, window = [], None, 0
        while (have := sum(clip.shape[1] for clip in clips)) < frames:
            codes = self.sample_codes(
                seeds, condition, sampling, known=known, stream=f"codes-{window}"
            )
            clip = self.decode(codes)
            clips.append(clip if known is None else clip[:, overlap * step :])
            known, window = codes[:, times - overlap :], window + 1
            if (first := part_of(condition, FirstFrames)) is not None and have < frames:
                begun = clip[:, (times - overlap) * step :]
                condition = _replaced(condition, FirstFrames(begun[:, : first.frames.shape[1]]))
        return torch.cat(clips, 1)[:, :frames]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 (n, t, h, w) -> clips uint8 (n, T, 3, H, W)."""
        return from_unit(self.vqvae.decode(codes))

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """Clips uint8 (n, T, 3, H, W) -> codes int64 (n, t, h, w)."""
        return self.vqvae.encode(to_unit(clips).to(self.prior.start))

    @torch.no_grad()
    def reconstruct(self, clips: Tensor) -> Tensor:
        """Clips uint8 (n, T, 3, H, W) -> what their codes keep of them, of the same shape."""
        return self.decode(self.encode(clips))

    @torch.no_grad()
    def sample_codes(
        self,
        seeds: Tensor,
        condition: Condition | None,
        sampling: Sampling,
        *,
        known: Tensor | None = None,
        stream: str = "codes-0",
        times: int | None = None,
    ) -> Tensor:
        """Codes int64 (n, t, h, w), of which the first (n, t', h, w) may be known.

        `times` stops after so many steps of the latent time; t is then that. Each code is drawn by
        inverting the cumulated probabilities at a uniform number of its own sample and place.
        """
        config, n = self.config.prior, len(seeds)
        times, rows, columns = times or config.grid[0], *config.grid[1:]
        seen = self._asked(condition, sampling, n)
        guided = self._guided(sampling)
        numbers = uniform(seeds, stream, (config.tokens,)).to(self.prior.start.device)
        drawn = times * rows * columns
        codes = torch.empty(n, drawn, dtype=torch.int64, device=numbers.device)
        start = 0
        if known is not None:
            start = known[0].numel()
            codes[:, :start] = known.flatten(1)
        cache, vectors = self.prior.cache(seen, 2 * n if guided else n), None
        for place in range(drawn):
            if place:
                vectors = self.vqvae.embed(codes[:, place - 1])
                vectors = torch.cat([vectors, vectors]) if guided else vectors
            logits = self.prior.step(vectors, cache)
            if place < start:
                continue
            if guided:
                under, free = logits.chunk(2)
                logits = free + sampling.guidance * (under - free)
            codes[:, place] = draw(logits, numbers[:, place], sampling)
        return codes.view(n, times, rows, columns)

    def _guided(self, sampling: Sampling) -> bool:
        config = self.config.prior
        return sampling.guidance != 1 and bool(config.vector or config.looks)

    def _asked(self, condition: Condition | None, sampling: Sampling, n: int) -> Seen:
        """The condition of n samples; with guidance of 2 n, the second half under none."""
        seen = self.look(condition, n)
        return _with_none(seen) if self._guided(sampling) else seen

    @torch.no_grad()
    def preview(
        self, seeds: Tensor, condition: Condition | None = None, sampling: Sampling | None = None
    ) -> Tensor:
        """First frames uint8 (n, 3, H, W) before the clip is drawn.

        The first step of the latent time is drawn, repeated for the others, and decoded: the
        decoder looks at all of a clip, so the frame may change a little when the rest is there.
        """
        first = self.sample_codes(seeds, condition, sampling or Sampling(), times=1)
        return self.decode(first.expand(-1, self.config.prior.grid[0], -1, -1))[:, 0]

    def codes_of(self, condition: Condition | None = None, sampling: Sampling | None = None) -> int:
        """Codes that are drawn for one clip, those of all its windows."""
        sampling, (times, rows, columns) = sampling or Sampling(), self.config.prior.grid
        step = self.config.vqvae.downsample[0]
        fresh = times - min(sampling.overlap or max(1, times // 2), times - 1)
        rest = max(0, (sampling.frames or times * step) - times * step)
        return (times + -(-rest // (fresh * step)) * fresh) * rows * columns

    def cache_bytes(
        self, n: int, condition: Condition | None = None, sampling: Sampling | None = None
    ) -> int:
        """Bytes of the keys and values that n clips keep while they are drawn."""
        sampling = sampling or Sampling()
        seen = self._asked(condition, sampling, n)
        cache = self.prior.cache(seen, 2 * n if self._guided(sampling) else n)
        kept = [*cache.memory, *(tensor for pair in cache.pairs for tensor in pair)]
        return sum(tensor.numel() * tensor.element_size() for tensor in kept)

    @torch.no_grad()
    def nats_per_code(self, clips: Tensor, condition: Condition | None = None) -> Tensor:
        """Mean negative log-likelihood of the codes of clips uint8 (n, T, 3, H, W): float (n,)."""
        codes = self.encode(clips)
        logits = self.prior(self.vqvae.embed(codes), self.look(condition, len(clips)))
        losses = F.cross_entropy(logits.mT.float(), codes.flatten(1), reduction="none")
        return losses.mean(1)

    def look(self, condition: Condition | None, n: int) -> Seen:
        """A condition of n samples as the prior's blocks take it.

        Raises:
            ValueError: as `generate`.
        """
        self._check(condition, n)
        return self.prior.look(n, **self.condition_tensors(condition))

    def condition_tensors(self, condition: Condition | None) -> dict[str, Any]:
        """The parts of a condition by the names of `Prior.look`'s arguments."""
        device, found = self.prior.start.device, {}
        for one in parts_of(condition):
            if isinstance(one, ClassLabel):
                found["labels"] = one.labels.to(device)
            elif isinstance(one, Actions):
                found["actions"] = one.actions.to(device)
            elif isinstance(one, FirstFrames):
                found["frames"] = to_unit(one.frames).to(self.prior.start)
            else:
                found["words"], found["lengths"] = self.words(one)
        return found

    def work(
        self, seeds: Tensor, condition: Condition | None = None, sampling: Sampling | None = None
    ) -> Tensor:
        """What `generate` computes for a clip of the model's own length, all codes at once.

        The same sums as the cached steps make, on codes that mean nothing: for counting operations.
        """
        n, config, sampling = len(seeds), self.config.prior, sampling or Sampling()
        codes = torch.zeros(n, *config.grid, dtype=torch.int64, device=self.prior.start.device)
        vectors, seen = self.vqvae.embed(codes), self._asked(condition, sampling, n)
        self.prior(torch.cat([vectors, vectors]) if self._guided(sampling) else vectors, seen)
        return self.decode(codes)

    def _check(self, condition: Condition | None, n: int) -> None:
        config = self.config.prior
        rows, columns = self.config.vqvae.size
        takes = {
            ClassLabel: (config.classes, (n,)),
            Actions: (config.actions, (n, config.actions)),
            FirstFrames: (config.frames, (n, config.frames, 3, rows, columns)),
            Text: (len(config.words), (n,)),
        }
        for one in parts_of(condition):
            wanted, shape = takes[type(one)]
            if not wanted:
                can = ", ".join(kind.__name__ for kind, (has, _) in takes.items() if has)
                raise ValueError(
                    f"this model was not made for {type(one).__name__}; it takes {can or 'none'}."
                )
            content = next(iter(vars(one).values()))
            got = (len(content),) if isinstance(content, tuple) else tuple(content.shape)
            if got != shape:
                raise ValueError(
                    f"{type(one).__name__} for {n} samples wants the shape {shape}, got {got}."
                )
            if (
                isinstance(one, ClassLabel)
                and n
                and not (0 <= int(one.labels.min()) <= int(one.labels.max()) < config.classes)
            ):
                raise ValueError(
                    f"classes are 0 to {config.classes - 1}, got {int(one.labels.min())} to "
                    f"{int(one.labels.max())}."
                )

    def words(self, text: Text) -> tuple[Tensor, Tensor]:
        """Numbers (n, m) of the words, and how many there are of each sentence (n,)."""
        config, device = self.config.prior, self.prior.start.device
        number = {word: i for i, word in enumerate(config.words)}
        rows = [
            [number.get(word, len(number)) for word in sentence.lower().split()]
            for sentence in text.sentences
        ]
        longest = max((len(row) for row in rows), default=0)
        if longest > config.text_tokens:
            raise ValueError(
                f"a sentence has {longest} words, this model reads {config.text_tokens} at most."
            )
        words = torch.zeros(len(rows), max(1, longest), dtype=torch.int64)
        for row, numbers in zip(words, rows, strict=True):
            row[: len(numbers)] = torch.tensor(numbers, dtype=torch.int64)
        lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
        return words.to(device), lengths.to(device)


def draw(logits: Tensor, numbers: Tensor, sampling: Sampling) -> Tensor:
    """One code for each row of logits (n, k), by a uniform number (n,) in [0, 1): int64 (n,)."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    probabilities = (logits.float() / sampling.temperature).softmax(-1)
    cumulated = _kept(probabilities, sampling).double().cumsum(-1)
    target = numbers.double()[:, None] * cumulated[:, -1:]  # below the whole, as the number below 1
    chosen = torch.searchsorted(cumulated, target, right=True)[:, 0]  # its probability is not 0
    return chosen.clamp_(max=logits.shape[-1] - 1)  # only of logits that are not finite


def _kept(probabilities: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities (n, k) without those that top-k and top-p leave out; the likeliest stays."""
    k = probabilities.shape[-1]
    if not 0 < sampling.top_k < k and sampling.top_p == 1:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    if 0 < sampling.top_k < k:
        ordered[:, sampling.top_k :] = 0
    before = ordered.cumsum(-1) - ordered
    ordered = ordered.masked_fill(before >= sampling.top_p * ordered.sum(-1, keepdim=True), 0)
    return torch.zeros_like(probabilities).scatter_(-1, order, ordered)


def _replaced(condition: Condition | None, part: FirstFrames) -> Condition:
    """The condition with other first frames."""
    others = [one for one in parts_of(condition) if not isinstance(one, FirstFrames)]
    return Conditions((*others, part))


def _with_none(seen: Seen) -> Seen:
    """A batch under its conditions, and then the same samples under none."""

    def both(under: Tensor | None, free: float | bool) -> Tensor | None:
        return None if under is None else torch.cat([under, torch.full_like(under, free)])

    return Seen(both(seen.vector, 0.0), both(seen.tokens, 0.0), both(seen.hidden, True))


def _released(downsample: tuple[int, int, int], size: int, **changes: Any) -> VideoGPTConfig:
    """The released code's family; `changes` are the prior's."""
    vqvae = VQVAEConfig(size=(size, size), downsample=downsample)
    prior = PriorConfig(grid=vqvae.grid, frame_size=size, legacy_norm=True)
    return VideoGPTConfig(vqvae=vqvae, prior=replace(prior, **changes))


_PAPER_VQVAE = VQVAEConfig(
    size=(64, 64),
    downsample=(2, 2, 2),
    inner_width=128,
    positions=True,
    code_kernel=3,
    codes=1024,
)
_PAPER_SMALL = PriorConfig(
    codes=1024,
    width=512,
    layers=8,
    num_heads=4,
    attention_dropout=0.0,
    sparse=True,
    out_bias=False,
    position_axes=4,
    legacy_norm=True,
    frame_channels=576,
    cross_values=512,
)
_PAPER_LARGE = replace(_PAPER_SMALL, width=1024, layers=20, num_heads=8, cross_values=1024)


def _paper(
    prior: PriorConfig,
    *,
    downsample: tuple[int, int, int] = (2, 2, 2),
    size: int = 64,
    **changes: Any,
) -> VideoGPTConfig:
    """The family of the paper's code; `changes` are the prior's."""
    vqvae = replace(_PAPER_VQVAE, size=(size, size), downsample=downsample)
    prior = replace(prior, grid=vqvae.grid, frame_size=size, **changes)
    return VideoGPTConfig(vqvae=vqvae, prior=prior)


# No attention in the VQ-VAE, and a small prior. The paper's text has frame features of 512
# channels, which three axes of positions cannot share: 576, as everywhere else in its code.
_MOVING_MNIST = VideoGPTConfig(
    vqvae=replace(
        _PAPER_VQVAE,
        downsample=(4, 4, 4),
        residual_layers=2,
        axial=False,
        positions=False,
        codes=512,
        code_dim=64,
    ),
    prior=replace(
        _PAPER_SMALL,
        grid=(4, 16, 16),
        code_dim=64,
        codes=512,
        width=192,
        mlp_ratio=2,
        dropout=0.1,
        frames=1,
        frame_depths=(2, 2, 2, 2),
        cross_values=192,
    ),
)


def _tiny(**changes: Any) -> VideoGPTConfig:
    """Ours, for two cores: clips of 16 x 32 x 32 as 8 x 8 x 8 codes; `changes` are the prior's.

    No attention in the VQ-VAE, as the paper has it for Moving MNIST.
    """
    vqvae = VQVAEConfig(
        size=(32, 32),
        downsample=(2, 4, 4),
        width=32,
        inner_width=32,
        residual_layers=1,
        axial=False,
        code_kernel=3,
        code_dim=64,
        codes=512,
        restart_below=0.1,
        opponent=True,
        cubes=True,
    )
    prior = PriorConfig(
        grid=vqvae.grid,
        code_dim=64,
        codes=512,
        width=96,
        layers=3,
        dropout=0.0,
        attention_dropout=0.0,
        position_std=0.5,  # louder than the codes: attention by place is what it needs first
        neighbour_heads=True,
        frame_size=32,
        frame_channels=48,
        frame_depths=(1, 1, 1, 1),
        frame_widths=(16, 32, 48),
        cross_values=48,
        text_tokens=8,
        text_layers=2,
    )
    return VideoGPTConfig(vqvae=vqvae, prior=replace(prior, **changes))


# The words of the moving shapes' captions ("a small red circle moving left").
_SHAPE_WORDS = (
    *("a", "small", "large", "red", "green", "blue", "yellow", "magenta", "cyan"),
    *("circle", "square", "triangle", "moving", "circling"),
    *("left", "right", "up", "down", "clockwise", "counterclockwise"),
)

PRESETS = {
    "videogpt-digits-tiny": _tiny(classes=10, frames=1),
    "videogpt-shapes-tiny": _tiny(classes=18, words=_SHAPE_WORDS, text_in_norms=True),
    "videogpt-agent-tiny": _tiny(actions=75, frames=1),
    # Published checkpoints; heads of a prior are not in a file's shapes, its hyper-parameters are.
    "videogpt-bair": _released((4, 2, 2), 64, frames=1, sparse=True),
    "videogpt-ucf101": _released((4, 4, 4), 128, sparse=True),
    "videogpt-kinetics-4x4x4": _released((4, 4, 4), 128),
    "videogpt-kinetics-2x4x4": _released((2, 4, 4), 128),
    # The paper's: its code has 8 layers for BAIR, its tables 16.
    "videogpt-paper-moving-mnist": _MOVING_MNIST,
    "videogpt-paper-bair": _paper(_PAPER_SMALL, frames=1),
    "videogpt-paper-bair-16l": _paper(_PAPER_SMALL, frames=1, layers=16),
    "videogpt-paper-bair-actions": _paper(_PAPER_SMALL, frames=1, actions=64),
    "videogpt-paper-robonet": _paper(_PAPER_SMALL, frames=1),
    "videogpt-paper-robonet-actions": _paper(_PAPER_SMALL, frames=1, actions=64),
    "videogpt-paper-vizdoom": _paper(_PAPER_SMALL),
    "videogpt-paper-vizdoom-hgs-actions": _paper(_PAPER_SMALL, actions=60),
    "videogpt-paper-vizdoom-battle2-actions": _paper(_PAPER_SMALL, actions=315),
    "videogpt-paper-ucf101": _paper(_PAPER_LARGE, downsample=(4, 4, 4), size=128),
    "videogpt-paper-ucf101-class": _paper(
        _PAPER_LARGE, downsample=(4, 4, 4), size=128, classes=101
    ),
    "videogpt-paper-ucf101-64": _paper(_PAPER_LARGE, downsample=(4, 2, 2)),
    "videogpt-paper-tgif": _paper(_PAPER_LARGE, downsample=(4, 2, 2)),
}

"""Clips of a quality cell: scored beside real ones, and what the model says of the real ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from visgen_bench.cell import QualityCell
from visgen_bench.cells.clips import FolderClips, ModelClips, RealClips
from visgen_bench.cells.film import COUNT, save_clips
from visgen_bench.cells.samples import Source
from visgen_bench.context import Context

if TYPE_CHECKING:
    from visgen.data.videos import VideoData
    from visgen_bench.extractors.opening import Extractors
    from visgen_bench.metrics.per_sample import PerSample, SampleFacts
    from visgen_bench.metrics.scoring import MetricValue
    from visgen_bench.metrics.video_evaluation import VideoEvaluation, VideoReference

_RECONSTRUCTED = ("r_fvd", "fvd_star", "_reconstruction")
_BATCH = 16  # clips that are looked at together
_LEAST_ENTROPY = 0.05  # nats; below it a share of it says nothing


class ClipScoring:
    """How clips are compared with a split of real ones (`quality.Scoring`)."""

    shown = COUNT

    def __init__(self, cell: QualityCell, data: "VideoData", source: Source) -> None:
        self.cell, self.source = cell, source
        self.real = RealClips(data, cell.split, cell.reference)
        if isinstance(source, ModelClips):
            self.real = source.real

    def prepare(
        self, metrics: Sequence[str], extractors: "Extractors", cache: Path
    ) -> "VideoReference":
        """Statistics of the real clips."""
        from visgen_bench.metrics.real_samples import RealSamples
        from visgen_bench.metrics.video_evaluation import VideoReference

        real = self.real
        samples = RealSamples.from_videos(
            real.data,
            real.split,
            real.seeds(torch.arange(len(real.indices))),
            first=real.indices if real.part else None,
        )
        return VideoReference.prepare(metrics, samples, extractors=extractors, cache=cache)

    def evaluation(
        self, metrics: Sequence[str], reference: "VideoReference", samples: int, folder: Path
    ) -> "VideoEvaluation":
        """A new evaluation of so many samples."""
        from visgen_bench.metrics.video_evaluation import VideoEvaluation

        frames = self.real.data.clip.frames
        return VideoEvaluation(
            metrics,
            reference,
            samples=samples,
            frames=frames,
            folder=folder,
            per_sample=per_sample_of(self.source),
        )

    def add(self, evaluation: "VideoEvaluation", clips: Tensor, indices: Tensor) -> None:
        """Score clips, with all that is known of them."""
        evaluation.update(clips, indices, facts=self._facts(indices))

    def _facts(self, indices: Tensor) -> "SampleFacts":
        from visgen_bench.metrics.per_sample import SampleFacts

        real, source = self.real.at(indices), self.source
        if not isinstance(source, ModelClips):
            return SampleFacts(real=real)
        asked = self.cell.metrics
        rebuilt = any(part in metric for metric in asked for part in _RECONSTRUCTED)
        rebuilt = rebuilt and _fits(source, real)
        return SampleFacts(
            real=real,
            reconstruction=source.reconstructed(real) if rebuilt else None,
            condition=source.condition(indices),
            context=source.context,
            again=source.draw_again(indices) if "diversity" in asked else None,
        )

    def save_shown(self, folder: Path, shown: Sequence[Tensor]) -> None:
        """The samples, as frames and as a film."""
        save_clips(folder, "samples", shown)

    def save_reference(self, folder: Path) -> None:
        """The real clips beside them."""
        places = torch.arange(min(COUNT, len(self.real.indices)))
        save_clips(folder, "reference", list(self.real.at(places)))

    def report(
        self, evaluation: "VideoEvaluation", values: Sequence["MetricValue"], context: Context
    ) -> None:
        """How per-sample metrics go on over time: a measurement a frame. And what codes are worth.

        `code_share` sets what the prior says of the codes against their entropy, which a prior that
        knows no more than how frequent each is has to pay. It compares priors over one tokenizer:
        another's codes have another entropy.
        """
        codes = code_statistics(self.source, self.real, evaluation.samples)
        if codes is not None:
            context.metric("code_usage", codes.used, n=codes.clips, comparable=False)
            context.metric("code_entropy", codes.entropy, n=codes.clips, comparable=False)
            still = None if codes.variance_left is not None else "the real clips do not vary."
            context.metric(
                "variance_left", codes.variance_left, n=codes.clips, reason=still, comparable=False
            )
            for value in values:
                if value.metric == "nats_per_code" and value.value is not None:
                    share, alike = codes.share(value.value)
                    context.metric("code_share", share, n=value.n, reason=alike, comparable=False)
        for metric, curve in evaluation.curves().items():
            known = [(i, mean) for i, mean in enumerate(curve) if mean == mean]
            context.series(
                metric, [mean for _, mean in known], iters=[i for i, _ in known], phase="frames"
            )


def source_of(cell: QualityCell, config: Any, data: "VideoData", context: Context) -> Source:
    """The cell's clips; loads weights, so it may raise CheckpointError."""
    if cell.images:
        return FolderClips(cell, context)
    real = RealClips(data, cell.split, cell.reference)
    return ModelClips(cell, config, data, context, real)


def per_sample_of(source: Source) -> "dict[str, PerSample]":
    """The functions of per-sample metrics, with those that ask the model or a judge."""
    from visgen.conditions import Actions, ClassLabel, Condition, Text, part_of
    from visgen_bench.metrics import motion_judge
    from visgen_bench.metrics.errors import FactsMissing
    from visgen_bench.metrics.per_sample import PER_SAMPLE, PerSample, SampleFacts

    def asked(condition: Condition | None, kind: type[Any], what: str) -> Any:
        part = part_of(condition, kind)
        if part is not None:
            return part
        raise FactsMissing(f'the samples were not asked for {what}; set condition = "{what}".')

    def rebuilt(facts: SampleFacts) -> Tensor:
        if facts.reconstruction is None:
            raise FactsMissing(
                "these samples come from no model that codes clips and decodes them."
            )
        return facts.reconstruction

    def class_obeyed(clips: Tensor, facts: SampleFacts) -> Tensor:
        labels = asked(facts.condition, ClassLabel, "class").labels
        return motion_judge.class_obeyed(clips, labels).float()[:, None]

    def caption_obeyed(clips: Tensor, facts: SampleFacts) -> Tensor:
        sentences = asked(facts.condition, Text, "text").sentences
        return motion_judge.caption_obeyed(clips, sentences).float()[:, None]

    def action_accuracy(clips: Tensor, facts: SampleFacts) -> Tensor:
        actions = asked(facts.condition, Actions, "actions").actions
        return motion_judge.action_accuracy(clips, actions)

    def of_reconstructions(judge: PerSample) -> PerSample:
        return lambda clips, facts: judge(rebuilt(facts), facts)

    def nats_per_code(clips: Tensor, facts: SampleFacts) -> Tensor:
        model = getattr(source, "model", None)
        if facts.real is None or not hasattr(model, "nats_per_code"):
            raise FactsMissing("these samples come from no model that gives codes a likelihood.")
        assert isinstance(source, ModelClips)
        if not _fits(source, facts.real):
            raise FactsMissing(
                f"the model gives clips of {source.model.clip_size[0]} frames a likelihood, these "
                f"have {facts.real.shape[1]}; leave sampling.frames out."
            )
        real = facts.real.to(source.device)
        return source.model.nats_per_code(real, facts.condition).cpu()[:, None]

    judges: dict[str, PerSample] = {
        "class_obeyed": class_obeyed,
        "caption_obeyed": caption_obeyed,
        "action_accuracy": action_accuracy,
    }
    rejudged = {f"{name}_reconstruction": of_reconstructions(f) for name, f in judges.items()}
    return {**PER_SAMPLE, **judges, **rejudged, "nats_per_code": nats_per_code}


def _fits(source: ModelClips, clips: Tensor) -> bool:
    """Whether clips (n, t, 3, h, w) are as long as those that the model has codes for."""
    return clips.shape[1] == source.model.clip_size[0]


@dataclass(frozen=True, kw_only=True)
class CodeStatistics:
    """What real clips look like as codes.

    Attributes:
        clips: That were looked at.
        used: Share of the codes that they are made of.
        entropy: Of the codes' frequencies in them, in nats; from counts, so a little low.
        variance_left: Mean squared error of their reconstructions over the variance of their
            values; None where they do not vary.
    """

    clips: int
    used: float
    entropy: float
    variance_left: float | None

    def share(self, nats: float) -> tuple[float | None, str | None]:
        """So many nats a code over the entropy, or why that says nothing."""
        if self.entropy >= _LEAST_ENTROPY:
            return nats / self.entropy, None
        return None, (
            f"almost all of the real clips is one code: their entropy is {self.entropy:.2g} nats, "
            f"below {_LEAST_ENTROPY}."
        )


@torch.no_grad()
def code_statistics(source: Source, real: RealClips, samples: int) -> CodeStatistics | None:
    """Of the first real clips, as many as there are samples; None for a model without codes."""
    model = getattr(source, "model", None)
    if not isinstance(source, ModelClips) or not hasattr(model, "code_count"):
        return None
    if real.data.clip.frames != source.model.clip_size[0]:
        return None
    counts = torch.zeros(source.model.code_count, dtype=torch.int64)
    n = min(samples, len(real.indices))
    values, total, squares, error = 0, 0.0, 0.0, 0.0
    for part in torch.arange(n).split(_BATCH):
        clips = real.at(part)
        codes = source.model.encode(clips.to(source.device))
        counts += torch.bincount(codes.flatten().cpu(), minlength=len(counts))
        rebuilt, shown = source.model.decode(codes).cpu().double(), clips.double()
        values, total = values + shown.numel(), total + float(shown.sum())
        squares += float(shown.square().sum())
        error += float((rebuilt - shown).square().sum())
    frequencies = counts[counts > 0].double() / counts.sum()
    variance = squares / values - (total / values) ** 2
    return CodeStatistics(
        clips=n,
        used=float((counts > 0).double().mean()),
        entropy=-float((frequencies * frequencies.log()).sum()) if len(frequencies) > 1 else 0.0,
        variance_left=error / values / variance if variance > 0 else None,
    )

"""A cell: one complete, frozen statement of what is to be done; its name and its content keys.

A cell says everything that decides a number and nothing that does not. Absolute paths never enter
a key: files and folders enter it by their content (`Contents`), weights by the text that names
them, so that the key of every cell of a suite is known before the first one has run.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    field_validator,
    model_validator,
)

from visgen.names import hint
from visgen_bench.recipes import Recipe

DType = Literal["fp32", "bf16", "fp16"]
MemoryFormat = Literal["contiguous", "channels_last"]
Phase = Literal["sample", "d_step", "g_step", "vqvae_step", "prior_step", "predictor_step"]

WEIGHTS = ("zoo", "untrained", "fit", "file", "train")
DEFAULT_SAMPLES = 1000
_WEIGHTS = re.compile(r"zoo|untrained|fit|(zoo|file|train):.+")
STAGES = ("vqvae", "prior")  # objectives that train one model in turn
CONDITIONS = ("class", "frames", "text", "actions")
DEFAULT_METRICS = ("fd_lite0", "kid_lite0", "precision", "recall")


class CellBase(BaseModel):
    """What every kind of cell says. `attention` None is filled in by the planner."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    # Named here because they tell how long or with what resources a cell may run, not what it is.
    labels: ClassVar[frozenset[str]] = frozenset({"timeout_s"})

    model: str = Field(min_length=1)
    include: str | None = None  # the user's file that defines `model`
    seed: int = Field(default=0, ge=0, lt=2**63)
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda|mps|xpu)(:\d+)?$")
    dtype: DType = "fp32"
    attention: str | None = None
    batch: int = Field(default=1, ge=1)
    devices: int = Field(default=1, ge=1)  # how many this one cell spans
    compile: bool = False
    memory_format: MemoryFormat = "contiguous"
    threads: int | None = Field(default=None, ge=1)  # of one process; None: all usable cores
    timeout_s: float | None = Field(default=None, gt=0)

    # Of a video set; None where the cell has no clips, or takes the model's own.
    clip: str | None = Field(default=None, pattern=r"^[1-9]\d*x[1-9]\d*x[1-9]\d*$")  # t x h x w
    stride: int | None = Field(default=None, ge=1)  # every so many-th frame is taken
    policy: str | None = Field(default=None, pattern=r"^(first|random|uniform-[1-9]\d*)$")

    @property
    def device_type(self) -> str:
        """The device without its number: "cpu", "cuda", ..."""
        return self.device.partition(":")[0]

    @property
    def samples_per_step(self) -> int:
        """What the name and the rows call the batch."""
        return self.batch

    def tag(self) -> str:
        """What the name needs beyond model, data and device; empty if nothing."""
        return ""


class Sampled(CellBase):
    """What draws samples says under which condition and how.

    `condition` is one of `CONDITIONS`, or several joined by "+"; what is asked for comes from the
    clips of the data. `sampling` are fields of the model's own sampling choices.
    """

    condition: str | None = None
    sampling: dict[str, float | int | bool] | None = None

    @property
    def conditions(self) -> tuple[str, ...]:
        """The kinds of condition, in the order of `CONDITIONS`; none is ()."""
        given = (self.condition or "").split("+")
        return tuple(kind for kind in CONDITIONS if kind in given)

    @field_validator("condition")
    @classmethod
    def _known(cls, condition: str | None) -> str | None:
        if condition is None or condition == "none":
            return None
        for kind in condition.split("+"):
            if kind not in CONDITIONS:
                raise ValueError(
                    f'"{kind}" is no condition{hint(kind, CONDITIONS)} (allowed: none, '
                    f'{", ".join(CONDITIONS)}, or several as in "class+frames")'
                )
        return "+".join(kind for kind in CONDITIONS if kind in condition.split("+"))


class TrainCell(CellBase):
    """Recipe -> weights.

    `weights` are what it starts from: a second stage (a prior) names what the first one made.
    """

    labels = CellBase.labels | {"threads", "batch", "log_every", "checkpoint_every"}
    kind: Literal["train"] = "train"
    data: str
    split: str = "train"
    recipe: Recipe
    weights: str | None = None
    log_every: int = Field(default=20, ge=1)
    checkpoint_every: int = Field(default=200, ge=1)

    @model_validator(mode="after")
    def _one_batch(self) -> Self:
        if self.batch not in (1, self.recipe.batch):
            raise ValueError(
                f"batch={self.batch} differs from recipe.batch={self.recipe.batch}; "
                "a train cell's batch is its recipe's: set recipe.batch"
            )
        return self

    @field_validator("weights")
    @classmethod
    def _from(cls, weights: str | None) -> str | None:
        if weights is not None and not re.fullmatch(r"(zoo|file|train):.+", weights):
            raise ValueError(
                f'weights = "{weights}"; training starts from file:PATH, train:NAME or zoo:NAME'
            )
        return weights

    @property
    def samples_per_step(self) -> int:
        return self.recipe.batch

    def tag(self) -> str:
        parts = [self.recipe.objective] if self.recipe.objective in STAGES else []
        return "-".join([*parts, f"n{self.recipe.steps}-s{self.seed}"])


class QualityCell(Sampled):
    """Weights -> samples -> metrics; or a user's folder of samples -> metrics.

    `weights` is `zoo`, `zoo:NAME`, `untrained`, `fit` (the reference generators), `file:PATH` or
    `train:NAME`, where NAME is a train cell's name or key. With `images` there is no model.
    `reference` caps the real pictures or clips that samples are compared with.
    """

    labels = CellBase.labels | {"threads", "chunk"}
    kind: Literal["quality"] = "quality"
    model: str = ""
    data: str
    images: str | None = None
    images_split: str = "all"
    weights: str | None = None
    split: str = "test"
    reference: int | None = Field(default=None, ge=2)  # the split's first; None: all of it
    samples: int | None = Field(default=None, ge=1)  # None: 1000 of a model, all of a folder
    metrics: tuple[str, ...] = Field(default=DEFAULT_METRICS, min_length=1)
    batch: int = Field(default=100, ge=1)
    chunk: int = Field(default=500, ge=1)  # samples between two saves; a kill loses at most these

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.model) == bool(self.images):
            given = f'model "{self.model}" and images "{self.images}"' if self.model else "neither"
            raise ValueError(
                f'a quality cell needs either "model" or "images" = "folder:PATH" (clips: '
                f'"videos:PATH"), got {given}'
            )
        if self.images and self.weights:
            raise ValueError('"images" are scored as they are; leave "weights" out')
        if self.images and not re.fullmatch(r"(folder|videos):.+", self.images):
            raise ValueError(f'images = "{self.images}"; write "folder:PATH", or "videos:PATH"')
        if self.weights and not _WEIGHTS.fullmatch(self.weights):
            near = hint(self.weights.partition(":")[0], WEIGHTS)
            raise ValueError(
                f'weights = "{self.weights}" is unknown{near} (allowed: '
                "zoo, zoo:NAME, untrained, fit, file:PATH, train:NAME)"
            )
        return self

    def tag(self) -> str:
        if self.images:
            return "" if self.images_split == "all" else self.images_split
        parts = [_short(self.weights or ""), *([self.condition] if self.condition else [])]
        return "-".join([*parts, f"s{self.seed}"])


class PerformanceCell(Sampled):
    """Speed, memory and FLOPs of one phase. Durations in seconds."""

    kind: Literal["performance"] = "performance"
    data: str | None = None  # speed does not depend on it; kept where a suite names it
    phase: Phase = "sample"
    recipe: Recipe | None = None  # of a training step; None: the preset's own
    profile: bool = False
    warmup_min_s: float = Field(default=0.5, ge=0)
    warmup_max_s: float = Field(default=30.0, gt=0)
    min_iters: int = Field(default=30, ge=1)
    min_duration_s: float = Field(default=2.0, ge=0)
    max_duration_s: float = Field(default=60.0, gt=0)
    peak_tflops: float | None = Field(default=None, gt=0)

    def tag(self) -> str:
        parts = [self.phase, *([self.condition] if self.condition else [])]
        if self.compile:
            parts.append("compiled")
        if self.memory_format != "contiguous":
            parts.append(self.memory_format)
        if self.profile:
            parts.append("profiled")
        return "-".join(parts)


Cell = TrainCell | QualityCell | PerformanceCell
KINDS: dict[str, type[TrainCell] | type[QualityCell] | type[PerformanceCell]] = {
    "train": TrainCell,
    "quality": QualityCell,
    "performance": PerformanceCell,
}
PHASES: tuple[str, ...] = get_args(Phase)

_ADAPTER: TypeAdapter[Cell] = TypeAdapter(Annotated[Cell, Field(discriminator="kind")])


def _short(weights: str) -> str:
    """Weights as a name holds them: no path, and of a key only its start."""
    head, _, rest = weights.partition(":")
    rest = rest[:8] if re.fullmatch(r"[0-9a-f]{32}", rest) else rest.rpartition("/")[2]
    return f"{head}:{rest}" if rest and head != "zoo" else head


def parse(text: str) -> Cell:
    """The cell written by `model_dump_json`; raises pydantic's `ValidationError`."""
    return _ADAPTER.validate_json(text)


def threads_of(cell: Cell) -> int:
    """CPU threads of a cell: its own, else what OMP_NUM_THREADS allows, else all usable cores."""
    from visgen_bench.measure.environment import usable_cores

    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return cell.threads or (int(allowed) if allowed.isdigit() else 0) or usable_cores()


def source_of(cell: Cell) -> str:
    """What is measured: the preset's name, or the user's folder without the path to it."""
    if isinstance(cell, QualityCell) and cell.images:
        return spec_name(cell.images)
    return cell.model


def spec_name(spec: str | None) -> str:
    """A data spec as a name holds it: of `folder:PATH` and `videos:PATH` without the path there."""
    if spec is None:
        return "-"
    head, colon, rest = spec.partition(":")
    return f"{head}:{rest.rstrip('/').rpartition('/')[2]}" if colon and head in PATHS else spec


def name_of(cell: Cell) -> str:
    """`kind/model/data/device-dtype-attention-bN`, then what the kind adds; `--only` matches it."""
    run = [cell.device, cell.dtype, *([cell.attention] if cell.attention else [])]
    run.append(f"b{cell.samples_per_step}")
    if cell.devices > 1:
        run.append(f"x{cell.devices}")
    if cell.tag():
        run.append(cell.tag())
    return f"{cell.kind}/{source_of(cell)}/{spec_name(cell.data)}/{'-'.join(run)}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contents:
    """What a cell's names stand for, by content: everything that a key holds beside the cell.

    `weights` is the text that names the weights after the planner has resolved it (`zoo:NAME`,
    `file:<sha256>`, `train:<cell_key>`, `untrained`, `fit`). `machine` is filled for performance
    cells only: device name and versions, because there they decide the number.
    """

    config: Mapping[str, Any] | None = None  # the preset's own fields
    include_sha256: str | None = None
    data_fingerprint: str | None = None
    images_fingerprint: str | None = None
    weights: str | None = None
    limit: int | None = None  # of samples, by whoever started the run
    protocols: Mapping[str, str] = dataclasses.field(default_factory=dict)
    machine: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces; NaN is refused, tuples and lists are the same."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_key(value: object) -> str:
    """blake2b-128 over canonical JSON: 32 hex digits."""
    return hashlib.blake2b(canonical_json(value).encode(), digest_size=16).hexdigest()


# A cell that says nothing of these keeps the key that it had before there were any.
LATER = ("clip", "stride", "policy", "condition", "sampling", "reference")
PATHS = ("folder", "videos")  # data specs that hold a path


def specification(cell: Cell, contents: Contents) -> dict[str, Any]:
    """What `spec_key` hashes: the typed cell without labels, its paths replaced by contents."""
    fields = cell.model_dump(mode="json", exclude=set(cell.labels))
    fields["include"] = contents.include_sha256
    for name in LATER:
        if fields.get(name) is None:
            fields.pop(name, None)
    if cell.data is not None and cell.data.partition(":")[0] in PATHS:
        fields["data"] = cell.data.partition(":")[0]
    if isinstance(cell, TrainCell):
        fields.pop("weights")
        if cell.weights is not None:
            fields["weights"] = contents.weights
    if isinstance(cell, QualityCell):
        fields["weights"] = contents.weights
        fields["images"] = contents.images_fingerprint
        fields["metrics"] = sorted(cell.metrics)
        fields["protocols"] = dict(contents.protocols)
        fields["limit"] = contents.limit
    return {
        **fields,
        "config": None if contents.config is None else dict(contents.config),
        "data_fingerprint": contents.data_fingerprint,
    }


def spec_key(cell: Cell, contents: Contents) -> str:
    """Key of the specification alone; the same on every machine."""
    return content_key(specification(cell, contents))


def cell_key(cell: Cell, contents: Contents) -> str:
    """`spec_key`, and for a performance cell the device and the versions that decide its speed."""
    spec = specification(cell, contents)
    return content_key({**spec, "machine": dict(contents.machine)} if contents.machine else spec)

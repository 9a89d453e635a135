"""Where the samples of a quality cell come from: a model with its weights, or a user's folder."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from visgen.data import Data, DataError, open_data
from visgen.data.videos import VideoData
from visgen.seeds import sample_seeds
from visgen_bench.cell import DEFAULT_SAMPLES, QualityCell
from visgen_bench.cells import splits
from visgen_bench.cells.generated import check_pictures
from visgen_bench.context import Context

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Source:
    """Samples by index; what is at an index depends on the cell's seed and the index alone."""

    count: int
    weights_sha256: str | None = None

    def draw(self, indices: Tensor) -> Iterator[Tensor]:
        """Samples `indices` (int64) in order: uint8 (b, 3, h, w), cut where the size changes."""
        raise NotImplementedError


class FolderSource(Source):
    """A folder's pictures in name order, as they are."""

    def __init__(self, cell: QualityCell, context: Context) -> None:
        self.data = open_data(cell.images or "", root=context.data_root, offline=True)
        self.indices = splits.indices(self.data, cell.images_split)
        self.count = min(len(self.indices), cell.samples or len(self.indices))
        self.batch = cell.batch

    def draw(self, indices: Tensor) -> Iterator[Tensor]:
        yield from pictures(self.data, self.indices[indices], batch=self.batch)


class ModelSource(Source):
    """A generator's samples."""

    def __init__(
        self, cell: QualityCell, config: Any, data: Data | VideoData, context: Context
    ) -> None:
        self.cell = cell
        self.count = cell.samples or DEFAULT_SAMPLES
        self.device = cell.device
        if context.world_size > 1 and cell.device_type != "cpu":
            self.device = f"{cell.device_type}:{context.rank}"
        self.model = self._built(config, data, context)

    def _built(self, config: Any, data: Data | VideoData, context: Context) -> Any:
        cell = self.cell
        if cell.weights == "fit":
            if isinstance(data, VideoData):
                return config.fit(data, run_seed=cell.seed).to(self.device)
            train = data.split("train")
            return config.fit(data.images(train), run_seed=cell.seed).to(self.device)
        torch.manual_seed(cell.seed)  # the initial weights of an untrained twin
        model = config.build(attention=cell.attention)
        self.weights_sha256 = load_named(model, cell.weights, context)
        if cell.memory_format == "channels_last":
            for network in model.networks().values():
                network.to(memory_format=torch.channels_last)
        return model.to(self.device)

    @torch.no_grad()
    def draw(self, indices: Tensor) -> Iterator[Tensor]:
        for part in indices.split(self.cell.batch):
            seeds = sample_seeds(self.cell.seed, part).to(self.device)
            with self.precision():
                pictures = self.model.generate(seeds)
            check_pictures(pictures, len(part), self.model, self.cell.model)
            yield pictures.cpu()

    def precision(self) -> Any:
        """The context that gives the cell's dtype; weights stay float32."""
        if self.cell.dtype == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, AUTOCAST[self.cell.dtype])


def load_named(model: Any, weights: str | None, context: Context) -> str | None:
    """Load the weights that a cell names; their sha256, or None where the initial ones are meant.

    Raises CheckpointError for a file that is damaged or another model's.
    """
    from visgen import zoo
    from visgen.checkpoints import load_weights

    head, _, name = (weights or "untrained").partition(":")
    if head == "zoo":
        return zoo.load(name, model)
    if head in ("file", "train"):
        if context.weights_path is None:
            raise ValueError(f"weights {weights}: the planner found no file for them.")
        return load_weights(model, context.weights_path)
    return None


def source_of(cell: QualityCell, config: Any, data: Data, context: Context) -> Source:
    """The cell's samples; loads weights, so it may raise CheckpointError."""
    if cell.images:
        return FolderSource(cell, context)
    return ModelSource(cell, config, data, context)


def pictures(data: Data, indices: Tensor, *, batch: int) -> Iterator[Tensor]:
    """Pictures as stored: whole batches of a set of one size, else one by one.

    Metrics bring every picture to their network's input; resizing here would do it twice.
    """
    if data.size is not None:
        for part in indices.split(batch):
            yield data.images(part)
        return
    for one in indices.split(1):
        try:
            yield data.source.read(one, None)
        except DataError as error:
            raise DataError(f"{data.name}: {error}") from error

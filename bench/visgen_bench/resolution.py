"""From a cell as written to a cell as it will run: names looked up, contents hashed, limits known.

A mistake of whoever wrote the suite (unknown model, metric, data, weights) is a `SuiteError`; what
this machine lacks (a device, weights, data that is not here) is a reason to skip the cell.
"""

import dataclasses
import hashlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from visgen.names import hint_or_list
from visgen.objectives.gan import GanRecipe
from visgen_bench import media
from visgen_bench.cell import (
    DEFAULT_SAMPLES,
    WEIGHTS,
    Cell,
    CellBase,
    Contents,
    PerformanceCell,
    QualityCell,
    TrainCell,
    cell_key,
    name_of,
    spec_key,
)
from visgen_bench.checks import (
    check_data,
    check_metrics,
    check_request,
    check_samples,
    impossible,
    notes_of,
)
from visgen_bench.presets import Presets
from visgen_bench.provenance import code_files, columns_of, machine_of
from visgen_bench.suite import Placed, SuiteError

if TYPE_CHECKING:
    from visgen.data.videos import Clip
    from visgen_bench.media import AnyData

C = TypeVar("C", bound=CellBase)
W = TypeVar("W", TrainCell, QualityCell)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resolved:
    """A cell that is ready to run, or that says why it cannot.

    `columns` are the columns of its `runs` row that follow from it. `needs` is the key of the train
    cell whose weights it takes. `weights_path` is set for `file:` weights. `notes` are what its
    user should know of its data.
    """

    cell: Cell
    where: str
    name: str
    spec_key: str
    cell_key: str
    columns: Mapping[str, Any]
    code_files: tuple[Path, ...] = ()
    needs: str | None = None
    weights_path: Path | None = None
    skip: str | None = None
    missing_data: bool = False
    notes: tuple[str, ...] = ()


class Resolver:
    """Looks names up once for all cells of a suite; opens every data set once."""

    def __init__(
        self,
        presets: Presets,
        *,
        data_root: Path | None = None,
        offline: bool = False,
        limit: int | None = None,
        trained: Mapping[str, str] | None = None,
    ) -> None:
        """`trained` maps keys of train cells that the store knows to their spec keys."""
        self.presets = presets
        self.data_root = data_root
        self.offline = offline
        self.limit = limit
        self.trained = dict(trained or {})
        self.trains: dict[str, Resolved] = {}
        self._data: dict[tuple[str, Clip | None], AnyData | Exception] = {}
        self._hashes: dict[Path, str] = {}

    def resolve(self, placed: Sequence[Placed]) -> list[Resolved]:
        """All cells, train cells first where others need them; the order given is kept."""
        for one in placed:  # a wrong name is told before any data set is opened, or downloaded
            self._check_names(one)
        done: dict[int, Resolved] = {}
        order = sorted(range(len(placed)), key=lambda i: _rank(placed[i].cell))
        for index in order:
            done[index] = self._resolve(placed[index])
            if isinstance(done[index].cell, TrainCell):
                self.trains.setdefault(done[index].cell_key, done[index])
        return _unique_names([done[index] for index in range(len(placed))])

    def _check_names(self, placed: Placed) -> None:
        cell, where = placed.cell, placed.where
        if cell.model:
            self._config(cell.model, where)
        if cell.data is not None:
            check_data(cell.data, where)
        if isinstance(cell, QualityCell):
            check_metrics(cell, where)

    def _resolve(self, placed: Placed) -> Resolved:
        cell, where = placed.cell, placed.where
        reasons: list[str] = []
        config = None
        if cell.model:
            config = self._config(cell.model, where)
            cell = _with(cell, include=self.presets.included.get(cell.model))
        self._check_medium(cell, config, where)
        data, images = self._opened(cell, config, where, reasons)
        missing_data = bool(reasons)
        cell, attention_reason = _with_attention(cell, config, where)
        reasons += [attention_reason] if attention_reason else []
        weights, needs, path = None, None, None
        if isinstance(cell, QualityCell):
            if cell.samples is None and cell.model:
                cell = _with(cell, samples=DEFAULT_SAMPLES)
            cell, weights, needs, path = self._with_weights(cell, config, where, reasons)
        elif isinstance(cell, TrainCell) and cell.weights is not None:
            cell, weights, needs, path = self._named(cell, cell.weights, where, reasons)
        check_samples(cell, config, data, where)
        contents = Contents(
            config=_fields_of(config),
            include_sha256=self._sha256(Path(cell.include)) if cell.include else None,
            data_fingerprint=None if data is None else data.fingerprint,
            images_fingerprint=None if images is None else images.fingerprint,
            weights=weights,
            limit=self._limit(cell),
            protocols=_protocols(cell),
            machine=machine_of(cell),
        )
        reasons += impossible(cell, config)
        return Resolved(
            cell=cell,
            where=where,
            name=name_of(cell),
            spec_key=spec_key(cell, contents),
            cell_key=cell_key(cell, contents),
            columns=columns_of(cell, config, data, images, contents),
            code_files=code_files(cell, config),
            needs=needs,
            weights_path=path,
            skip="; ".join(dict.fromkeys(reasons)) or None,
            missing_data=missing_data,
            notes=notes_of(cell, config, data, images),
        )

    def _config(self, model: str, where: str) -> Any:
        from visgen_bench.presets import PresetError

        try:
            return self.presets.find(model)
        except PresetError as error:
            raise SuiteError(f"{where}: model: {error}") from error

    def _check_medium(self, cell: Cell, config: Any, where: str) -> None:
        """Raise `SuiteError` for a model of clips with data of pictures, or the other way round."""
        for key, spec in (("data", cell.data), ("images", getattr(cell, "images", None))):
            if spec is None or media.is_video(spec) == media.has_clips(cell, config):
                continue
            made = "clips" if media.has_clips(cell, config) else "pictures"
            held = "clips" if media.is_video(spec) else "pictures"
            maker = cell.model or cell.data
            raise SuiteError(
                f'{where}: {key} = "{spec}" holds {held}, and {maker} is about {made}; '
                "visgen-bench list shows the data of each"
            )
        check_request(cell, config, where)

    def _opened(
        self, cell: Cell, config: Any, where: str, reasons: list[str]
    ) -> "tuple[AnyData | None, AnyData | None]":
        """The reference or training data, and the user's images, of a cell."""
        from visgen.data import DataError, DataMissing
        from visgen_bench.cells import splits

        found: list[AnyData | None] = []
        for key, spec in (("data", cell.data), ("images", getattr(cell, "images", None))):
            opened = None if spec is None else self._open(spec, cell, config, where)
            if isinstance(opened, DataMissing):
                reasons.append(str(opened))
                opened = None
            elif isinstance(opened, Exception):
                raise SuiteError(f"{where}: {key}: {opened}") from opened
            found.append(opened)
        data, images = found
        if isinstance(cell, TrainCell) and data is not None:
            try:
                data.split(cell.split)
            except DataError as error:
                raise SuiteError(f"{where}: split: {error}") from error
        if isinstance(cell, QualityCell):
            try:
                if data is not None:
                    splits.indices(data, cell.split)
                if images is not None:
                    splits.indices(images, cell.images_split)
            except DataError as error:
                raise SuiteError(f"{where}: split: {error}") from error
        return data, images

    def _open(self, spec: str, cell: Cell, config: Any, where: str) -> "AnyData | Exception":
        from visgen.data import DataError, DataMissing, UnknownData

        try:
            clip = media.clip_of(cell, config) if media.is_video(spec) else None
        except (ValueError, DataError) as error:
            raise SuiteError(f"{where}: {error}") from error
        if (spec, clip) not in self._data:
            try:
                self._data[spec, clip] = media.open_set(
                    spec, cell, config, root=self.data_root, offline=self.offline
                )
            except (DataError, DataMissing, UnknownData) as error:
                self._data[spec, clip] = error
        return self._data[spec, clip]

    def _with_weights(
        self, cell: QualityCell, config: Any, where: str, reasons: list[str]
    ) -> tuple[QualityCell, str | None, str | None, Path | None]:
        """(cell with its weights named, their text in the key, needed train cell, file)."""
        if cell.images:
            return cell, None, None, None
        fitted = not hasattr(config, "build")
        given = cell.weights or ("fit" if fitted else "zoo")
        if fitted != (given == "fit"):
            said = f"{cell.model} is {'fitted to the data' if fitted else 'built, not fitted'}"
            allowed = "fit" if fitted else "zoo, zoo:NAME, untrained, file:PATH, train:NAME"
            raise SuiteError(f'{where}: weights = "{given}": {said} (allowed: {allowed})')
        return self._named(cell, given, where, reasons)

    def _named(
        self, cell: W, given: str, where: str, reasons: list[str]
    ) -> tuple[W, str | None, str | None, Path | None]:
        """As `_with_weights`, for weights that are given."""
        head, _, rest = given.partition(":")
        if head == "zoo":
            given = self._zoo(cell.model, rest, where, reasons)
            return _with(cell, weights=given), given, None, None
        if head == "file":
            path = self._file(rest, where)
            return cell, f"file:{self._sha256(path)}", None, path.resolve()
        if head == "train":
            key = self._train_key(rest, where)
            given = f"train:{key}"
            return _with(cell, weights=given), given, key, None
        return _with(cell, weights=given), given, None, None

    def _zoo(self, model: str, name: str, where: str, reasons: list[str]) -> str:
        from visgen import zoo

        entries = zoo.entries()
        own = [entry for entry, facts in entries.items() if facts.preset == model]
        if not name:
            if not own:
                reasons.append(
                    f"the zoo has no weights for {model} (it has {', '.join(entries) or 'none'}); "
                    'give weights = "file:PATH"'
                )
                return "zoo"
            return f"zoo:{own[0]}"
        if name not in entries:
            near = hint_or_list(name, entries)
            raise SuiteError(f'{where}: weights: the zoo has no "{name}"{near}')
        if name not in own:
            raise SuiteError(
                f"{where}: weights: zoo:{name} is for {entries[name].preset}, not for {model}"
            )
        return f"zoo:{name}"

    def gate_weights(self, given: str, where: str) -> str:
        """A gate's weights as rows name them: train cells by their key, files by their content.

        To be asked after `resolve`. Raises `SuiteError` for weights that there cannot be.
        """
        head, _, rest = given.partition(":")
        if head not in WEIGHTS:
            near = hint_or_list(head, WEIGHTS)
            raise SuiteError(f'{where}: weights = "{given}" is unknown{near}')
        if head == "train":
            return f"train:{self._train_key(rest, where)}"
        if head == "file":
            return f"file:{self._sha256(self._file(rest, where))}"
        return given

    def _file(self, given: str, where: str) -> Path:
        """A weight file that can be read."""
        path = Path(given).expanduser()
        if not path.is_file():
            raise SuiteError(f'{where}: weights = "file:{given}": no such file')
        _check_weights(path, where)
        return path

    def _train_key(self, given: str, where: str) -> str:
        """The key of the train cell that `train:NAME` names: a key, a cell's name, or a model."""
        if given in self.trains or given in self.trained:
            return given
        found = self._trained_by(given)
        if len(found) == 1:
            return found[0]
        names = [one.name for one in self.trains.values()]
        if found:
            many = ", ".join(self.trains[key].name for key in found)
            raise SuiteError(
                f'{where}: weights = "train:{given}" could be {many}; give one of these names'
            )
        near = hint_or_list(given, names) if names else "; the suite has none"
        raise SuiteError(f'{where}: weights: no train cell "{given}"{near}')

    def _trained_by(self, given: str) -> list[str]:
        """Keys of the train cells of that name or model; of a model's stages the last one."""
        found = [key for key, one in self.trains.items() if given in (one.name, one.cell.model)]
        begun = {self.trains[key].needs for key in found}
        return [key for key in found if key not in begun]

    def _limit(self, cell: Cell) -> int | None:
        """The cap on this cell's samples; None where it would cut nothing off."""
        if not isinstance(cell, QualityCell) or self.limit is None:
            return None
        return self.limit if cell.samples is None or self.limit < cell.samples else None

    def _sha256(self, path: Path) -> str:
        if path not in self._hashes:
            with path.open("rb") as file:
                self._hashes[path] = hashlib.file_digest(file, "sha256").hexdigest()
        return self._hashes[path]


def _check_weights(path: Path, where: str) -> None:
    """Raise `SuiteError` for a pickle, which is not opened, or a file that is not whole."""
    from visgen import checkpoints

    try:
        checkpoints.check(path)
    except checkpoints.CheckpointError as error:
        raise SuiteError(f"{where}: weights: {error}") from error


def _rank(cell: Cell) -> int:
    """What others take weights from comes first, and a second stage after the first ones."""
    if not isinstance(cell, TrainCell):
        return 2
    return 0 if cell.weights is None else 1


def _with(cell: C, **changes: Any) -> C:
    return cell.model_copy(update=changes)


def _fields_of(config: Any) -> dict[str, Any] | None:
    """A config's own fields, so that a changed preset is another cell."""
    if config is None:
        return None
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        fields = _plain(dataclasses.asdict(config))
    else:
        fields = {"repr": repr(config)}
    return {"class": type(config).__qualname__, **fields}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def _with_attention(cell: Cell, config: Any, where: str) -> tuple[Cell, str | None]:
    """The cell with its attention implementation named, and why it cannot be that one."""
    from visgen_kernels import resolve, unsupported

    second = _needs_second_derivative(cell, config)
    try:
        fault = None
        if cell.attention:
            fault = unsupported(cell.attention, device=cell.device_type, second_derivative=second)
    except ValueError as error:
        raise SuiteError(f"{where}: attention: {error}") from error
    if config is None or not uses_attention(config):
        return _with(cell, attention=None), None
    if cell.attention is None:
        return _with(cell, attention=resolve(cell.device_type)), None
    return cell, f"attention: {fault}" if fault else None


def uses_attention(config: Any) -> bool:
    """Whether the preset's `attention` argument chooses anything.

    A config may say so by `uses_attention`; else the model's file is asked whether it names the
    kernels, or the block that calls them. (Building the networks to look would cost seconds.)
    """
    said = getattr(config, "uses_attention", None)
    if said is not None or not hasattr(config, "build"):
        return bool(said)
    source = inspect.getsourcefile(type(config))
    text = Path(source).read_text("utf-8") if source else ""
    return any(name in text for name in ("visgen_kernels", "visgen.layers.attention"))


def _needs_second_derivative(cell: Cell, config: Any) -> bool:
    if isinstance(cell, TrainCell):
        recipe = cell.recipe
    elif isinstance(cell, PerformanceCell) and cell.phase == "d_step":
        from visgen_bench.cells.workload import recipe_of

        recipe = recipe_of(cell, config)
    else:
        return False
    return isinstance(recipe, GanRecipe) and recipe.differentiates_twice


def _protocols(cell: Cell) -> dict[str, str]:
    if not isinstance(cell, QualityCell):
        return {}
    from visgen_bench.metrics.protocol import protocol

    return {metric: protocol(metric).id for metric in cell.metrics}


def _unique_names(cells: list[Resolved]) -> list[Resolved]:
    """Add the start of the key to names that more than one cell has."""
    keys: dict[str, set[str]] = {}
    for one in cells:
        keys.setdefault(one.name, set()).add(one.cell_key)
    return [
        dataclasses.replace(one, name=f"{one.name}-{one.cell_key[:6]}")
        if len(keys[one.name]) > 1
        else one
        for one in cells
    ]

"""CIFAR-10: 60,000 photographs of 32x32 in 10 classes (Krizhevsky, 2009).

Its files are pickles. They are read only after their MD5 is right, and then by an unpickler that
knows three names (array, data type, the function that makes an array), all replaced by inert
stand-ins: a file can describe an array and nothing else.
"""

import hashlib
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from visgen.data.archives import Archive, checked_folder
from visgen.data.dataset import Data, DataError, InMemory

SIDE = 32
CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
TRAIN_FILES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_FILES = ("test_batch",)
ARCHIVE = Archive(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    filename="cifar-10-python.tar.gz",
    md5="c58f30108f718f92721af3b95e74349a",
    megabytes=170,
    folder="cifar-10-batches-py",
    files={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
)


def open_cifar10(root: Path | None, *, offline: bool, archive: Archive = ARCHIVE) -> Data:
    """Open CIFAR-10 from `root` (holds cifar-10-batches-py/); splits `train` and `test`.

    Raises:
        DataMissing: not there and not to be downloaded.
        DataError: the files are not the published ones, or hold something else than pictures.
    """
    folder = checked_folder(archive, root, offline=offline)
    train = [read_batch(folder / name) for name in TRAIN_FILES]
    test = [read_batch(folder / name) for name in TEST_FILES]
    pictures = torch.from_numpy(np.concatenate([pixels for pixels, _ in train + test]))
    targets = torch.from_numpy(np.concatenate([labels for _, labels in train + test]))
    border = sum(len(labels) for _, labels in train)
    digest = hashlib.sha256(b"cifar10-v1")
    digest.update(pictures.numpy().data)
    digest.update(targets.numpy().data)
    return Data(
        name="cifar10",
        fingerprint=digest.hexdigest(),
        splits={"train": torch.arange(border), "test": torch.arange(border, len(targets))},
        size=(SIDE, SIDE),
        channels=3,
        levels=256,
        source=InMemory(pictures),
        classes=CLASSES,
        targets=targets,
        count=len(targets),
    )


def read_batch(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one batch file: uint8 (n, 3, 32, 32) and int64 (n,) in 0..9; runs no code of the file.

    Raises DataError for a file that asks for any other name, or holds another shape or class.
    """
    try:
        content = _ArrayUnpickler(io.BytesIO(path.read_bytes())).load()
        fields = {_text(key): value for key, value in content.items()}
        pixels = fields["data"].array()
        labels = np.array(fields["labels"], dtype=np.int64)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:  # damaged pickles raise anything
        raise DataError(
            f"{path} is not a CIFAR-10 batch ({type(error).__name__}: {error})."
        ) from error
    if pixels.ndim != 2 or pixels.shape[1] != 3 * SIDE * SIDE or labels.shape != pixels.shape[:1]:
        raise DataError(
            f"{path} holds pixels {pixels.shape} and labels {labels.shape}; expected (n, 3072) and "
            "(n,)."
        )
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(CLASSES):
        raise DataError(f"{path} holds labels {labels.min()}..{labels.max()}; expected 0..9.")
    return pixels.reshape(-1, 3, SIDE, SIDE), labels


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, text and uint8 arrays; refuses every other name."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> type:
        known: dict[tuple[str, str], type] = {
            ("numpy.core.multiarray", "_reconstruct"): _Array,
            ("numpy._core.multiarray", "_reconstruct"): _Array,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _DataType,
        }
        if (module, name) not in known:
            raise DataError(
                f"the pickle asks for {module}.{name}, which a picture file does not need; refused "
                "and nothing executed. Do not use this file."
            )
        return known[module, name]

    def persistent_load(self, pid: Any) -> Any:
        raise DataError("the pickle refers to an object outside itself; refused.")


class _DataType:
    """Stands in for numpy.dtype: remembers the code, which must be unsigned bytes."""

    def __init__(self, code: Any = b"", *_: Any) -> None:
        self.code = _text(code)

    def __setstate__(self, state: Any) -> None:
        pass  # byte order and the like; means nothing for single bytes


class _Array:
    """Stands in for numpy's array and its maker: remembers shape and bytes."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, data_type, fortran, content = self.state
        if not isinstance(data_type, _DataType) or data_type.code != "u1" or fortran:
            raise DataError("its array is not of unsigned bytes in C order.")
        if not isinstance(content, bytes):
            raise DataError("its array holds no bytes.")
        return np.frombuffer(bytearray(content), dtype=np.uint8).reshape(shape)


def _text(value: Any) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)

"""Image sets: shipped digits, any folder, CIFAR-10 and STL-10, opened by one function."""

from visgen.data.dataset import Data, DataError, DataMissing, UnknownData
from visgen.data.opening import open_data

__all__ = ["Data", "DataError", "DataMissing", "UnknownData", "open_data"]

"""Small trained weights that come with the package, and where they came from."""

from visgen.zoo.table import UnknownZooEntry, ZooEntry, entries, find, load

__all__ = ["UnknownZooEntry", "ZooEntry", "entries", "find", "load"]

"""From the text in a suite to an opened image set."""

import difflib
from pathlib import Path

from visgen.data.dataset import Data, UnknownData
from visgen.data.digits import SIZES, open_digits

SPECS = tuple(f"digits:{side}" for side in SIZES)


def open_data(spec: str, *, root: Path | None = None, offline: bool = False) -> Data:
    """Open the image set that `spec` names.

    Raises:
        UnknownData: no set of that name; the nearest match and the list are in the message.
        DataMissing: the set is not on this machine; path and flag are in the message.
        DataError: the set is there but cannot be used.
    """
    if spec in SPECS:
        return open_digits(int(spec.partition(":")[2]))
    nearest = difflib.get_close_matches(spec, SPECS, n=1, cutoff=0.0)[0]
    raise UnknownData(
        f'unknown data "{spec}"; nearest: "{nearest}" (there are {", ".join(SPECS)}).'
    )

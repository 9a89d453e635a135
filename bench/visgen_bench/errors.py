"""Mistakes of whoever typed the command or wrote the suite: one line, exit code 2."""

import contextlib
from collections.abc import Iterator


class UsageError(ValueError):
    """What was given, what is possible, and the fix, in one line."""


@contextlib.contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Raise a library's errors of these kinds as `UsageError`."""
    try:
        yield
    except kinds as error:
        raise UsageError(str(error)) from error

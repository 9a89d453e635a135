"""Mistakes of whoever typed the command or wrote the suite: one line, exit code 2."""


class UsageError(ValueError):
    """What was given, what is possible, and the fix, in one line."""

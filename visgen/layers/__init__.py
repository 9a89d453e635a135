"""Blocks that several models share unchanged, one concept a file."""

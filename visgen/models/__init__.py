"""Models that are transformers, one paper a file."""

"""The harness: suites of cells in, rows out."""

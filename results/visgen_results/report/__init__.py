"""The HTML report: one self-contained file that makes no request."""

from visgen_results.report.page import report

__all__ = ["report"]

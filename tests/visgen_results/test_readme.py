"""The README's tables are the committed rows."""

from pathlib import Path

import pytest

from visgen_results.readme import block, filled

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "results/tables"


def test_the_readme_shows_the_committed_rows() -> None:
    page = (ROOT / "README.md").read_text("utf-8")
    assert "<!-- quick -->\n```" in page
    assert filled(page, TABLES) == page


def test_the_committed_rows_hold_the_trained_model_and_every_reference_row() -> None:
    text = block(TABLES / "quick")
    for model in (
        "transgan-digits8-tiny",
        "transgan-digits8-tiny untrained",
        "dcgan-digits8-tiny",
        "real-images",
        "independent-pixels",
        "pca20-gaussian",
    ):
        assert model in text


def test_a_block_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        filled("<!-- nothing -->\n<!-- /nothing -->", tmp_path)

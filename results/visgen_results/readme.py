"""Tables in a README that are generated from committed rows.

    python -m visgen_results.readme README.md results/tables

A block between `<!-- NAME -->` and `<!-- /NAME -->` is replaced by the leaderboard of the folder
`NAME` below the given one, as text. A test compares the two, so the page cannot drift from the
rows.
"""

import argparse
import re
from pathlib import Path

from visgen_results.leaderboard import leaderboard

_BLOCK = re.compile(r"<!-- ([a-z0-9-]+) -->\n.*?<!-- /\1 -->", re.DOTALL)
_END = "\nFailed and skipped\n", "\nNo number\n"  # the README says what there is


def block(root: Path) -> str:
    """The leaderboard of one result folder, fenced, without the lists of what is missing."""
    text = leaderboard(root).to_text()
    for heading in _END:
        text = text.partition(heading)[0]
    return f"```\n{text.strip()}\n```"


def filled(page: str, tables: Path) -> str:
    """`page` with every block generated anew.

    Raises:
        ValueError: if a block names a folder that is not there.
    """

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        if not (tables / name).is_dir():
            raise ValueError(f'block "{name}": there is no folder {tables / name}.')
        return f"<!-- {name} -->\n{block(tables / name)}\n<!-- /{name} -->"

    return _BLOCK.sub(replace, page)


def main() -> None:
    """Rewrite the page in place."""
    parser = argparse.ArgumentParser(description="Fill a page's tables from committed rows.")
    parser.add_argument("page", type=Path)
    parser.add_argument("tables", type=Path)
    options = parser.parse_args()
    page: Path = options.page
    page.write_text(filled(page.read_text("utf-8"), options.tables), "utf-8")


if __name__ == "__main__":
    main()

"""A measuring process: `python -m visgen_bench.kernels_bench.child KIND RECORDS`, request on stdin.

It measures one group (`bench`) or one model in one phase (`share`) and appends what it finds to
RECORDS, one line of JSON each, at once: a process that dies has lost what it was working on alone.
"""

from __future__ import annotations

import sys
from pathlib import Path

from visgen_bench.executors.server import die_with_parent
from visgen_bench.journal import Journal


def main(arguments: list[str] | None = None) -> int:
    """Run the request; the exit code only says that the process lived."""
    kind, records = arguments or sys.argv[1:]
    die_with_parent()
    request = sys.stdin.read()
    with Journal(Path(records)) as journal:
        if kind == "bench":
            from visgen_bench.kernels_bench.group import measure_group
            from visgen_bench.kernels_bench.request import Group

            measure_group(Group.from_json(request), journal)
        else:
            from visgen_bench.kernels_bench.share import measure_share
            from visgen_bench.kernels_bench.share_request import ShareRequest

            measure_share(ShareRequest.from_json(request), journal)
    return 0


if __name__ == "__main__":
    sys.exit(main())

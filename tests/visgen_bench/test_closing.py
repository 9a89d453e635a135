"""What is shown after a run, also where nothing more can be written."""

import resource

from visgen_bench.closing import close

SUITE = """
[[cell]]
kind = "quality"
model = "pca20-gaussian"
data = "digits:8"
samples = 8
metrics = ["precision", "recall"]
"""
GATE = """
[[gate]]
name = "g"
model = "pca20-gaussian"
weights = "fit"
data = "digits:8"
distance = "precision"
above_baseline = ["recall"]
floor = "pca20-gaussian"
least_classes = false
least_confident = false
most_copies = false
"""


def test_a_full_disk_takes_gates_and_report_but_not_the_leaderboard(bench) -> None:
    summary = bench.run(SUITE + GATE, in_process=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1, hard))
    try:
        closed = close(summary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    gates, report = closed.faults
    assert gates.startswith(f"cannot write the gates' rows to {bench.out}: ")
    assert report == f"cannot write the report to {bench.out}/report.html: File too large"
    assert closed.report is None
    assert [verdict.passed for verdict in closed.verdicts] == [False]
    assert closed.board.boards
    assert close(summary).faults == ()

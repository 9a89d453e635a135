import json
import math
from typing import Any

import pytest

from visgen_results.leaderboard import (
    INSIDE_WARNING,
    PROXY_WARNING,
    VIDEO_PROXY_WARNING,
    Board,
    BoardRow,
    gates,
    leaderboard,
)
from visgen_results.pivot import pivots
from visgen_results.reading import read_results
from visgen_results.wording import floor, note, title

LITE0 = {
    "n": 1000, "n_ref": 360, "protocol": "fd_lite0-v1", "extractor": "efficientnet-lite0-64",
    "comparable": False,
}  # fmt: skip

CLIPS: dict[str, Any] = {
    "task": "video-generation", "resolution": "16x3x32x32", "dataset": "moving-digits",
}  # fmt: skip
REAL: dict[str, Any] = {"model": "real-videos", "family": "reference", "weights": "fit"}


def seeds(folder: Any, model: str, values: list[float], **columns: Any) -> None:
    common = LITE0 | columns.pop("common", {})
    for seed, value in enumerate(values):
        folder.run({"fd_lite0": value}, model=model, seed=seed, common=common, **columns)


def only_board(folder: Any) -> Board:
    (board,) = leaderboard(folder.root).boards
    return board


def by_label(board: Board) -> dict[str, BoardRow]:
    return {row.label: row for row in board.rows}


def test_seeds_become_one_row_with_mean_sd_and_every_value(folder: Any) -> None:
    seeds(folder, "a", [1.0, 2.0, 3.0])
    (row,) = only_board(folder).rows
    assert (row.value, row.sd, row.values) == (2.0, 1.0, {0: 1.0, 1: 2.0, 2: 3.0})
    assert row.n == 1000
    assert row.interval is not None
    assert row.interval.method == "t over 3 seeds"
    assert row.interval.high - 2.0 == pytest.approx(4.302653 / math.sqrt(3))


def test_rows_are_sorted_by_direction(folder: Any) -> None:
    for model, fd, precision in (("a", 3.0, 0.3), ("b", 1.0, 0.1), ("c", 2.0, 0.2)):
        folder.run({"fd_lite0": fd, "precision": precision}, model=model, common=LITE0)
    down, up = leaderboard(folder.root).boards
    assert [row.label for row in down.rows] == ["b", "c", "a"]
    assert [row.label for row in up.rows] == ["a", "c", "b"]


def test_clear_models_are_ranked_and_close_ones_share(folder: Any) -> None:
    seeds(folder, "close", [1.00, 1.03, 1.01])
    seeds(folder, "best", [1.01, 1.02, 0.99])
    seeds(folder, "worst", [9.0, 9.1, 9.05])
    ranks = {row.label: row.rank for row in only_board(folder).rows}
    assert ranks == {"best": (1, 2), "close": (1, 2), "worst": (3, 3)}


@pytest.mark.parametrize(
    "difference",
    [
        {"common": {"n": 500}},
        {"common": {"n_ref": 100}},
        {"common": {"protocol": "fd_lite0-v2"}},
        {"common": {"extractor_sha256": "ff"}},
        {"common": {"metric_version": "2"}},
        {"common": {"metric_opts": {"ddof": 0}}},
        {"common": {"ref_stats_sha256": "aa"}},
        {"common": {"comparable": True}},
        {"common": {"predicted": True}},
        {"dataset": "digits:16"},
        {"split": "train"},
        {"resolution": "3x16x16"},
        {"task": "video-generation"},
        {"machine_id": "another"},
    ],
)
def test_quality_of_other_groups_is_never_ranked_together(
    folder: Any, difference: dict[str, Any]
) -> None:
    seeds(folder, "a", [1.0])
    seeds(folder, "b", [2.0], **difference)
    boards = leaderboard(folder.root).boards
    assert [len(board.rows) for board in boards] == [1, 1]
    assert [board.rows[0].rank for board in boards] == [(1, 1), (1, 1)]


@pytest.mark.parametrize(
    "difference",
    [
        {"batch_size": 2},
        {"dtype": "bf16"},
        {"threads": 2},
        {"n_devices": 2},
        {"device_name": "another"},
        {"machine_id": "another"},
        {"common": {"phase": "d_step"}},
        {"common": {"timing_method": "events"}},
        {"common": {"l2": "cold"}},
        {"common": {"stat": "p90"}},
        {"env_id": "newer-torch"},
    ],
)
def test_speed_of_other_groups_is_never_ranked_together(
    folder: Any, difference: dict[str, Any]
) -> None:
    folder.machine()
    folder.machine(env_id="newer-torch", torch="2.15.0")
    for model, change in (("a", {}), ("b", difference)):
        columns: dict[str, Any] = {"batch_size": 1} | change
        row = {"metric": "latency", "value": 1.0, "stat": "p50", "timing_method": "wall_sync"}
        row |= columns.pop("common", {})
        folder.run([row], kind="performance", model=model, **columns)
    assert [len(board.rows) for board in leaderboard(folder.root).boards] == [1, 1]


def test_speed_may_be_compared_over_attention_and_other_counts_of_iterations(folder: Any) -> None:
    for attention, n in (("chunked", 40), ("sdpa", 90)):
        row = {"metric": "latency", "value": 1.0, "stat": "p50", "n": n}
        folder.run([row], kind="performance", attention=attention)
    assert sorted(by_label(only_board(folder))) == ["transgan-tiny chunked", "transgan-tiny sdpa"]


def test_why_an_interval_is_missing_makes_no_group_of_its_own(folder: Any) -> None:
    seeds(folder, "a", [1.0], common={"metric_opts": {"ddof": 1, "interval": "biased"}})
    seeds(folder, "b", [2.0], common={"metric_opts": {"ddof": 1}})
    rows = by_label(only_board(folder))
    assert rows["a"].no_interval == "biased"
    assert rows["b"].no_interval == "one seed, none given"


def test_references_and_untrained_twins_are_shown_and_not_ranked(folder: Any) -> None:
    seeds(folder, "best-of-all", [0.1], family="reference", task="reference", weights="fit")
    seeds(folder, "model", [3.0], weights="untrained")
    seeds(folder, "model", [2.0], weights="zoo:model")
    board = only_board(folder)
    assert [(row.label, row.role, row.rank) for row in board.rows] == [
        ("model", "ranked", (1, 1)),
        ("model untrained", "untrained", None),
        ("best-of-all", "reference", None),
    ]


def test_reference_rows_stand_in_the_table_of_every_task(folder: Any) -> None:
    seeds(folder, "real-images", [0.1], family="reference", task="reference")
    seeds(folder, "a", [1.0])
    seeds(folder, "b", [1.0], task="class-conditional")
    labels = [sorted(by_label(board)) for board in leaderboard(folder.root).boards]
    assert labels == [["b", "real-images"], ["a", "real-images"]] or labels == [
        ["a", "real-images"], ["b", "real-images"],
    ]  # fmt: skip


def test_speed_of_untrained_weights_is_ranked(folder: Any) -> None:
    folder.run({"throughput": 5.0}, kind="performance", weights="untrained")
    assert only_board(folder).rows[0].rank == (1, 1)


def test_labels_say_only_what_differs(folder: Any) -> None:
    seeds(folder, "a", [1.0], weights="file:" + "ab" * 32)
    seeds(folder, "a", [2.0], weights="zoo:a")
    seeds(folder, "b", [3.0], weights="zoo:b")
    assert sorted(by_label(only_board(folder))) == ["a file:abababab", "a zoo:a", "b zoo:b"]


def test_two_variants_of_one_name_are_two_rows_named_in_every_table(folder: Any) -> None:
    seeds(folder, "folder:a", [1.0], variant="11111111")
    seeds(folder, "folder:a", [2.0], variant="22222222", common={"n": 500})
    seeds(folder, "folder:b", [3.0], variant="33333333", common={"n": 500})
    small, large = sorted(leaderboard(folder.root).boards, key=lambda board: len(board.rows))
    assert sorted(by_label(small)) == ["folder:a 11111111"]
    assert "folder:a 22222222" in by_label(large)


def test_a_folder_alone_in_its_name_needs_no_hash(folder: Any) -> None:
    seeds(folder, "folder:a", [1.0], variant="11111111")
    seeds(folder, "folder:b", [2.0], variant="22222222")
    assert sorted(by_label(only_board(folder))) == ["folder:a", "folder:b"]


def test_of_one_seed_the_newest_run_counts_once(folder: Any) -> None:
    folder.run({"fd_lite0": 1.0}, seed=0, cell_key="old-batch", common=LITE0)
    folder.run({"fd_lite0": 2.0}, seed=0, cell_key="new-batch", common=LITE0)
    assert only_board(folder).rows[0].values == {0: 2.0}


def test_two_seeds_have_no_interval_and_say_so(folder: Any) -> None:
    seeds(folder, "a", [1.0, 2.0])
    (row,) = only_board(folder).rows
    assert row.interval is None
    assert row.no_interval == "2 seeds; an interval over seeds needs 3"


def test_a_single_run_shows_its_own_interval(folder: Any) -> None:
    own = {"ci_low": 0.8, "ci_high": 1.3, "ci_method": "block jackknife"}
    seeds(folder, "a", [1.0], common=own)
    (row,) = only_board(folder).rows
    assert row.interval is not None
    assert (row.interval.low, row.interval.high) == (0.8, 1.3)
    assert row.interval.method == "block jackknife"


def test_counts_have_no_interval_because_nothing_is_estimated(folder: Any) -> None:
    folder.run({"params": 83_312_495.0}, kind="performance")
    assert only_board(folder).rows[0].no_interval == "counted, not estimated"


def test_nan_is_shown_and_not_ranked(folder: Any) -> None:
    seeds(folder, "a", [math.nan])
    seeds(folder, "b", [1.0])
    rows = by_label(only_board(folder))
    assert rows["a"].rank is None
    assert rows["a"].no_interval == "computed as NaN"
    assert rows["b"].rank == (1, 1)


def test_missing_numbers_and_failed_cells_are_listed_with_their_reason(folder: Any) -> None:
    folder.run([{"metric": "fid", "value": None, "reason": "no weight file"}], model="a")
    folder.run(model="b", status="oom", error_msg="batch 512 did not fit", kind="performance")
    folder.run(model="c", status="skipped", invalid_reason="needs CUDA")
    found = leaderboard(folder.root)
    assert found.boards == ()
    assert [(m.label, m.what, m.reason) for m in found.missing] == [("a", "FID", "no weight file")]
    assert [(m.label, m.status, m.reason) for m in found.failures] == [
        ("b chunked", "oom", "batch 512 did not fit"),
        ("c", "skipped", "needs CUDA"),
    ]


def test_numbers_of_one_rank_and_of_the_process_are_no_rows(folder: Any) -> None:
    folder.run([{"metric": "process_start", "value": 0.1}, {"metric": "fid", "value": 1.0}])
    folder.run([{"metric": "latency", "value": 1.0, "rank": 1}], kind="performance")
    assert [board.metric.name for board in leaderboard(folder.root).boards] == ["fid"]


def test_proxies_carry_their_warning_and_published_numbers_none(folder: Any) -> None:
    lite, inception = LITE0, LITE0 | {"extractor": "inception-2015", "comparable": True}
    folder.run({"fd_lite0": 1.0, "precision": 0.5, "copy_share": 0.0}, common=lite)
    folder.run({"fid": 1.0}, common=inception)
    folder.run({"kid": 1.0}, common=inception | {"n": 10, "comparable": False})
    found = {b.metric.name: b.warning for b in leaderboard(folder.root).boards}
    assert found == {
        "fd_lite0": PROXY_WARNING, "precision": PROXY_WARNING, "copy_share": INSIDE_WARNING,
        "fid": "", "kid": INSIDE_WARNING,
    }  # fmt: skip


def test_gates_are_read_from_their_rows(folder: Any) -> None:
    folder.run(
        [
            {"metric": "gate_beats_pca", "value": 1.0, "metric_opts": {"reason": "0.3 <= 0.6"}},
            {"metric": "gate_copies", "value": 0.0, "metric_opts": {"share": 0.06, "limit": 0.05}},
            {"metric": "gate_digits", "value": None, "reason": "judge is void"},
        ]
    )
    found = gates(read_results(folder.root))
    assert [(g.name, g.passed, g.text) for g in found] == [
        ("beats_pca", True, "0.3 <= 0.6"),
        ("copies", False, "limit = 0.05, share = 0.06"),
        ("digits", None, "judge is void"),
    ]
    assert leaderboard(folder.root).boards == ()
    assert leaderboard(folder.root).gates == found


def test_the_json_document_is_strict_and_complete(folder: Any) -> None:
    folder.machine()
    seeds(folder, "a", [1.0, 2.0, 3.0])
    seeds(folder, "b", [math.nan])
    folder.run(model="c", status="timeout")
    document = json.loads(json.dumps(leaderboard(folder.root).to_dict(), allow_nan=False))
    a, b = document["rows"]
    assert (a["model"], a["value"], a["sd"], a["n"]) == ("a", 2.0, 1.0, 1000)
    assert (a["rank_best"], a["rank_worst"], a["proxy"]) == (1, 1, True)
    assert a["protocol"] == "fd_lite0-v1"
    assert a["values"] == {"0": 1.0, "1": 2.0, "2": 3.0}
    assert (b["value"], b["not_finite"]) == (None, "nan")
    assert document["failures"][0]["status"] == "timeout"
    assert document["machines"][0]["cpu_model"] == "Example CPU 3.0 GHz"


def test_clips_under_other_conditions_are_never_ranked_together(folder: Any) -> None:
    asked = ("class+frames", "text guidance=2.0", "text top_k=8", None, "top_k=8", "cb4b3584")
    for number, variant in enumerate(asked):
        folder.run({"psnr": float(number)}, model=f"m{number}", variant=variant, **CLIPS)
    found = {
        board.group["condition"]: sorted((row.identity["model"], row.rank) for row in board.rows)
        for board in leaderboard(folder.root).boards
    }
    assert {asked: [model for model, _ in rows] for asked, rows in found.items()} == {
        "class+frames": ["m0"], "text": ["m1", "m2"], None: ["m3", "m4", "m5"],
    }  # fmt: skip
    assert found["class+frames"][0][1] == (1, 1)


def test_speeds_under_other_conditions_are_never_ranked_together(folder: Any) -> None:
    row = {"metric": "throughput", "value": 3.0, "unit": "clips/s", "phase": "sample"}
    for variant in ("text", "class"):
        folder.run([row], kind="performance", variant=variant, batch_size=4, **CLIPS)
    found = leaderboard(folder.root)
    assert [len(board.rows) for board in found.boards] == [1, 1]
    assert [title(table) for table in pivots(found.boards)] == [
        "sample, batch 4, fp32, moving-digits, condition class",
        "sample, batch 4, fp32, moving-digits, condition text",
    ]
    assert "throughput [clips/s]" in found.to_text()


def test_a_reference_that_nothing_is_asked_of_stands_under_every_condition(folder: Any) -> None:
    folder.run({"psnr": 1.0}, variant="text", model="a", **CLIPS)
    folder.run({"psnr": 1.0}, variant="frames", model="b", **CLIPS)
    folder.run({"psnr": 1.0}, **CLIPS, **REAL)
    copied = {"model": "copy-last-frame", "family": "reference", "weights": "fit"}
    folder.run({"psnr": 1.0}, variant="frames", **CLIPS, **copied)
    folder.run({"psnr": 1.0}, variant="class", **CLIPS, **(copied | {"model": "classes"}))
    found = {
        board.group["condition"]: sorted(str(row.identity["model"]) for row in board.rows)
        for board in leaderboard(folder.root).boards
    }
    assert found == {
        "text": ["a", "real-videos"],
        "frames": ["b", "copy-last-frame", "real-videos"],
        "class": ["classes", "real-videos"],
    }


def test_metrics_of_clips_stand_in_the_order_in_which_people_look(folder: Any) -> None:
    order = [
        "fvd", "fvd_lite0_frames", "fd_lite0_frames", "r_fvd_lite0_frames",
        "fvd_star_lite0_frames", "class_obeyed", "caption_obeyed", "action_accuracy", "psnr",
        "ssim", "diversity", "class_obeyed_reconstruction", "variance_left", "code_usage",
        "code_entropy", "nats_per_code", "code_share",
    ]  # fmt: skip
    folder.run(dict.fromkeys(sorted(order), 1.0), **CLIPS)
    assert [board.metric.name for board in leaderboard(folder.root).boards] == order


def test_numbers_over_frames_stand_beside_those_over_clips(folder: Any) -> None:
    rows = [
        {"metric": "fvd_lite0_frames", "value": 1.0, "n": 24},
        {"metric": "fd_lite0_frames", "value": 2.0, "n": 24 * 16},
    ]
    folder.run(rows, **CLIPS)
    (table,) = pivots(leaderboard(folder.root).boards)
    assert title(table) == "moving-digits, test split, 24 clips, condition none"
    assert [cell.n for cell in table.rows[0].cells if cell] == [24, 384]


def test_the_floor_stands_beside_the_scores_of_its_own_count(folder: Any) -> None:
    for n, value in ((24, 3.0), (48, 1.5)):
        common = LITE0 | {"n": n}
        folder.run({"fvd_lite0_frames": 9.0, "ssim": 0.5}, common=common, **CLIPS)
        real = {"fvd_lite0_frames": value, "ssim": 0.25}
        folder.run(real, common=common, cell_key=f"real-{n}", **CLIPS, **REAL)
    tables = pivots(leaderboard(folder.root).boards)
    said = {table.facts["n"]: [floor(column) for column in table.columns] for table in tables}
    assert said == {
        24: ["floor 3", "real clips 0.2500"],
        48: ["floor 1.500", "real clips 0.2500"],
    }
    assert "floor 3; " in note(next(t for t in tables if t.facts["n"] == 24).columns[0])


def test_a_board_without_real_samples_has_no_floor(folder: Any) -> None:
    folder.run({"psnr": 1.0}, **CLIPS)
    folder.run({"psnr": 1.0}, **CLIPS, **(REAL | {"model": "mean-clip"}))
    assert only_board(folder).floor is None


def test_proxies_of_clips_say_that_they_are_no_fvd(folder: Any) -> None:
    proxies = ("fvd_lite0_frames", "fd_lite0_frames", "r_fvd_lite0_frames")
    folder.run(dict.fromkeys(proxies, 1.0) | {"psnr": 1.0}, common=LITE0, **CLIPS)
    inception = LITE0 | {"extractor": "i3d-400", "comparable": True}
    folder.run({"fvd": 1.0}, common=inception, model="b", **CLIPS)
    found = {b.metric.name: b.warning for b in leaderboard(folder.root).boards}
    assert found == dict.fromkeys(proxies, VIDEO_PROXY_WARNING) | {
        "psnr": INSIDE_WARNING,
        "fvd": "",
    }
    assert VIDEO_PROXY_WARNING.startswith("Not FVD")
    assert PROXY_WARNING.startswith("Not FID")
    first, *_ = pivots(leaderboard(folder.root).boards)
    assert first.warnings == (VIDEO_PROXY_WARNING,), "said once"

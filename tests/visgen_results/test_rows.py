import datetime
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from visgen_results.metrics import UnknownMetric
from visgen_results.rows import RowError, column, to_rows, to_table

METRIC = {"run_id": "r", "cell_key": "c", "metric": "fid", "stat": "value", "value": 1.0}
ZONES = [datetime.UTC, datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))]
RELIABLE = settings(deadline=None, derandomize=True, database=None, max_examples=50)
RUN = {"run_id": "r", "cell_key": "c", "status": "ok"}


@RELIABLE
@given(st.lists(st.none() | st.floats(allow_nan=False) | st.integers(-(2**50), 2**50)))
def test_float_columns_equal_pyarrows_own(values: list[float | None]) -> None:
    assert column(values, pa.float64()).equals(pa.array(values, pa.float64()))


@RELIABLE
@given(st.lists(st.none() | st.text(st.characters(exclude_categories=["Cs"]))))
def test_text_columns_equal_pyarrows_own(values: list[str | None]) -> None:
    assert column(values, pa.string()).equals(pa.array(values, pa.string()))


@RELIABLE
@given(st.lists(st.none() | st.booleans()))
def test_flag_columns_equal_pyarrows_own(values: list[bool | None]) -> None:
    assert column(values, pa.bool_()).equals(pa.array(values, pa.bool_()))


@RELIABLE
@given(st.lists(st.none() | st.integers(-(2**31), 2**31 - 1)))
def test_integer_columns_equal_pyarrows_own(values: list[int | None]) -> None:
    assert column(values, pa.int32()).equals(pa.array(values, pa.int32()))


@RELIABLE
@given(st.lists(st.none() | st.datetimes(timezones=st.sampled_from(ZONES))))
def test_time_columns_equal_pyarrows_own(values: list[datetime.datetime | None]) -> None:
    kind = pa.timestamp("us", tz="UTC")
    utc = [None if v is None else v.astimezone(datetime.UTC) for v in values]
    made = column(values, kind)
    assert made.equals(pa.array(utc, kind))
    assert to_rows(pa.table({"t": made})) == [{"t": v} for v in utc]


def test_nan_stays_nan_and_none_becomes_null() -> None:
    rows = [METRIC | {"value": float("nan")}, METRIC | {"value": None, "reason": "no weights"}]
    made = to_table("metrics", rows).column("value").to_pylist()
    assert math.isnan(made[0])
    assert made[1] is None


def test_numpy_numbers_are_numbers() -> None:
    row = METRIC | {"value": np.float32(0.5), "n": np.int64(7), "comparable": np.bool_(True)}
    made = to_table("metrics", [row]).to_pylist()[0]
    assert (made["value"], made["n"], made["comparable"]) == (0.5, 7, True)


def test_null_without_a_reason_is_refused() -> None:
    with pytest.raises(RowError, match="fid has value null and no reason"):
        to_table("metrics", [METRIC | {"value": None}])


def test_unknown_key_is_refused_with_the_nearest() -> None:
    with pytest.raises(RowError, match="metrics has no column 'protocl'; nearest: 'protocol'"):
        to_table("metrics", [METRIC | {"protocl": "x"}])


def test_unknown_metric_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnknownMetric, match="nearest: 'precision'"):
        to_table("metrics", [METRIC | {"metric": "precison"}])


def test_series_may_carry_the_names_of_an_objective() -> None:
    row = {"run_id": "r", "metric": "wgan_penalty", "value": 1.0, "iter": 3}
    assert to_table("measurements", [row]).num_rows == 1


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"n": 2.5}, "row 0: n=2.5 does not fit int64"),
        ({"n": True}, "n=True does not fit int64"),
        ({"value": "1.0"}, "value='1.0' does not fit double"),
        ({"value": True}, "value=True does not fit double"),
        ({"comparable": 1}, "comparable=1 does not fit bool"),
        ({"model": 5}, "model=5 does not fit string"),
        ({"rank": 2**40}, "does not fit int32"),
        ({"started_at": datetime.datetime(2026, 1, 1)}, "a time with its zone"),
        ({"started_at": "yesterday"}, "ISO 8601"),
        ({"metric_opts": {"x": float("nan")}}, "metric_opts is not plain JSON"),
        ({"stat": "meen"}, "stat='meen' is none of .*nearest: 'mean'"),
        ({"status": "okay"}, "nearest: 'ok'"),
        ({"unit": "ms"}, "fid is in 1, got unit='ms'"),
        ({"higher_is_better": True}, "fid has higher_is_better=False"),
        ({"run_id": ""}, "run_id is required"),
        ({"stat": None}, "stat is required"),
    ],
)
def test_wrong_content_is_refused_by_column(extra: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=message):
        to_table("metrics", [METRIC | extra])


def test_the_row_at_fault_is_named() -> None:
    with pytest.raises(RowError, match=r"row 2: n=0\.5"):
        to_table("metrics", [METRIC, METRIC, METRIC | {"n": 0.5}])


def test_unit_and_direction_come_from_the_table_of_metrics() -> None:
    made = to_table("metrics", [METRIC | {"metric": "latency"}]).to_pylist()[0]
    assert (made["unit"], made["higher_is_better"]) == ("s", False)


def test_throughput_may_count_clips() -> None:
    row = METRIC | {"metric": "throughput", "unit": "clip/s"}
    assert to_table("metrics", [row]).column("unit").to_pylist() == ["clip/s"]


def test_dicts_become_canonical_json() -> None:
    made = to_table("metrics", [METRIC | {"metric_opts": {"b": 1, "a": [2, None]}}])
    assert made.column("metric_opts").to_pylist() == ['{"a":[2,null],"b":1}']


def test_messages_are_cut_at_4096_characters() -> None:
    made = to_table("runs", [RUN | {"error_msg": "x" * 5000}]).to_pylist()[0]
    assert len(made["error_msg"]) == 4096


def test_text_that_is_no_unicode_is_kept_visible() -> None:
    made = to_table("runs", [RUN | {"error_msg": "bad \udcff byte"}]).to_pylist()[0]
    assert made["error_msg"] == "bad \\udcff byte"


def test_writing_imports_neither_pandas_nor_torch(tmp_path: Any) -> None:
    code = (
        "import sys\n"
        "from visgen_results.store import Store, new_run_id\n"
        "s = Store(sys.argv[1])\n"
        "row = {'cell_key': 'c', 'status': 'ok', 'ended_at': '2026-01-01T00:00:00+00:00'}\n"
        "s.append('runs', [row], kind='train', run_id=new_run_id())\n"
        "assert s.latest().num_rows == 1\n"
        "from visgen_results.leaderboard import leaderboard\n"
        "leaderboard(s.root).to_text()\n"
        "heavy = {'pandas', 'torch', 'duckdb', 'plotly', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import visgen_results.compare, visgen_results.query, visgen_results.report\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

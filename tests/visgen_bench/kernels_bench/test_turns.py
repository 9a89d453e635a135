"""Turns: all sides equally often, in changing order, within their time."""

import time

import pytest

from visgen_bench.kernels_bench.turns import calls_in_a_turn, cpu_turn, flat, take_turns


def test_all_sides_have_as_many_rounds_in_changing_order() -> None:
    order: list[str] = []

    def turn(name: str) -> dict[str, list[float]]:
        order.append(name)
        return {"wall_sync": [float(len(order))]}

    found = take_turns(["a", "b", "c"], turn, seconds=60, fewest=8, most=8)
    assert [len(found[name]["wall_sync"]) for name in "abc"] == [8, 8, 8]
    rounds = [tuple(order[i : i + 3]) for i in range(0, 24, 3)]
    assert all(set(one) == {"a", "b", "c"} for one in rounds)
    assert len(set(rounds)) > 1
    assert sorted(flat([x for name in "abc" for x in found[name]["wall_sync"]])) == list(
        range(1, 25)
    )


def test_most_rounds_end_before_the_time() -> None:
    found = take_turns(["a"], lambda name: {"m": [0.0]}, seconds=60, fewest=2, most=5)
    assert len(found["a"]["m"]) == 5


def test_a_side_that_is_far_too_slow_gets_fewer_than_the_fewest_rounds() -> None:
    def turn(name: str) -> dict[str, list[float]]:
        time.sleep(0.02)
        return {"m": [0.02]}

    found = take_turns(["a"], turn, seconds=0.005, fewest=30, most=50)
    assert 1 <= len(found["a"]["m"]) < 30


def test_the_cpu_clock_does_not_count_sleeping() -> None:
    turn = cpu_turn({"sleep": lambda: time.sleep(0.02)}, {"sleep": 0.02}, threads=1)
    found = turn("sleep")
    assert found["wall_sync"][0] >= 0.02
    assert found["cpu_time"][0] < 0.01


def test_with_more_threads_there_is_no_cpu_clock() -> None:
    assert set(cpu_turn({"a": int}, {"a": 1.0}, threads=2)("a")) == {"wall_sync"}


@pytest.mark.parametrize(("typical", "calls"), [(1.0, 1), (1e-3, 2), (1e-6, 10), (0.0, 10)])
def test_short_calls_are_repeated(typical: float, calls: int) -> None:
    assert calls_in_a_turn(typical) == calls
    assert len(cpu_turn({"a": int}, {"a": typical}, threads=1)("a")["cpu_time"]) == calls

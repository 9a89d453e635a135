"""What a measuring process says of one backend: records, one number each, and how it ended."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from visgen_bench.context import Sink
from visgen_bench.kernels_bench.accuracy import Error
from visgen_bench.kernels_bench.ceilings import Ceilings
from visgen_bench.kernels_bench.turns import flat
from visgen_bench.measure import environment, timing
from visgen_kernels.roofline import Work
from visgen_results.statistics import Interval, block_ratio

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


class Report:
    """Writes records of one backend; `ended` once it has said how it ended."""

    def __init__(self, sink: Sink, backend: str) -> None:
        self._sink, self.backend = sink, backend
        self.ended = False

    def begin(self) -> None:
        """From here on a dead process is this backend's doing."""
        self._write({"event": "begin"})

    def end(self, status: str, reason: str | None = None) -> None:
        """The last record."""
        if not self.ended:
            self._write({"event": "end", "status": status, "reason": reason})
        self.ended = True

    def _write(self, record: dict[str, Any]) -> None:
        self._sink.write({"backend": self.backend, **record})

    def metric(
        self,
        metric: str,
        value: float | None,
        *,
        stat: str = "value",
        phase: str = "total",
        reason: str | None = None,
        **columns: Any,
    ) -> None:
        """One row of `metrics`; None wants a reason."""
        if value is None and not reason:
            raise ValueError(f"metric {metric}: a missing value needs a reason.")
        if isinstance(columns.get("metric_opts"), dict):
            columns["metric_opts"] = json.dumps(columns["metric_opts"], sort_keys=True)
        row = {"metric": metric, "value": value, "stat": stat, "phase": phase, "rank": -1}
        if reason:
            row["reason"] = reason
        self._write({"row": {**row, **{k: v for k, v in columns.items() if v is not None}}})

    def latency(
        self,
        rounds: Sequence[Sequence[float]],
        *,
        timing_method: str,
        l2: str,
        calls: int = 1,
        phase: str = "total",
        **columns: Any,
    ) -> None:
        """Statistics of all calls, none left out, and the raw times with their rounds.

        calls: Of which each time is a mean (a graph of many calls hides tails, and says so).
        """
        times = flat([list(one) for one in rounds])
        options: dict[str, Any] = {
            "percentile_method": timing.PERCENTILE_METHOD,
            "rounds": len(rounds),
            "switches": environment.numeric_switches(),
        }
        if calls > 1:
            options["mean_of_calls"] = calls
        shared = {"timing_method": timing_method, "l2": l2, "n": len(times), "phase": phase}
        shared |= {"metric_opts": options, **columns}
        for found in timing.summary(times):
            own = {k: v for k, v in dataclasses.asdict(found).items() if v is not None}
            self.metric("latency", own.pop("value", None), **own, **shared)
        self.metric("outlier_frac", timing.outlier_fraction(times), **shared)
        name = f"latency_{timing_method}_{l2}"
        for block, own_times in enumerate(rounds):
            self._write(
                {
                    "series": {"metric": name, "phase": phase, "rank": -1, "block": block},
                    "values": list(own_times),
                }
            )

    def no_latency(self, reason: str, **columns: Any) -> None:
        """A null median: this method could not be used."""
        self.metric("latency", None, stat="p50", reason=reason, **columns)

    def speedup(
        self,
        other: str,
        theirs: Sequence[Sequence[float]],
        own: Sequence[Sequence[float]],
        **columns: Any,
    ) -> None:
        """How many times faster than another side, from paired rounds."""
        self.interval("speedup", block_ratio(theirs, own), n=len(own), phase=other, **columns)

    def interval(
        self, metric: str, found: Interval, *, n: int, stat: str = "value", **columns: Any
    ) -> None:
        """A number of n rounds with its interval, or why there are too few rounds for one."""
        if n >= timing.SMALLEST_BLOCKS:
            columns |= {"ci_low": found.low, "ci_high": found.high, "ci_method": found.method}
        else:
            least = timing.SMALLEST_BLOCKS
            columns["ci_method"] = f"none: {n} rounds, an interval needs {least}"
        self.metric(metric, found.value, stat=stat, n=n, **columns)

    def errors(self, found: Mapping[str, Error], samples: int, dtype: torch.dtype) -> None:
        """A row for every kind of error of every tensor that was compared."""
        options = {"samples": samples, "reference": "visgen_kernels.reference in float64"}
        for name, error in found.items():
            shared = {"phase": name, "n": samples, "metric_opts": options}
            self.metric("error_max", error.largest, **shared)
            self.metric("error_frobenius", error.frobenius, **shared)
            reason = None
            if error.ratio is None:
                reason = f"the definition in {NAMES[dtype]} has no error here"
            self.metric("error_ratio", error.ratio, reason=reason, **shared)

    def no_errors(self, reason: str) -> None:
        """Null rows: nothing was compared."""
        for metric in ("error_max", "error_frobenius", "error_ratio"):
            self.metric(metric, None, reason=reason)

    def rates(self, least: Work, seconds: float, limits: Ceilings, *, timing_method: str) -> None:
        """FLOP/s, B/s, and the share of every ceiling, the binding one by that name too."""
        columns = {"timing_method": timing_method}
        if least.flops:
            self.metric("flop_rate", least.flops / seconds, **columns)
        self.metric("byte_rate", least.bytes / seconds, **columns)
        if limits.floor is None:
            for metric in ("floor_time", "ceiling_share"):
                self.metric(metric, None, phase="binding", reason=limits.reason, **columns)
            return
        floor = limits.floor
        options = {"device": limits.device, "binding": floor.binding}
        self.metric("floor_time", floor.time, phase="binding", predicted=True, metric_opts=options)
        for ceiling, needed in {**floor.seconds, "binding": floor.time}.items():
            self.metric(
                "ceiling_share", needed / seconds, phase=ceiling, metric_opts=options, **columns
            )

"""Times of single calls on a GPU, each method with what it counts and what it leaves out.

| method | what |
|---|---|
| events | between two events on the stream, caches flushed before each call; a short call's \
launches by the host are inside, unless the flush takes longer than they do |
| graph, cold | the call captured in a CUDA graph, so that the host is out of it; flushed before |
| graph, warm | many calls in one graph, not flushed: the mean of each replay |
| profiler | Proton's sum of kernel times, caches flushed before each call |

As triton.testing does (3.8), but with every sample kept and never a single one: do_bench takes one
sample of what lasts 0.1 s, divides by zero where an estimate is 0, and its graph is warm.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from visgen_bench.measure import timing

# Twice the largest cache of a device known to `visgen_kernels.roofline` (MI300X: 256 MB).
FLUSH_BYTES = 512 * 2**20
TURN_S = 0.02
MOST_CALLS = 50
WARM_GRAPH_S = 2e-3  # of one replay of the warm graph
WARM_UPS = 3


class Flush:
    """Writes over a buffer that no cache holds."""

    def __init__(self, device: str) -> None:
        self._buffer = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=device)

    def __call__(self) -> None:
        self._buffer.zero_()


def cold_events(call: timing.Call, flush: timing.Call, device: str, count: int) -> list[float]:
    """Seconds of `count` calls on the current stream, caches flushed before each."""
    with torch.cuda.device(device):
        pairs = [(_event(), _event()) for _ in range(count)]
        for start, end in pairs:
            flush()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize(device)
    return [start.elapsed_time(end) * 1e-3 for start, end in pairs]


def calls_in_a_turn(typical_s: float) -> int:
    """As many as fill a fiftieth of a second, 1 to 50."""
    return max(1, min(MOST_CALLS, int(TURN_S / max(typical_s, 1e-9))))


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)


class Captured:
    """A call in CUDA graphs.

    `make` is run on the graph's own stream, tensors and forward pass included, because autograd
    runs a gradient on its operation's stream and waits for those of the leaves.
    """

    def __init__(self, make: Callable[[], timing.Call], flush: timing.Call, device: str) -> None:
        """Raises RuntimeError, as torch does, for a call that cannot be captured."""
        self._flush, self._device = flush, device
        self._stream: Any = torch.cuda.Stream(device)
        self._stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._stream):
            self._call = make()
            for _ in range(WARM_UPS):
                self._call()
        self._stream.synchronize()

    def _graph(self, calls: int) -> Any:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            for _ in range(calls):
                self._call()
        return graph

    def cold(self, samples: int) -> list[float]:
        """Seconds of single calls, caches flushed before each."""
        graph = self._graph(1)
        with torch.cuda.stream(self._stream):
            return cold_events(graph.replay, self._flush, self._device, samples)

    def warm(self, typical_s: float, samples: int) -> tuple[list[float], int]:
        """Seconds of a call as the mean of each replay, and the calls in a replay."""
        calls = max(1, min(1000, math.ceil(WARM_GRAPH_S / max(typical_s, 1e-9))))
        graph = self._graph(calls)
        with torch.cuda.stream(self._stream):
            replays = cold_events(graph.replay, lambda: None, self._device, samples)
        return [seconds / calls for seconds in replays], calls


def proton(call: timing.Call) -> list[float]:
    """Seconds of kernels of each call by Proton, caches flushed before each.

    Raises:
        ImportError, RuntimeError: where Proton is not there or cannot profile this device.
    """
    from triton.testing import do_bench_proton

    found: Any = do_bench_proton(call, warmup=10, rep=50, return_mode="all")
    times = [float(milliseconds) * 1e-3 for milliseconds in found]
    if not times:
        raise RuntimeError("Proton recorded no kernel")
    return times

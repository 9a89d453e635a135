"""Attention inside a model's step: which calls, how long they take, how much memory they hold.

Calls are known by their operators (`visgen::attention` and its two derivatives), so a model needs
no change and no list of layers. Recording, timing and memory are passes of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._C._profiler import _EventType
from torch.utils._python_dispatch import TorchDispatchMode

from visgen_bench.kernels_bench.calls import Side
from visgen_kernels import RelativePosition2d, attention, layouts, masks

OPERATORS = ("attention", "attention_backward", "attention_double_backward")
IMPLEMENTATIONS = ("triton", "chunked")  # that are these operators
# Where the seventeen shared arguments begin in each operator's schema.
_FIRST = {"attention": 0, "attention_backward": 4, "attention_double_backward": 5}


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Everything about a call's tensors but their content: equal ones take equally long."""

    q: tuple[int, ...]
    k: tuple[int, ...] | None
    v: tuple[int, ...] | None
    table: tuple[int, ...] | None
    key_bias: tuple[int, ...] | None
    dtype: torch.dtype
    device: torch.device
    layout: tuple[int, ...]
    mask: tuple[int, ...]
    bias: tuple[int, ...]
    scale: float


@dataclass(frozen=True)
class Recorded:
    """How often a step makes each call: by signature and direction (`calls.prepare`)."""

    counts: Counter[tuple[Signature, str]]
    mask_tensors: dict[Signature, tuple[Tensor | None, Tensor | None]]

    @property
    def total(self) -> int:
        """All calls of a step."""
        return self.counts.total()


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found = Recorded(Counter(), {})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "visgen" and func._opname in OPERATORS:
            self._record(func._opname, args)
        return func(*args, **(kwargs or {}))

    def _record(self, name: str, args: Sequence[Any]) -> None:
        q, k, v, table, key_bias, _, offsets, entries = args[_FIRST[name] : _FIRST[name] + 8]
        layout, mask, bias, scale = args[_FIRST[name] + 9 : _FIRST[name] + 13]
        signature = Signature(
            q=tuple(q.shape),
            k=_shape(k),
            v=_shape(v),
            table=_shape(table),
            key_bias=_shape(key_bias),
            dtype=q.dtype,
            device=q.device,
            layout=tuple(layout),
            mask=tuple(mask),
            bias=tuple(bias),
            scale=scale,
        )
        direction = {
            "attention": "recorded_forward" if q.requires_grad else "forward",
            "attention_backward": "backward",
            "attention_double_backward": "double_backward",
        }[name]
        self.found.counts[signature, direction] += 1
        self.found.mask_tensors[signature] = (offsets, entries)


def _shape(x: Tensor | None) -> tuple[int, ...] | None:
    return None if x is None else tuple(x.shape)


def record_calls(step: Callable[[], object]) -> Recorded:
    """Run a step once and note its attention calls."""
    with _Recording() as recording:
        step()
    return recording.found


class _Timing(TorchDispatchMode):
    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self.seconds, self._clock = 0.0, clock

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace != "visgen" or func._opname not in OPERATORS:
            return func(*args, **(kwargs or {}))
        start = self._clock()
        result = func(*args, **(kwargs or {}))
        self.seconds += self._clock() - start
        return result


def attention_seconds(step: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of a step inside attention's operators, on a CPU.

    All operators of the step pass through Python meanwhile, which slows the others and not these:
    what they consist of does not. So this is to be held against a step without it.
    """
    with _Timing(clock) as timing:
        step()
    return timing.seconds


def replay(signature: Signature, recorded: Recorded, implementation: str, *, seed: int = 0) -> Side:
    """One of the recorded calls alone, with random content and any implementation."""
    generator = torch.Generator(device=signature.device).manual_seed(seed)

    def draw(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        drawn = torch.randn(shape, generator=generator, device=signature.device)
        return drawn.to(dtype)

    shapes = {"qkv": signature.q}
    if signature.k is not None and signature.v is not None:
        shapes = {"q": signature.q, "k": signature.k, "v": signature.v}
    leaves = {name: draw(shape, signature.dtype) for name, shape in shapes.items()}
    cotangents = {name: draw(shape, signature.dtype) for name, shape in shapes.items()}
    for name, shape in (("table", signature.table), ("key_bias", signature.key_bias)):
        if shape is not None:
            leaves[name] = draw(shape, torch.float32)
    for leaf in leaves.values():
        leaf.requires_grad_()
    bias = None
    if signature.table is not None:
        bias = RelativePosition2d(leaves["table"], (signature.bias[0], signature.bias[1]))
    mask = masks.decode(signature.mask, *recorded.mask_tensors[signature])
    tensors = [leaves[name] for name in shapes]

    def forward() -> Tensor:
        return attention(
            *tensors,
            layout=layouts.decode(signature.layout),
            mask=mask,
            bias=bias,
            key_bias=leaves.get("key_bias"),
            scale=signature.scale,
            implementation=implementation,
        )

    with torch.no_grad():
        grad = torch.empty_like(forward()).normal_(generator=generator)
    return Side(forward=forward, leaves=leaves, grad=grad, cotangents=cotangents)


@dataclass(frozen=True, kw_only=True)
class Profiled:
    """One step under torch's profiler.

    Attributes:
        kernels_s: Seconds of a GPU's kernels inside attention's operators.
        allocated: Bytes allocated at the peak, without what was there before the step.
        attention_bytes: Of them, those that were allocated inside attention's operators.
    """

    kernels_s: float
    allocated: int
    attention_bytes: int


def profile_step(step: Callable[[], object], device: str, *, memory: bool) -> Profiled:
    """Profile a step; with `memory` its allocations too, which slows it and is not to be timed."""
    from torch.profiler import ProfilerActivity, profile

    gpu = device.partition(":")[0] != "cpu"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    with profile(activities=activities, profile_memory=memory) as profiler:
        step()
        if gpu:
            torch.accelerator.synchronize(device)
    names = {f"visgen::{name}" for name in OPERATORS}
    own = [event for event in profiler.key_averages() if event.key in names]
    peak = (0, 0)
    if memory:
        tree = profiler.profiler.kineto_results.experimental_event_tree()  # type: ignore[union-attr]
        peak = peak_of(allocations(tree), "cuda" if gpu else "cpu")
    return Profiled(
        kernels_s=sum(event.device_time_total for event in own) * 1e-6,
        allocated=peak[0],
        attention_bytes=peak[1],
    )


@dataclass(frozen=True)
class Allocation:
    """Bytes taken (or given back, negative) at an address, and whether inside attention."""

    time_ns: int
    address: int
    size: int
    device: str
    inside: bool


def allocations(tree: Sequence[Any]) -> list[Allocation]:
    """All allocations of a profile, in time's order."""
    found = [one for root in tree for one in _below(root, False)]
    return sorted(found, key=lambda one: one.time_ns)


def _below(event: Any, inside: bool) -> Iterator[Allocation]:
    """Depth first, without recursion: autograd's trees are deep."""
    waiting = [(event, inside)]
    while waiting:
        event, inside = waiting.pop()
        if event.tag == _EventType.Allocation:
            fields = event.extra_fields
            kind = str(fields.device).partition(":")[0]
            yield Allocation(event.start_time_ns, fields.ptr, fields.alloc_size, kind, inside)
        inside = inside or event.name in {f"visgen::{name}" for name in OPERATORS}
        waiting += [(child, inside) for child in event.children]


def peak_of(events: Sequence[Allocation], device: str) -> tuple[int, int]:
    """(bytes at the peak, those of them that attention's operators allocated)."""
    live: dict[int, Allocation] = {}
    total = inside = 0
    peak = (0, 0)
    for event in events:
        if event.device != device:
            continue
        if event.size > 0:
            live[event.address] = event
            total += event.size
            inside += event.size if event.inside else 0
            peak = max(peak, (total, inside))
        elif event.address in live:  # what was there before the profile began is not counted
            gone = live.pop(event.address)
            total -= gone.size
            inside -= gone.size if gone.inside else 0
    return peak


def held_bytes(device: str) -> int:
    """Bytes that live tensors hold now: parameters, optimiser's state, inputs."""
    if device.partition(":")[0] == "cuda":
        return torch.cuda.memory_allocated(device)
    import gc

    storages: dict[int, int] = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, torch.nn.Parameter):
            for tensor in (thing, thing.grad if thing.is_leaf else None):
                if tensor is not None and tensor.device.type == "cpu":
                    storage = tensor.untyped_storage()
                    storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())

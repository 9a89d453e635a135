"""What a launch of the package's kernels computes and moves, from its constants and its layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor

from visgen_kernels.attention.arguments import Rows, head_parts
from visgen_kernels.launch import Launch
from visgen_kernels.masks import SameGroup
from visgen_kernels.roofline import Work
from visgen_kernels.shapes import Shape
from visgen_kernels.static.analysis import Facts
from visgen_kernels.static.passes import passes
from visgen_kernels.static.work import MATHS, kernel_work, tile_flops

ITEMSIZE = {"bf16": 2, "fp16": 2, "fp32": 4}
Known = dict[str, Any]  # fields of Facts


def facts_of(launch: Launch, shape: Shape, direction: str, dtype: str = "bf16") -> Facts:
    """Facts of a launch for a layer; of a kernel that is not known here, only what all have."""
    kernel = kernel_of(launch)
    known = _READERS[launch.name](kernel, launch, shape, dtype) if launch.name in _READERS else {}
    return Facts(
        **{
            "kernel": kernel,
            "direction": direction,
            "programs": launch.programs,
            "tile": tile_of(launch),
            "widest": widest_access(launch),
            "tensors": tensors_of(launch),
            "dtype": dtype,
            **known,
        }
    )


def kernel_of(launch: Launch) -> str:
    """The short name of a launch's kernel; one that computes half of its results has its own."""
    name = _NAMES.get(launch.name, launch.name)
    if name == "backward_keys":
        queries = launch.arguments[0]
        if not queries.with_v.value:
            return "backward_keys_dk"
        if not queries.with_k.value:
            return "backward_keys_dv"
    if name == "bias_gradient" and launch.arguments[0].m is not None:
        return "double_bias"
    return name


def tile_of(launch: Launch) -> dict[str, int]:
    """What was chosen: rows of both sides, blocks, warps, stages, options."""
    chosen = {
        name: value
        for name, value in launch.constants.items()
        if name.startswith(("block", "masked", "pack")) and isinstance(value, int)
    }
    return {**chosen, "warps": launch.warps, "stages": launch.stages, **launch.options}


def widest_access(launch: Launch) -> int:
    """Bytes of the widest access that the strides of all rows of numbers allow, at most 16."""
    return min([16, *(rows.unit.value * rows.base.itemsize for _, rows in _rows(launch))])


def tensors_of(launch: Launch) -> frozenset[str]:
    """Names of the pointer arguments whose rows could be read at the widest access.

    Tensors of rows (q, k, v, outputs, their gradients), not a number a row (the log-sum-exp), nor
    tables. A kernel that takes no such argument: its tensors of the narrowest floating type, as
    wider ones beside them hold statistics and sums.
    """
    rows = frozenset(f"{name}.base" for name, _ in _rows(launch))
    if rows:
        return rows
    pointers = {name: x for name, x in _arguments(launch) if isinstance(x, Tensor)}
    floating = {name: x for name, x in pointers.items() if x.is_floating_point()} or pointers
    narrowest = min((x.itemsize for x in floating.values()), default=0)
    return frozenset(name for name, x in floating.items() if x.itemsize == narrowest)


def _rows(launch: Launch) -> Iterator[tuple[str, Any]]:
    """Arguments that say how rows of several numbers lie in memory, by name."""
    for name, value in _arguments(launch):
        is_rows = hasattr(value, "unit") and hasattr(value, "base")
        if is_rows and not (isinstance(value, Rows) and value.d.value == 1):
            yield name, value


def _arguments(launch: Launch) -> Iterator[tuple[str, Any]]:
    """All that a launch is given, and what tuples in it hold, by the names Triton uses: `t.q`."""

    def inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
        yield name, value
        if isinstance(value, tuple):
            fields = getattr(value, "_fields", range(len(value)))
            for field, part in zip(fields, value, strict=True):
                yield from inside(f"{name}.{field}", part)

    for name, value in zip(launch.kernel.arg_names, launch.arguments, strict=False):
        yield from inside(name, value)
    for name, value in launch.constants.items():
        yield from inside(name, value)


def _padded(shape: Shape) -> tuple[int, int]:
    """Head dimensions as the kernels compute them."""
    return sum(head_parts(shape.d)), sum(head_parts(shape.d_v))


def _looped(kernel: str, launch: Launch, shape: Shape, dtype: str) -> Known:
    """Kernels that own a tile of one side and walk over tiles of the other."""
    maths, constants = MATHS[kernel], launch.constants
    block_m, block_n = constants["block_m"], constants["block_n"]
    piece = None if maths.of_keys else constants.get("masked_n")
    found = passes(shape, block_m, block_n, of_keys=maths.of_keys, piece=piece)
    scores = float(block_m * block_n)
    return {
        "scores": scores,
        "flops": tile_flops(kernel, scores, *_padded(shape)),
        "whole": found.whole,
        "masked": found.masked,
        "masked_scores": scores if piece is None else float(block_m * piece),
        "has_whole": not isinstance(shape.made_mask, SameGroup),
        "work": kernel_work(kernel, shape, itemsize=ITEMSIZE[dtype]),
    }


def _moved(kernel: str, launch: Launch, shape: Shape, dtype: str) -> Known:
    """Kernels without scores."""
    return {"work": kernel_work(kernel, shape, itemsize=ITEMSIZE[dtype])}


def _short(kernel: str, launch: Launch, shape: Shape, dtype: str) -> Known:
    """K4: a program is `blocks` squares of `block` queries and keys, without a loop."""
    scores = float(launch.constants["blocks"] * launch.constants["block"] ** 2)
    return {
        "scores": scores,
        "flops": tile_flops(kernel, scores, *_padded(shape)),
        "work": kernel_work(kernel, shape, itemsize=ITEMSIZE[dtype]),
    }


def _bias_gradient(kernel: str, launch: Launch, shape: Shape, dtype: str) -> Known:
    """K3: a program owns an offset of the map and walks over sequences and places."""
    _, _, _, cut, sequences, splits = launch.arguments
    height = (shape.bias or (1, 1))[0]
    rows_m, rows_n, tiles, first = (
        getattr(cut, name).value for name in ("rows_m", "rows_n", "tiles", "first")
    )
    count = 0
    for number in range(cut.offsets.value):
        shift = (number + first) * rows_n
        low = max(-shift + rows_m - rows_n, 0) // rows_m
        count += min(-(-(height - shift) // rows_m), tiles) - low
    scores = float(launch.constants["block_m"] * launch.constants["block_n"])
    return {
        "scores": scores,
        "flops": tile_flops(kernel, scores, *_padded(shape)),
        "whole": sequences * count / cut.offsets.value / splits,
        "work": kernel_work(kernel, shape, itemsize=ITEMSIZE[dtype]),
    }


def _decode(kernel: str, launch: Launch, shape: Shape, dtype: str) -> Known:
    """K6: a program streams a share of the cache of one head, for one query or for all."""
    one = launch.name == "decode_one"
    size = launch.arguments[5] if one else launch.arguments[4]
    keys = launch.constants["block_n"] if one else launch.arguments[8].block_n.value
    rows = 1 if one else launch.arguments[8].rows.value
    scores = float(rows * keys)
    return {
        "tile": {"block_n": keys, "splits": size.splits, **tile_of(launch)},
        "scores": scores,
        "flops": None if one else tile_flops("forward", scores, *_padded(shape)),
        "whole": shape.n_k / size.splits / keys,
        "exponentials": 2.0 if one else 1.0,  # every lane of keys has its own maximum
        "work": kernel_work("decode", shape, itemsize=ITEMSIZE[dtype]),
    }


def _combine(kernel: str, launch: Launch, shape: Shape, dtype: str) -> Known:
    """The partial results of all splits, float32, to one output."""
    result, stats, out, _ = launch.arguments
    moved = 4 * (result.numel() + stats.numel()) + out.itemsize * out.numel()
    return {"work": Work(bytes=float(moved))}


def _nearest(kernel: str, launch: Launch, shape: Shape, dtype: str) -> Known:
    """K7: vectors x codes; the inner loop goes over columns, tf32x3 makes three products of one."""
    constants, d = launch.constants, shape.d
    vectors, codes = launch.arguments[0], launch.arguments[1]
    pairs = float(constants["block_m"] * constants["block_k"])
    steps = -(-d // constants["block_d"])
    products = 3 if constants["precision"] == "tf32x3" else 1
    itemsize = vectors.base.itemsize
    flops = 2.0 * pairs * constants["block_d"] * products
    splits = launch.arguments[4]
    return {
        "scores": pairs / steps,
        "flops": flops,
        "whole": steps * -(-(codes.rows // splits) // constants["block_k"]),
        "exponentials": 0.0,
        "steps": steps,
        "step_bytes": float(itemsize * constants["block_k"] * constants["block_d"]),
        "work": Work(
            flops=2.0 * vectors.rows * codes.rows * d * products,
            bytes=float(itemsize * (vectors.rows + codes.rows) * d + 8 * splits * vectors.rows),
        ),
        "dtype": "tf32" if constants["precision"] in ("tf32", "tf32x3") else dtype,
    }


# Name of the jit function -> short name, and what reads its constants.
_NAMES = {
    "attention_forward": "forward",
    "attention_delta": "delta",
    "attention_backward_queries": "backward_queries",
    "attention_backward_keys": "backward_keys",
    "attention_bias_gradient": "bias_gradient",
    "short_attention_forward": "short_forward",
    "short_attention_backward": "short_backward",
    "attention_double_rows": "double_rows",
    "attention_double_queries": "double_queries",
    "attention_double_keys": "double_keys",
    "nearest_code_search": "nearest_code",
}
_READERS: Mapping[str, Callable[[str, Launch, Shape, str], Known]] = {
    "attention_forward": _looped,
    "attention_delta": _moved,
    "attention_backward_queries": _looped,
    "attention_backward_keys": _looped,
    "attention_bias_gradient": _bias_gradient,
    "short_attention_forward": _short,
    "short_attention_backward": _short,
    "attention_double_rows": _looped,
    "attention_double_queries": _looped,
    "attention_double_keys": _looped,
    "decode_one": _decode,
    "decode_several": _decode,
    "decode_combine": _combine,
    "nearest_code_search": _nearest,
}
# Every kernel, and the directions that launch it.
KERNELS: Mapping[str, tuple[str, ...]] = {
    **{name: (MATHS[name].direction,) for name in MATHS if name != "decode"},
    "delta": ("backward", "double_backward"),
    "decode_one": ("decode",),
    "decode_several": ("decode",),
    "decode_combine": ("decode",),
    "nearest_code": ("codebook",),
}

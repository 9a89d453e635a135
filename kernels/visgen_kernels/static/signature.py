"""Any Triton kernel by name, with its arguments described in words instead of tensors.

    module:function  or  path/to/file.py:function

A signature lists the types of the parameters that are no constants, in the kernel's order:

    *bf16:16      pointer to bf16, address a multiple of 16 bytes (tensors of torch: always so)
    *fp32         pointer of unknown alignment
    i32  i64      integer;  i32:16 a multiple of 16;  i32:1 is 1 (the JIT makes it a constant)
    fp32          number;   bool   flag
    (i32,i32:16)  tuple

From these, arguments on the meta device are made, so that the JIT itself says what it knows of
them, as for the kernels of this package. A plain function `module:function` that takes nothing and
returns `visgen_kernels.launch.Launch` is taken as it is: that is exact, and the way for named
tuples and other arguments a signature cannot say.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
import triton.language as tl
from triton.runtime.autotuner import Autotuner, Heuristics
from triton.runtime.jit import JITFunction

from visgen_kernels.launch import Launch

POINTERS = {
    "bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32, "fp64": torch.float64,
    "fp8e4nv": torch.float8_e4m3fn, "fp8e5": torch.float8_e5m2, "fp8e4b8": torch.float8_e4m3fnuz,
    "fp8e5b16": torch.float8_e5m2fnuz, "i1": torch.bool, "i8": torch.int8, "u8": torch.uint8,
    "i16": torch.int16, "i32": torch.int32, "i64": torch.int64,
}  # fmt: skip
_SCALARS: dict[str, dict[str, Any]] = {
    "i32": {"": 7, "16": 32, "1": 1},
    "i64": {"": 2**40 + 1, "16": 2**40},
    "fp32": {"": 0.5},
    "bool": {"": True},
}
_ITEM = re.compile(r"(\*?)([a-z0-9]+)(?::(\d+))?")
_SIZE = 4096  # elements of a stand-in tensor, below the 2 GiB that AMD's backend asks about


class KernelError(ValueError):
    """What was said about a kernel does not fit it: what was given, what is possible, the fix."""


def load_launches(
    name: str,
    *,
    signature: str | None = None,
    constants: Iterable[str] = (),
    options: Iterable[str] = (),
    warps: int = 4,
    stages: int = 3,
) -> list[tuple[str, Launch]]:
    """Launches of the kernel that `name` names, each with what tells it apart (autotuner configs).

    constants, options: NAME=VALUE, the value as in Python, or a type such as fp16.

    Raises:
        KernelError: saying what does not fit.
    """
    found = load(name)
    if not isinstance(found, JITFunction | Autotuner | Heuristics):
        return _called(name, found, signature)
    kernel, configs = _unwrapped(found)
    values = dict(_assignment(text, "--constant") for text in constants)
    extra = dict(_assignment(text, "--option") for text in options)
    named = {key for config in configs for key in config.kwargs}
    given = _arguments(kernel, signature, values, named)
    base = Launch(kernel, 1, (), given, warps, stages, extra)
    if not configs:
        return [("", base)]
    return [
        (
            ", ".join(f"{key}={value}" for key, value in config.kwargs.items()),
            replace(
                base,
                constants={**given, **config.kwargs},
                warps=config.num_warps,
                stages=config.num_stages,
            ),
        )
        for config in configs
    ]


def load(name: str) -> Any:
    """The object `module:function`, the module by its import name or its file.

    Raises:
        KernelError: if there is no such module or no such name in it.
    """
    module_name, colon, attribute = name.rpartition(":")
    if not colon or not attribute:
        raise KernelError(f'"{name}": name a kernel as module:function or file.py:function.')
    module = _module(module_name)
    if not hasattr(module, attribute):
        kernels = [key for key, value in vars(module).items() if isinstance(value, JITFunction)]
        near = get_close_matches(attribute, kernels, n=1, cutoff=0.0)
        known = f'; nearest kernel: "{near[0]}"' if near else "; it holds no triton.jit function"
        raise KernelError(f'{module_name} has no "{attribute}"{known}.')
    return getattr(module, attribute)


def _module(name: str) -> Any:
    if not name.endswith(".py"):
        here = str(Path.cwd())
        if here not in sys.path:
            sys.path.insert(0, here)
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            raise KernelError(
                f'no module "{name}" ({error}); give its import name, or its file as '
                f"{name.replace('.', '/')}.py."
            ) from error
    path = Path(name)
    if not path.is_file():
        raise KernelError(f"there is no file {name}.")
    spec = importlib.util.spec_from_file_location(f"_kernels_in_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise KernelError(f"{name} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module


def _called(name: str, found: Any, signature: str | None) -> list[tuple[str, Launch]]:
    if not callable(found):
        raise KernelError(
            f"{name} is a {type(found).__name__}; a kernel is a triton.jit function, or a function "
            "that returns visgen_kernels.launch.Launch."
        )
    if signature is not None:
        raise KernelError(f"{name} is no triton.jit function, so --signature means nothing for it.")
    made = found()
    several = list(made) if isinstance(made, list | tuple) else [made]
    launches = [one for one in several if isinstance(one, Launch)]
    if not launches or len(launches) < len(several):
        raise KernelError(f"{name}() returned {made!r}; it must return Launch, or a list of them.")
    return [("" if len(launches) == 1 else str(i), one) for i, one in enumerate(launches)]


def _unwrapped(found: Any) -> tuple[JITFunction, list[Any]]:
    """The kernel inside its decorators, and the configs of an autotuner."""
    configs: list[Any] = []
    while isinstance(found, Autotuner | Heuristics):
        if isinstance(found, Autotuner):
            configs = list(found.configs)
        found = found.fn
    return found, configs


def _assignment(text: str, option: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise KernelError(f'{option} "{text}": write NAME=VALUE.')
    return name.strip(), _value(value.strip())


def _value(text: str) -> Any:
    """A constant: a number, True, None, a tuple, a Triton type (fp16, tl.float16), else text."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        pass
    dtype = getattr(tl, text.removeprefix("tl."), None)
    if isinstance(dtype, tl.dtype):
        return dtype
    short = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32, "fp64": tl.float64}
    return short.get(text, text)


def _arguments(
    kernel: JITFunction, signature: str | None, constants: Mapping[str, Any], tuned: set[str]
) -> dict[str, Any]:
    """Every parameter's argument by name."""
    fixed = [p for p in kernel.params if p.is_constexpr]
    names = {p.name for p in fixed}
    for name in constants:
        if name not in names:
            near = get_close_matches(name, names, n=1, cutoff=0.0)
            hint = f'; nearest: "{near[0]}"' if near else "; the kernel has no tl.constexpr"
            raise KernelError(f'{kernel.__name__} has no constant "{name}"{hint}.')
    missing = [p.name for p in fixed if not p.has_default and p.name not in {*constants, *tuned}]
    if missing:
        raise KernelError(
            f"{kernel.__name__} needs a value of {', '.join(missing)}; "
            f"add --constant {missing[0]}=VALUE{' and so on' if missing[1:] else ''}."
        )
    free = [p.name for p in kernel.params if not p.is_constexpr]
    items = _split(signature or "")
    if len(items) != len(free):
        raise KernelError(
            f"{kernel.__name__} takes {len(free)} arguments beside constants "
            f"({', '.join(free)}), --signature has {len(items)}; "
            f'write one type for each, as in "{_example(len(free))}".'
        )
    arguments = {name: _stand_in(text) for name, text in zip(free, items, strict=True)}
    return {**arguments, **constants}


def _example(length: int) -> str:
    return ", ".join((["*bf16:16"] * length)[: max(1, length - 1)] + ["i32"] * (length > 1))


def _split(text: str) -> list[str]:
    """Cut at commas outside parentheses."""
    items, depth, current = [], 0, ""
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            items.append(current.strip())
            current = ""
        else:
            current += sign
    if depth:
        raise KernelError(f'signature "{text}": parentheses do not match.')
    return [*items, current.strip()] if current.strip() or items else []


def _stand_in(text: str) -> Any:
    """An argument of this type and with what is known of it."""
    if text.startswith("(") and text.endswith(")"):
        return tuple(_stand_in(part) for part in _split(text[1:-1]))
    match = _ITEM.fullmatch(text)
    if match is None:
        raise KernelError(f'"{text}" is no type; write *bf16:16, *fp32, i32, i32:16, fp32, bool.')
    star, kind, hint = match.groups(default="")
    known = POINTERS if star else _SCALARS
    if kind not in known:
        near = get_close_matches(kind, known, n=1, cutoff=0.0)[0]
        raise KernelError(
            f'"{text}": unknown type "{star}{kind}"; nearest: "{star}{near}" '
            f"(known: {', '.join(star + name for name in known)})."
        )
    hints = ("", "16") if star else tuple(_SCALARS[kind])
    if hint not in hints:
        allowed = ", ".join(f"{star}{kind}:{h}" if h else f"{star}{kind}" for h in hints)
        raise KernelError(f'"{text}": the compiler knows no such hint; possible: {allowed}.')
    if not star:
        return _SCALARS[kind][hint]
    whole = torch.empty(_SIZE, dtype=POINTERS[kind], device="meta")
    return whole if hint else whole[1:]

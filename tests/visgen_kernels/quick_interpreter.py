"""Makes Triton's interpreter two to three times faster, with the same results.

At every call of a jit function from another one it exchanges the members of `triton.language` again
(0.6 ms), though they stay exchanged until the kernel ends. Once a kernel and module is enough.
"""

from __future__ import annotations

from typing import Any

from triton.runtime import interpreter
from triton.runtime.interpreter import InterpretedFunction


def quicken() -> None:
    """From now on, in this process."""
    patched: set[int] = set()  # modules of the running kernel, by their globals
    launch = InterpretedFunction.run

    def run(self: Any, *arguments: Any, **options: Any) -> None:
        patched.clear()
        launch(self, *arguments, **options)

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        module = id(self.fn.__globals__)
        if module not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(module)
        return self.rewrite()(*arguments, **options)

    InterpretedFunction.run = run
    InterpretedFunction.__call__ = call

"""How much memory the tensors of a call hold at once, found on the meta device without any.

Counted is what Python sees: every tensor that an operator returns, from its birth until the last
reference to its storage goes, what autograd keeps for the backward pass included. Not counted are
buffers inside an operator, the allocator's slack, and what was there before the call.
"""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):
    """Adds up the bytes of storages that operators make, and takes them off when these go."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run one operator; views of what it was given are nothing new."""
        kwargs = kwargs or {}
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        for storage in _storages(result):
            if storage._cdata not in given | self._known:
                self._hold(storage)
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self._now += size
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._now -= size


def _storages(tree: object) -> list[torch.UntypedStorage]:
    leaves = tree_leaves(tree)
    return [leaf.untyped_storage() for leaf in leaves if isinstance(leaf, torch.Tensor)]


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that tensors made by `call` hold at once; run it on the meta device."""
    with _Live() as live:
        call()
    return live.peak

"""Tokens see the tokens of their own group: the mask of Swin's shifted windows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from visgen_kernels.layouts import Layout
from visgen_kernels.tiles import Tile, row_slices


@dataclass(frozen=True, eq=False)
class SameGroup:
    """A query sees the keys of its sequence whose id equals its own.

    ids: int32, one per token of a sample, in the shape of the grid between batch and heads: (y, x)
    under Windows, (n,) under Sequence. The layout decides which tokens form a sequence; equal ids
    in different sequences mean nothing. Queries and keys have the same grid.
    """

    ids: Tensor

    def __post_init__(self) -> None:
        if self.ids.dtype != torch.int32 or not self.ids.ndim:
            raise ValueError(
                f"SameGroup: ids are an int32 tensor with one id per token of the grid, got "
                f"{self.ids.dtype} of shape {tuple(self.ids.shape)}; pass ids.to(torch.int32)."
            )

    @staticmethod
    def shifted(
        map: tuple[int, int], window: tuple[int, int], shift: int | tuple[int, int]
    ) -> SameGroup:
        """The mask of Swin's shifted windows (arXiv:2103.14030, section 3.2), for Windows(*window).

        map: (rows, columns) of tokens. Before the call the map is rolled up and left by `shift`,
        afterwards back: `torch.roll(x, (-shift, -shift), (1, 2))`. The rows and columns that came
        around the edge then share windows with tokens that were never their neighbours, and are
        kept apart from them.
        """
        sides = (shift, shift) if isinstance(shift, int) else shift
        fits = all(
            w > 0 and n % w == 0 and 0 <= s < w for n, w, s in zip(map, window, sides, strict=True)
        )
        if not fits:
            raise ValueError(
                f"SameGroup.shifted(map={map}, window={window}, shift={shift}): windows divide the "
                "map and a shift is at least 0 and smaller than the window."
            )
        # On the CPU also where models are built under torch.device("meta"): ids are content.
        around = [
            (torch.arange(n, device="cpu") >= n - s).to(torch.int32)
            for n, s in zip(map, sides, strict=True)
        ]
        return SameGroup(2 * around[0][:, None] + around[1])

    def check(self, n_q: int, n_k: int) -> None:
        if n_q != n_k:
            raise ValueError(
                f"SameGroup compares the ids of one grid, got {n_q} queries and {n_k} keys; it "
                "wants as many keys as queries."
            )

    def check_grid(self, grid: Sequence[int], key_grid: Sequence[int]) -> None:
        """Raise ValueError where the ids are not those of the tensors' grid."""
        shape = tuple(self.ids.shape)
        if shape != tuple(grid) or shape != tuple(key_grid):
            raise ValueError(
                f"SameGroup has ids of shape {shape}, the queries' grid is {tuple(grid)} and the "
                f"keys' {tuple(key_grid)}; all three must be equal (one id per token of a sample)."
            )

    def visible(self, i: Tensor, j: Tensor) -> Tensor:
        """May token i see token j of its sequence? i, j: raster positions in the grid."""
        ids = self.ids.flatten()
        return ids[i] == ids[j]

    def sequences(self, layout: Layout) -> Tensor:
        """The ids as the layout arranges them, (sequences of one sample, n)."""
        return layout.split(self.ids[None], self.ids.ndim)

    def pairs_under(self, layout: Layout) -> int:
        """How many pairs are visible in all sequences of one sample."""
        if self.ids.is_meta or isinstance(self.ids, FakeTensor):
            raise ValueError(
                "SameGroup's visible pairs depend on its ids, and these have no content (a meta or "
                "fake tensor); keep ids on a real device, also where q, k and v are on meta."
            )
        ids = self.sequences(layout)
        sequence = torch.arange(len(ids), device=ids.device)[:, None] << 32
        counts = torch.unique(sequence + ids + 2**31, return_counts=True)[1]
        return int(counts.square().sum())

    def pairs(self, n_q: int, n_k: int) -> int:
        """How many pairs are visible where the whole grid is one sequence."""
        self.check(n_q, n_k)
        return int(torch.unique(self.ids, return_counts=True)[1].square().sum())

    def tiles(self, n_q: int, n_k: int, rows: int) -> Iterator[Tile]:
        """All keys for every row: which of them are hidden differs between sequences."""
        for piece in row_slices(n_q, rows):
            yield Tile(piece, slice(0, n_k), whole=False)

    def leaves_empty_rows(self, n_q: int, n_k: int) -> bool:
        return False  # every query sees itself

    def encode(self) -> list[int]:
        return [6]

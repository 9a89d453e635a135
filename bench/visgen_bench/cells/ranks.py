"""Ranks of one cell: meeting, and collecting what each of them measured."""

from typing import TypeVar

from visgen_bench.context import Context

T = TypeVar("T")


class Ranks:
    """The ranks of a context; one rank alone sends nothing and starts no torch.distributed."""

    def __init__(self, context: Context) -> None:
        self.rank = context.rank
        self.size = context.world_size
        if self.size > 1:
            import torch.distributed as dist

            if not dist.is_initialized():
                dist.init_process_group("gloo")

    def leave(self) -> None:
        """Leave the group, after the last meeting."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """True on the rank that writes rows."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def gather(self, value: T) -> list[T]:
        """Every rank's value, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        everyone: list[T | None] = [None] * self.size
        dist.all_gather_object(everyone, value)
        return [value for value in everyone if value is not None]

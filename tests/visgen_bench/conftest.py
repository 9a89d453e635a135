"""A folder of results, a server that forks workers, and a model that dies on command."""

import os
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from visgen_bench.executors.local import LocalExecutor
from visgen_bench.plan import Options, Plan, plan
from visgen_bench.running import Summary, run
from visgen_bench.suite import from_text

# A model in a file of the user's own. What it does at its second batch is in its name; `block`
# waits at a named pipe, so that a test knows when it is in the middle of its work.
FAULTY = """
import os, signal
from dataclasses import dataclass
import torch
from torch import nn
from visgen.seeds import integers

PIPE = {pipe!r}

@dataclass(frozen=True, kw_only=True)
class FaultyConfig:
    fault: str
    family: str = "test"
    task: str = "image-generation"
    image_size: tuple[int, int] = (8, 8)

    def build(self, attention=None):
        return Faulty(self.fault)

class Faulty(nn.Module):
    def __init__(self, fault):
        super().__init__()
        self.fault, self.calls, self.image_size = fault, 0, (8, 8)
        self.generator = nn.Linear(2, 2)

    def networks(self):
        return {{"generator": self.generator}}

    def generate(self, seeds, condition=None, sampling=None):
        self.calls += 1
        if self.calls == 2:
            misbehave(self.fault)
        return integers(seeds, "noise", 0, 256, (3, 8, 8)).to(torch.uint8)

def misbehave(fault):
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "abort":
        os.abort()
    if fault == "exit":
        os._exit(7)
    if fault == "raise":
        raise RuntimeError("the sun was in my eyes")
    if fault == "memory":
        raise MemoryError("not a byte left")
    if fault == "torch-memory":
        torch.empty(1 << 60, dtype=torch.uint8)
    if fault == "block" and os.path.exists(PIPE):
        with open(PIPE, "rb") as pipe:
            pipe.read()

FAULTS = ("none", "kill", "abort", "exit", "raise", "memory", "torch-memory", "block")
PRESETS = {{f"faulty-{{fault}}": FaultyConfig(fault=fault) for fault in FAULTS}}
"""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(scope="session")
def executor() -> Iterator[LocalExecutor]:
    with LocalExecutor(grace_s=5.0) as shared:
        yield shared


class Bench:
    """Runs suites in one folder with the shared server."""

    def __init__(self, folder: Path, executor: LocalExecutor) -> None:
        self.folder = folder
        self.executor = executor
        self.out = folder / "out"
        self.pipe = folder / "pipe"
        self.faulty = folder / "faulty.py"
        self.faulty.write_text(textwrap.dedent(FAULTY.format(pipe=str(self.pipe))))
        self.said: list[str] = []

    def plan(self, text: str, **options: object) -> Plan:
        chosen = {"out": self.out, "include": (self.faulty,), "retries": 0, **options}
        return plan(from_text(text, "test.toml"), Options(**chosen))  # type: ignore[arg-type]

    def run(self, text: str, **options: object) -> Summary:
        return run(self.plan(text, **options), self.said.append, executor=self.executor)

    def faulty_cell(self, fault: str, samples: int = 12, **fields: object) -> str:
        extra = "\n".join(f"{key} = {value}" for key, value in fields.items())
        return (
            f'name = "faults"\n[[cell]]\nkind = "quality"\nmodel = "faulty-{fault}"\n'
            f'weights = "untrained"\ndata = "digits:8"\nsamples = {samples}\nbatch = 4\n'
            f'chunk = 4\nmetrics = ["copy_share"]\n{extra}\n'
        )

    def when_blocked(self, act: Callable[[int], None]) -> threading.Thread:
        """Call `act` with the worker's process id once its model waits at the pipe."""
        os.mkfifo(self.pipe)
        started: list[int] = []
        self.executor._on_start = started.append

        def wait() -> None:
            handle = os.open(self.pipe, os.O_WRONLY)  # returns when the model opens its end
            try:
                act(started[-1])
            finally:
                os.close(handle)

        thread = threading.Thread(target=wait)
        thread.start()
        return thread


@pytest.fixture
def bench(tmp_path: Path, executor: LocalExecutor) -> Iterator[Bench]:
    made = Bench(tmp_path, executor)
    yield made
    executor._on_start = None

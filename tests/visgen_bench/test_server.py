import json
import os
import subprocess
import sys
from typing import Any

SCRIPT = """
import gc, json, os, sys
from visgen_bench.executors import server

server.preload()
import torch

def private_bytes():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return 1024 * sum(int(l.split()[1]) for l in lines if l.startswith("Private_Dirty"))

gc.unfreeze()  # frozen objects are not listed
tensors = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
gc.freeze()
facts = {"threads": server.thread_count(), "tensors": tensors, "enabled": gc.isenabled()}
known = set(sys.modules)
ours, theirs = os.pipe()
if os.fork() == 0:
    gc.collect()
    import visgen_bench.worker
    from visgen_bench.cell import PerformanceCell
    from visgen_bench.cells import performance, quality, train, workload
    from visgen_bench.presets import load_presets
    load_presets(plugins=False)
    new = sorted(set(sys.modules) - known)
    os.write(theirs, json.dumps({"private": private_bytes(), "new": new}).encode())
    os._exit(0)
os.wait()
print(json.dumps(facts | json.loads(os.read(ours, 65536))))
"""


def preloaded() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # as the executor starts the server
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_preloaded_server_forks_workers_that_import_and_copy_almost_nothing() -> None:
    facts = preloaded()
    assert facts["threads"] == 1
    assert facts["tensors"] == 0
    assert facts["enabled"], "workers collect garbage as any process does"
    assert facts["new"] == [], "what every cell imports is there"
    # A collection that looked at the server's objects would copy some 100 MB of pages.
    assert facts["private"] < 40 * 2**20

import json
import os
import socket
import subprocess
import sys

import pytest
import torch

from visgen_bench.measure.environment import (
    commit,
    cpu_model,
    device_name,
    env_id,
    machine_id,
    machine_row,
    numeric_switches,
    usable_cores,
    version,
)


def test_versions_come_from_metadata_and_equal_what_runs():
    assert version("torch") == torch.__version__.split("+")[0]
    assert version("no-such-package") is None
    row = machine_row()
    assert row["torch"] == version("torch")
    assert json.loads(str(row["packages"]))["triton"] == row["triton"]


def test_collecting_facts_imports_nothing_heavy():
    code = (
        "import sys; from visgen_bench.measure.environment import machine_row, commit; "
        "machine_row(); commit(); "
        "heavy = {'torch', 'numpy', 'pandas', 'triton', 'pyarrow'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_hostname_is_written_only_if_asked_for():
    assert machine_row()["hostname"] is None
    assert socket.gethostname() not in str(machine_row())
    assert machine_row(hostname=True)["hostname"] == socket.gethostname()


def test_ids_are_equal_in_another_process():
    code = (
        "from visgen_bench.measure.environment import machine_id, env_id; "
        "print(machine_id(), env_id())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == [machine_id(), env_id()]
    assert len(machine_id()) == len(env_id()) == 32


def test_usable_cores_follow_the_affinity_and_the_id_does_not():
    before = os.sched_getaffinity(0)
    identity = machine_id()
    try:
        os.sched_setaffinity(0, {min(before)})
        assert usable_cores() == 1
        assert machine_id() == identity
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one core")
def test_the_row_says_how_many_cores_the_process_may_use():
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
        "from visgen_bench.measure.environment import machine_row; row = machine_row(); "
        "print(row['cores'], row['machine_id'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["1", machine_id()]


def test_the_device_of_a_cpu_run_is_the_processors_name():
    assert device_name("cpu") == cpu_model()
    assert cpu_model()


def test_switches_record_threads_and_the_three_tf32_settings():
    switches = numeric_switches()
    assert switches["threads"] == torch.get_num_threads()
    assert switches["matmul_allow_tf32"] is torch.backends.cuda.matmul.allow_tf32
    assert switches["cudnn_allow_tf32"] is torch.backends.cudnn.allow_tf32
    assert switches["float32_matmul_precision"] == torch.get_float32_matmul_precision()


def test_the_commit_is_that_of_the_clone_or_there_is_none():
    found = commit()
    if found.sha is None:
        assert found.dirty is None
    else:
        assert len(found.sha) == 40
        assert found.dirty in (True, False)

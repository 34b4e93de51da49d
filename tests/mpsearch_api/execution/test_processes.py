"""Trees of processes: found, stopped and killed whole."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mpsearch_api.execution import processes
from mpsearch_api.execution.limits import Limits, scrubbed

TREE = """
import os, time
for _ in range(2):  # two children, and two of each of them
    for _ in range(2):
        if os.fork() == 0:
            break
    else:
        break
time.sleep(600)
"""

KILLER = """
import os, signal, sys, time
from mpsearch_api.execution.processes import adopt_orphans, descendants, kill_tree
adopt_orphans()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    os._exit(0)
child = os.fork()
if child == 0:
    while True:  # forks as fast as it can, a few at a time
        if os.fork() == 0:
            time.sleep(0.05); os._exit(0)
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            pass
        time.sleep(0.001)
time.sleep(0.5)
print(len(descendants(os.getpid())) >= 2, kill_tree(os.getpid()), descendants(os.getpid()))
"""


@pytest.fixture
def tree():
    process = subprocess.Popen([sys.executable, "-c", TREE])
    yield process
    for pid in [*processes.descendants(process.pid), process.pid]:
        os.kill(pid, 9)
    process.wait()


def _until(ready) -> None:
    deadline = time.monotonic() + 30
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_descendants_are_found_to_any_depth_by_both_ways(tree) -> None:
    _until(lambda: len(processes.descendants(tree.pid)) == 6)
    found = processes.descendants(tree.pid)
    assert sorted(processes._searched(tree.pid)) == sorted(found)
    assert len(processes.descendants(tree.pid, most=2)) < 6


def test_memory_counts_every_process_and_shared_pages_once(tree) -> None:
    _until(lambda: len(processes.descendants(tree.pid)) == 6)
    pids = [tree.pid, *processes.descendants(tree.pid)]
    plain, fair = processes.resident_memory(pids), processes.proportional_memory(pids)
    assert 0 < fair < plain
    assert processes.resident_memory([2**22 + 1]) == 0
    assert processes.proportional_memory([2**22 + 1]) == 0


def test_a_tree_that_forks_and_escapes_is_killed_whole() -> None:
    said = subprocess.run(
        [sys.executable, "-c", KILLER], capture_output=True, text=True, timeout=60, check=True
    )
    assert said.stdout.strip() == "True True []"


def test_a_process_dies_with_its_parent() -> None:
    program = (
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import os, sys, time\\n"
        "from mpsearch_api.execution.processes import die_with_parent\\n"
        "die_with_parent(int(sys.argv[1])); print(os.getpid(), flush=True); time.sleep(600)',"
        " str(os.getpid())])\n"
        "time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, start_new_session=True
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    _until(lambda: not Path(f"/proc/{child}/cwd").exists() or _zombie(child))
    parent.stdout.close()


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_one_whose_parent_is_gone_already_dies_at_once() -> None:
    program = (
        "from mpsearch_api.execution.processes import die_with_parent\ndie_with_parent(2**22 + 1)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9


def test_only_harmless_variables_reach_jobs() -> None:
    environment = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "MPSEARCH_DATABASE_URL": "secret",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "HF_TOKEN": "secret",
        "LD_PRELOAD": "/tmp/x.so",
        "PYTHONPATH": "/tmp",
        "HOME": "/root",
    }
    found = scrubbed(environment)
    assert found["PATH"] == "/bin"
    assert found["LC_ALL"] == "C"
    assert found["HF_HUB_OFFLINE"] == "1"
    assert not {"HOME", "HF_TOKEN", "LD_PRELOAD", "PYTHONPATH"} & set(found)
    assert "secret" not in found.values()
    assert "HF_HUB_OFFLINE" not in scrubbed({}, downloads=True)
    assert scrubbed({})["PATH"]


def test_processor_time_allows_all_threads_the_whole_time() -> None:
    assert Limits(memory=1, seconds=10.0, cpus=4).cpu_seconds == 45

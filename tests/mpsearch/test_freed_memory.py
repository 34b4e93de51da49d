"""malloc keeps freed memory inside the context, gives it back after, and obeys the environment."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from mpsearch.freed_memory import freed_memory_kept

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library's malloc")

SIZE = 96 * 2**20
PAGES = SIZE // os.sysconf("SC_PAGE_SIZE")

ROUNDS = 16

PROGRAM = f"""
import json, resource, torch
from pathlib import Path
from mpsearch.freed_memory import freed_memory_kept

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range({ROUNDS}):
        torch.empty({SIZE}, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

start = resident()
found = dict(before=faults())
with freed_memory_kept():
    with freed_memory_kept():
        found["inside"] = faults()
    found["after the inner one"] = faults()
    found["held"] = resident() - start
found["left"] = resident() - start
print(json.dumps(found))
"""


def counted(**environment: str) -> dict[str, int]:
    """Run the program in a fresh process, as no parameter of malloc can be read back."""
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, int] = json.loads(run.stdout)
    return found


@glibc
def test_freed_memory_serves_again_inside_and_goes_back_to_the_kernel_after() -> None:
    found = counted()
    # Blocks this large come anew from the kernel, every time.
    assert found["before"] >= ROUNDS * PAGES / 2
    # A freed block may be a little too small for the next, a few times.
    assert found["inside"] + found["after the inner one"] <= ROUNDS * PAGES
    assert SIZE <= found["held"] <= ROUNDS * SIZE
    assert found["left"] < SIZE / 4


@glibc
def test_parameters_that_the_environment_sets_are_left_alone() -> None:
    for setting in (
        {"MALLOC_TRIM_THRESHOLD_": "1048576"},
        {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"},
    ):
        assert counted(**setting)["inside"] >= ROUNDS * PAGES / 2


def test_a_failure_inside_passes_through_and_the_next_context_works(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), freed_memory_kept():
        (tmp_path / "nothing").read_text()
    with freed_memory_kept():
        assert not list(tmp_path.iterdir())

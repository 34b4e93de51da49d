"""Folders of dispatchers: locked while they live, swept when they died, caches kept small."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from mpsearch_api.execution.folders import RunFolder, cache_of, dispatchers, prune, sweep


def test_the_folder_of_a_living_dispatcher_is_left_alone(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "alive")
    attempt = folder.attempt("job", 2, new=True)
    folder.tell(None, 1)
    assert sweep(tmp_path) == []
    assert attempt.is_dir()
    (state,) = dispatchers(tmp_path)
    assert (state.name, state.pid, state.executor, state.running) == ("alive", os.getpid(), None, 1)
    folder.close()
    assert dispatchers(tmp_path) == []
    assert list((tmp_path / "run").iterdir()) == []


def test_a_killed_dispatcher_s_folder_is_swept_at_once(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from mpsearch_api.execution.folders import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1]), 'dead'); folder.tell('starting', 0)\n"
        "folder.attempt('job', 1, new=True); print('made', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"made\n"
    assert [state.executor for state in dispatchers(tmp_path)] == ["starting"]
    assert sweep(tmp_path) == []
    process.kill()
    process.wait()
    assert dispatchers(tmp_path) == []
    assert sweep(tmp_path) == ["dead"]
    assert list((tmp_path / "run").iterdir()) == []
    process.stdout.close()


def test_a_folder_that_is_just_being_made_is_not_swept(tmp_path: Path) -> None:
    young = tmp_path / "run" / ".young"
    young.mkdir(parents=True)
    assert sweep(tmp_path) == []
    (young / "lock").touch()
    assert sweep(tmp_path) == []
    old = time.time() - 120
    os.utime(young, (old, old))
    assert sweep(tmp_path) == [".young"]


def test_nothing_was_ever_made(tmp_path: Path) -> None:
    assert sweep(tmp_path) == []
    assert dispatchers(tmp_path) == []
    assert prune(tmp_path, 0) == 0


def test_tenants_share_no_cache_and_names_lead_nowhere(tmp_path: Path) -> None:
    names = ["a", "A", "a/", "../a", "", "a\0"]
    folders = [cache_of(tmp_path, name) for name in names]
    assert len(set(folders)) == len(names)
    assert {folder.parent for folder in folders} == {tmp_path / "cache"}


def test_what_was_used_longest_ago_is_pruned_first(tmp_path: Path) -> None:
    folder = cache_of(tmp_path, "t") / "documents"
    folder.mkdir(parents=True)
    for age, name in enumerate(["new.json", "middle.npz", "old.json"]):
        (folder / name).write_bytes(bytes(100))
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    assert prune(tmp_path, 300) == 0
    assert prune(tmp_path, 150) == 200
    assert [path.name for path in folder.iterdir()] == ["new.json"]


def test_files_of_models_from_a_hub_are_not_pruned_one_by_one(tmp_path: Path) -> None:
    data = tmp_path / "hub" / "data"  # where the service itself lies says nothing
    tenant = cache_of(data, "t")
    for place in ("documents/old.json", "hub/hub/models--a--b/config.json"):
        (tenant / place).parent.mkdir(parents=True)
        (tenant / place).write_bytes(bytes(100))
    assert prune(data, 0) == 100
    assert (tenant / "hub/hub/models--a--b/config.json").exists()

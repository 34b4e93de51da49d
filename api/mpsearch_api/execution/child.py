"""What runs in a job's own process: confine it, run the target, write down how it ended."""

from __future__ import annotations

import faulthandler
import importlib
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from mpsearch.freed_memory import freed_memory_kept
from mpsearch.schemas.document import write_atomically
from mpsearch_api.execution.folders import HUB
from mpsearch_api.execution.limits import Limits, confine
from mpsearch_api.execution.outcome import Made, Outcome, failure_of
from mpsearch_api.execution.port import Assignment
from mpsearch_api.execution.ray.relay import RelayPool
from mpsearch_api.execution.telling import Tell, pack_update
from mpsearch_api.store.port import Update

__all__ = ["LOG", "MADE", "OUTCOME", "Target", "find_function", "run_child"]

LOG = "log.txt"
OUTCOME = "outcome.json"
MADE = "made"

_PIPE = 3
"""Descriptor of the updates in the job's process; those above belong to the job."""

_WORKERS = 4
"""Descriptor of the line to workers on other machines, where there are such."""

Target = Callable[[Assignment, Tell, Executor | None], Sequence[Made]]
"""What a job runs: makes files in the folder `made` of its assignment and reports on the way.

The executor takes parts of the work that can run apart; None: there is none.
"""


def find_function(name: str) -> Any:  # noqa: ANN401
    """Import what a name stands for.

    Args:
        name: `package.module:function`.

    Returns:
        The function.
    """
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def run_child(
    assignment: Assignment,
    limits: Limits,
    updates: int,
    target: Target,
    workers: int | None = None,
) -> int:
    """Run the target and write its outcome into the assignment's folder.

    Args:
        assignment: What to run.
        limits: What it may use.
        updates: File descriptor to write updates to.
        target: What runs.
        workers: File descriptor of a line to workers on other machines, or None.

    Returns:
        Exit code: an outcome was written.
    """
    _settle(assignment.folder, updates, workers)
    faulthandler.enable()
    lock = threading.Lock()

    def tell(update: Update) -> None:
        line = pack_update(update)
        with lock:
            while line:
                line = line[os.write(_PIPE, line) :]

    try:
        confine(limits)
        if not limits.gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        elif limits.devices is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = limits.devices
        if limits.network:
            os.environ["HF_HOME"] = str(assignment.cache / HUB)
        pool = None if workers is None else RelayPool(socket.socket(fileno=_WORKERS))
        with freed_memory_kept():
            outcome = Outcome(made=tuple(target(assignment, tell, pool)))
    except BaseException as error:  # noqa: BLE001 - whatever ends the job is its outcome
        failure = failure_of(error)
        if failure.kind == "internal":
            traceback.print_exc()
        else:
            print(f"{failure.kind}: {failure.message}", file=sys.stderr)  # noqa: T201
        outcome = Outcome(failure=failure)
    sys.stdout.flush()
    sys.stderr.flush()
    # A job that ran out of descriptors still has to say so.
    os.closerange(_PIPE + 1, limits.open_files)
    write_atomically(assignment.folder / OUTCOME, outcome.model_dump_json().encode())
    return 0


def _settle(folder: Path, updates: int, workers: int | None) -> None:
    """Point standard streams, temporary files and home at the job's own folder."""
    for name in ("work", "tmp", "home", MADE):
        (folder / name).mkdir(mode=0o700)
    os.chdir(folder / "work")
    os.environ.update(TMPDIR=str(folder / "tmp"), HOME=str(folder / "home"))
    log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    # Duplicated upwards first, so that no source is overwritten before it is used.
    sources = [os.dup(nothing), os.dup(log), os.dup(log), os.dup(updates)]
    if workers is not None:
        sources.append(os.dup(workers))
    high = [os.dup(source) for source in sources]
    for standard, source in enumerate(high):
        os.dup2(source, standard)
    os.closerange(len(high), os.sysconf("SC_OPEN_MAX"))

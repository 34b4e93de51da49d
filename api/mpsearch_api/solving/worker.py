"""A solving process: `python -m mpsearch_api.solving.worker MEMORY`, tasks on stdin.

It imports no torch, holds no secret, dies with its parent, and is killed by it when time is up.
"""

from __future__ import annotations

import ctypes
import functools
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpsearch.allocating import allocate, frontier, translated
from mpsearch.errors import (
    DependencyError,
    DocumentError,
    InfeasibleError,
    InputError,
    MpsearchError,
)
from mpsearch.hardware.lookup import as_hardware
from mpsearch.schemas import Costs, Profile
from mpsearch_api.faults import TooLargeError
from mpsearch_api.solving.frames import KINDS, pack, read_sync
from mpsearch_api.solving.json_text import parse_json
from mpsearch_solvers import Problem, solve

__all__ = ["main"]

PR_SET_PDEATHSIG = 1


def main(memory: int) -> None:
    """Answer tasks until stdin ends.

    Args:
        memory: Address space allowed, bytes.
    """
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it died before the line above
    # Ctrl-C in a terminal reaches the whole group; the server decides when this process ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb")
    # Solvers may print; only answers belong on the pipe.
    os.dup2(2, 1)
    answers.write(pack({"ready": True}))
    answers.flush()
    while (message := read_sync(sys.stdin.buffer)) is not None:
        answers.write(_answer(*message))
        answers.flush()


def _answer(task: dict[str, Any], body: bytes) -> bytes:
    try:
        return pack({"ok": True}, _TASKS[task["task"]](task, body))
    except InfeasibleError as error:
        return _refusal(error, minimum=error.minimum)
    except MpsearchError as error:
        return _refusal(error)
    except MemoryError:
        return _refusal(TooLargeError("this needs more memory than a solver has; run it as a job"))


def _refusal(error: MpsearchError, **more: Any) -> bytes:
    kind = next(each.__name__ for each in type(error).__mro__ if each.__name__ in KINDS)
    return pack({"ok": False, "kind": kind, "message": str(error), **more})


def _solve(task: dict[str, Any], body: bytes) -> bytes:
    try:
        document = parse_json(body)
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"the problem cannot be read: {error}") from error
    _check_size(document, task["groups"], task["choices"])
    with translated():
        found = solve(
            Problem.from_dict(document),
            method=task["method"],
            gap=task["gap"],
            time_limit=task["time_limit"],
            seed=task["seed"],
        )
    return json.dumps(found.to_dict(), allow_nan=False).encode()


def _check_size(document: object, groups: int, choices: int) -> None:
    if not isinstance(document, dict):
        raise InputError(f"a problem is an object, not a {type(document).__name__}")
    given = document.get("groups")
    if not isinstance(given, list):
        return  # the schema says what is wrong with it
    if len(given) > groups:
        raise TooLargeError(f"{len(given):,} groups; at most {groups:,} are solved here")
    menus = [g.get("options") for g in given if isinstance(g, dict)]
    count = sum(len(menu) for menu in menus if isinstance(menu, list))
    if count > choices:
        raise TooLargeError(f"{count:,} options in all; at most {choices:,} are solved here")


def _allocate(task: dict[str, Any], _: bytes) -> bytes:
    found = allocate(
        _profile(task["profile"]),
        _costs(task["costs"]),
        task["budget"],
        method=task["method"],
        gap=task["gap"],
        time_limit=task["time_limit"],
        seed=task["seed"],
        monotone=task["monotone"],
    )
    return found.model_dump_json().encode()


def _frontier(task: dict[str, Any], _: bytes) -> bytes:
    found = frontier(
        _profile(task["profile"]),
        _costs(task["costs"]),
        task["resource"],
    )
    return found.model_dump_json().encode()


def _hardware(task: dict[str, Any], body: bytes) -> bytes:
    if task["format"] == "json":
        try:
            parse_json(body)
        except (ValueError, RecursionError) as error:
            raise DocumentError(f"the table cannot be read: {error}") from error
    if task["format"] == "yaml":
        _refuse_aliases(body)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"table.{task['format']}"
        path.write_bytes(body)
        try:
            as_hardware(path)
        except InputError as error:
            raise InputError(str(error).replace(str(path), "the table")) from error
        except (UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"the table cannot be read: {error}") from error
    return b""


def _refuse_aliases(body: bytes) -> None:
    """Refuse YAML that repeats parts of itself: a kilobyte can stand for gigabytes then."""
    try:
        import yaml  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise DependencyError("YAML needs PyYAML, which this service lacks; send JSON") from error
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(body)):
            raise InputError("the table uses YAML aliases, which are not taken; write them out")
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"the table is not YAML: {str(error)[:400]}") from error


# The files are named by their content, so what was read stays true.
@functools.lru_cache(maxsize=4)
def _profile(path: str) -> Profile:
    return Profile.load(path)


@functools.lru_cache(maxsize=4)
def _costs(path: str) -> Costs:
    return Costs.load(path)


_TASKS: dict[str, Callable[[dict[str, Any], bytes], bytes]] = {
    "solve": _solve,
    "allocate": _allocate,
    "frontier": _frontier,
    "hardware": _hardware,
}

if __name__ == "__main__":
    main(int(sys.argv[1]))

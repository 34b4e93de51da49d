"""The process that jobs are forked from: torch is imported, nothing else has happened in it.

A fork of it starts a job in hundredths of a second instead of the seconds that importing takes. It
must stay single-threaded and must not touch a GPU, since neither survives a fork.

    python -m mpsearch_api.execution.nursery DESCRIPTOR SETTINGS
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import pickle
import select
import signal
import socket
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from mpsearch_api.execution.child import Target, find_function, run_child
from mpsearch_api.execution.keeper import keep
from mpsearch_api.execution.limits import Limits
from mpsearch_api.execution.port import Assignment
from mpsearch_api.execution.processes import adopt_orphans, die_with_parent

__all__ = ["Order", "main"]

IDLE = 0.5
"""Seconds without an order before another module is imported ahead of time."""

Order = tuple[Assignment, Limits]


def main(arguments: Sequence[str]) -> None:
    """Import what jobs need, then fork one for every order.

    Args:
        arguments: Descriptor of the connection to the dispatcher; JSON with `parent`, `target`,
            `prepare`, `paths`, `preload` and
            `when_idle`.
    """
    descriptor, text = arguments
    settings = json.loads(text)
    die_with_parent(settings["parent"])
    os.setsid()
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:0] = settings["paths"]
    line = socket.socket(fileno=int(descriptor))
    for module in settings["preload"]:
        importlib.import_module(module)
    target = find_function(settings["target"])
    if settings["prepare"]:
        find_function(settings["prepare"])()
    _serve(line, target, list(settings["when_idle"]))


def _serve(line: socket.socket, target: Target, later: list[str]) -> None:
    wake_up, woken = socket.socketpair()
    wake_up.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_up.fileno(), warn_on_full_buffer=False)
    # Pages that the collector does not touch stay shared with the jobs.
    gc.freeze()
    line.sendall(json.dumps({"ready": True, "threads": _threads()}).encode() + b"\n")
    while True:
        ready, _, _ = select.select([line, woken], [], [], IDLE if later else None)
        if woken in ready:
            woken.recv(4096)
            _reap()
        if line in ready and not _take(line, target, (wake_up, woken)):
            return
        if not ready and later:
            with contextlib.suppress(ImportError):
                importlib.import_module(later.pop(0))
            gc.freeze()


def _take(line: socket.socket, target: Target, own: Sequence[socket.socket]) -> bool:
    """Take one order and fork its keeper; False when the dispatcher is gone."""
    # The order itself comes through the job's own connection, whose size is not limited.
    mark, descriptors, _, _ = socket.recv_fds(line, 1, 3)
    if not mark:
        return False
    connection = socket.socket(fileno=descriptors[0])
    workers = descriptors[2] if len(descriptors) == 3 else None
    parent = os.getpid()
    if os.fork() == 0:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for inherited in (line, *own):
                inherited.close()
            assignment, limits = _order(connection)
            keep(
                connection,
                limits,
                parent,
                lambda: run_child(assignment, limits, descriptors[1], target, workers),
            )
        except BaseException:  # noqa: BLE001 - it ends here, and the dispatcher reads why
            traceback.print_exc()
        finally:
            os._exit(1)
    connection.close()
    for descriptor in descriptors[1:]:
        os.close(descriptor)
    return True


def _order(connection: socket.socket) -> Order:
    size = int.from_bytes(_exactly(connection, 4), "big")
    order: Order = pickle.loads(_exactly(connection, size))  # noqa: S301 - our dispatcher's bytes
    return order


def _exactly(connection: socket.socket, size: int) -> bytes:
    """Read so many bytes and no more: what follows is for the keeper."""
    parts = []
    while size:
        part = connection.recv(min(size, 2**16))
        if not part:
            raise EOFError("the dispatcher went away")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


if __name__ == "__main__":
    main(sys.argv[1:])

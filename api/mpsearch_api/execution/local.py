"""The local executor: every job in a child process of its own, on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from mpsearch.errors import DependencyError
from mpsearch_api.execution.ending import ended_of
from mpsearch_api.execution.keeper import Ending
from mpsearch_api.execution.limits import Limits, scrubbed
from mpsearch_api.execution.port import Assignment, Ended, Run
from mpsearch_api.execution.processes import supported
from mpsearch_api.execution.telling import UpdateReader
from mpsearch_api.store.port import Update

__all__ = ["LocalExecutor", "LocalRun", "Program"]

log = structlog.get_logger()

KILL_PATIENCE = 1.5
"""Seconds a keeper gets to end its job before it is killed itself."""

ORDER_PATIENCE = 10.0
"""Seconds in which a nursery has to take an order."""

READS = 16
"""Pipefuls of updates taken at a time."""

RESTART = 5.0
"""Seconds before a nursery that did not get ready is started again."""

OVERTIME = 10.0
"""Seconds after the time limit when a keeper that did not act is taken for dead."""


@dataclass(frozen=True)
class Program:
    """What jobs run, and what is imported before they are forked.

    Attributes:
        target: `package.module:function`, a `child.Target`.
        prepare: `package.module:function` called once before the first job, or None.
        preload: Modules imported before the first job.
        when_idle: Modules imported ahead of time while there is nothing to do; may be missing.
        paths: Folders searched for modules first.
    """

    target: str = "mpsearch_api.execution.runner:run_job"
    prepare: str | None = "mpsearch_api.execution.runner:prepare"
    preload: tuple[str, ...] = (
        "torch",
        "matplotlib.backends.backend_agg",
    )
    when_idle: tuple[str, ...] = ("sklearn.datasets", "torchvision.models")
    paths: tuple[str, ...] = ()


class LocalExecutor:
    """Forks jobs from a nursery, which is started again when it dies."""

    elsewhere = False

    def __init__(
        self,
        limits_of: Callable[[Assignment], Limits],
        program: Program | None = None,
        *,
        downloads: bool = False,
    ) -> None:
        """Start the nursery; it is ready a few seconds later.

        Args:
            limits_of: What an assignment may use.
            program: What jobs run.
            downloads: Whether jobs may fetch models from a hub.

        Raises:
            DependencyError: Not Linux.
        """
        if not supported():
            raise DependencyError("jobs run on Linux only; use mpsearch's library or command line")
        self._limits_of = limits_of
        self._program = program or Program()
        self._downloads = downloads
        self._runs: list[LocalRun] = []
        self._nursery = _Nursery(self._program, downloads=downloads)

    def start(self, assignment: Assignment, workers: socket.socket | None = None) -> Run:
        """Begin an attempt; returns at once.

        Args:
            assignment: What to run.
            workers: The job's end of a line to workers on other machines, see `ray.relay`.

        Returns:
            The run.
        """
        if not self._nursery.alive:
            self._restart()
        limits = self._limits_of(assignment)
        run = LocalRun(assignment, limits, self._nursery.fork, workers)
        self._runs = [each for each in self._runs if not each.over]
        self._runs.append(run)
        return run

    def ready(self) -> str | None:
        """Say what keeps it from running jobs, or None when nothing does."""
        if not self._nursery.alive:
            reason = self._nursery.last_words()
            if time.monotonic() - self._nursery.started > RESTART:
                self._restart()
            return reason
        return None if self._nursery.ready() else "importing what jobs need"

    def close(self) -> None:
        """End everything it started."""
        for run in self._runs:
            run.kill()
        self._nursery.close()

    def _restart(self) -> None:
        log.warning("nursery_died", reason=self._nursery.last_words())
        self._nursery.close()
        self._nursery = _Nursery(self._program, downloads=self._downloads)


class _Nursery:
    """The process that jobs are forked from, as its parent sees it."""

    def __init__(self, program: Program, *, downloads: bool) -> None:
        self._line, theirs = socket.socketpair()
        self._errors_read, errors = os.pipe()
        os.set_blocking(self._errors_read, False)
        settings = {
            "parent": os.getpid(),
            "target": program.target,
            "prepare": program.prepare,
            "paths": list(program.paths),
            "preload": list(program.preload),
            "when_idle": list(program.when_idle),
        }
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [
                    sys.executable,
                    "-m",
                    "mpsearch_api.execution.nursery",
                    str(theirs.fileno()),
                    json.dumps(settings),
                ],
                pass_fds=[theirs.fileno()],
                env=scrubbed(os.environ, downloads=downloads),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        os.close(errors)
        self.started = time.monotonic()
        self._ready = False
        self._words = b""

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def ready(self) -> bool:
        """Whether it has imported everything."""
        self._listen()
        if not self._ready and select.select([self._line], [], [], 0)[0]:
            self._ready = bool(self._line.recv(4096))
        return self._ready

    def fork(self, *descriptors: int) -> None:
        """Have a keeper forked; its order follows on the connection."""
        self._listen()
        with contextlib.suppress(OSError):  # dead: the connection will tell
            socket.send_fds(self._line, [b"f"], descriptors)

    def last_words(self) -> str:
        """Give the end of what it wrote to its standard error."""
        self._listen()
        last = self._words.decode(errors="replace").strip().splitlines()[-1:]
        return f"the process that jobs are forked from ended: {' '.join(last) or 'killed'}"

    def _listen(self) -> None:
        # Read, or a full pipe would stop it.
        with contextlib.suppress(BlockingIOError, OSError):
            while chunk := os.read(self._errors_read, 65536):
                self._words = (self._words + chunk)[-4096:]

    def close(self) -> None:
        """End it, and with it every job that is left."""
        if self._line.fileno() < 0:
            return
        self._line.close()
        self._process.kill()
        self._process.wait()
        os.close(self._errors_read)


class LocalRun:
    """One job under its keeper."""

    def __init__(
        self,
        assignment: Assignment,
        limits: Limits,
        fork: Callable[..., None],
        workers: socket.socket | None = None,
    ) -> None:
        """Begin.

        Args:
            assignment: What to run.
            limits: What it may use.
            fork: Has a keeper forked that takes these descriptors: of the connection, of the pipe
                and, where there is one, of the line to workers.
            workers: The job's end of a line to workers on other machines.
        """
        self.assignment = assignment
        self.limits = limits
        self._line, theirs = socket.socketpair()
        self._updates, writing = os.pipe()
        os.set_blocking(self._updates, False)
        order = pickle.dumps((assignment, limits))
        try:
            fork(theirs.fileno(), writing, *([] if workers is None else [workers.fileno()]))
            self._line.settimeout(ORDER_PATIENCE)
            self._line.sendall(len(order).to_bytes(4, "big") + order)
        except OSError:
            # The nursery is dead or stuck. Half an order is none: its keeper ends when it reads on.
            self._line.shutdown(socket.SHUT_WR)
        finally:
            theirs.close()
            os.close(writing)
        self._line.setblocking(False)
        self._reader = UpdateReader()
        self._heard = b""
        self._keeper: int | None = None  # a descriptor of its process, which no other can take
        self._started = time.monotonic()
        self._ended: Ended | None = None
        self.over = False

    def updates(self) -> list[Update]:
        """Take what it has told since the last call."""
        found: list[Update] = []
        if self.over:
            return found
        with contextlib.suppress(BlockingIOError):
            # Not until it is empty: a job may write faster than this reads.
            for _ in range(READS):
                found += self._reader.read(os.read(self._updates, 65536))
        return found

    def ended(self) -> Ended | None:
        """Tell how it ended, or None while it runs."""
        if self._ended is None and not self.over:
            ending, gone = self._listen()
            if ending is not None or gone:
                self._ended = ended_of(self.assignment, self.limits, ending)
            elif time.monotonic() - self._started > self.limits.seconds + OVERTIME:
                self._end_keeper()
                stuck = Ending(None, "time", 0, time.monotonic() - self._started)
                self._ended = ended_of(self.assignment, self.limits, stuck)
        return self._ended

    def kill(self) -> None:
        """End it and everything it started, within two seconds, and remove its folder."""
        if not self.over:
            if self._ended is None:
                self._end_keeper()
            self.over = True
            self._line.close()
            os.close(self._updates)
            if self._keeper is not None:
                os.close(self._keeper)
                self._keeper = None
        shutil.rmtree(self.assignment.folder, ignore_errors=True)

    def _listen(self) -> tuple[Ending | None, bool]:
        """Hear what the keeper says: how the job ended, and whether the keeper is gone."""
        gone = False
        try:
            while chunk := self._line.recv(4096):
                self._heard += chunk
            gone = True
        except BlockingIOError:
            pass
        except OSError:
            gone = True
        *lines, self._heard = self._heard.split(b"\n")
        ending = None
        for line in lines:
            said = json.loads(line)
            if "keeper" in said:
                with contextlib.suppress(ProcessLookupError):
                    self._keeper = os.pidfd_open(said["keeper"])
            else:
                ending = Ending(**said)
        return ending, gone

    def _end_keeper(self) -> None:
        """Ask the keeper to end the job; where it does not answer in time, kill it too."""
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_WR)
        until = time.monotonic() + KILL_PATIENCE
        while time.monotonic() < until:
            ending, gone = self._listen()
            if ending is not None or gone:
                return
            select.select([self._line], [], [], max(0.0, until - time.monotonic()))
        if self._keeper is not None:
            log.warning("keeper_killed", job=self.assignment.claim.job)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._keeper, signal.SIGKILL)

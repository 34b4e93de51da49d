"""The Ray executor as its dispatcher sees it: orders go to the gateway, ends come from it."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from urllib.parse import quote

import structlog

from mpsearch.schemas.jobs import Failure
from mpsearch_api.execution.assigning import limits_of
from mpsearch_api.execution.limits import scrubbed
from mpsearch_api.execution.local import Program
from mpsearch_api.execution.outcome import LIMIT_EXIT_CODE
from mpsearch_api.execution.port import Assignment, Ended, Run
from mpsearch_api.execution.ray.checking import reachable
from mpsearch_api.execution.ray.frames import FrameReader, framed
from mpsearch_api.execution.ray.orders import Cancel, Order, Over, Start, State, Told
from mpsearch_api.execution.telling import UpdateReader
from mpsearch_api.settings import Settings
from mpsearch_api.store.port import Update

__all__ = ["RayExecutor"]

log = structlog.get_logger()

CONNECTING = "connecting to the Ray cluster"
GATEWAY = "mpsearch_api.execution.ray.gateway"
RESTART = 2.0
"""Seconds before a gateway that ended is started again."""

GLANCE = 0.5
"""Seconds that a look whether the cluster is back may take; the dispatcher waits for it."""

STUCK = 120.0
"""Seconds of silence after which a gateway is taken for dead; connecting may take a minute."""

FAREWELL = 3.0
"""Seconds that running attempts get to end when the executor closes."""

TURN = 0.05
CHUNK = 2**20


class RayExecutor:
    """Runs attempts on a Ray cluster, through a gateway that is started again when it ends."""

    elsewhere = True

    def __init__(self, settings: Settings, program: Program | None = None) -> None:
        """Start the gateway; it is connected some seconds later, if the cluster is there.

        Args:
            settings: Of the service, which `check_ray` has passed.
            program: What jobs run, instead of searches.
        """
        assert settings.ray_address is not None
        self._address = settings.ray_address
        self._settings = settings
        self._program = program or Program()
        self._runs: dict[str, RayRun] = {}
        self._reason: str | None = CONNECTING
        self._gateway = self._new_gateway()

    def start(self, assignment: Assignment) -> Run:
        """Begin an attempt; returns at once.

        Args:
            assignment: What to run.

        Returns:
            The run.
        """
        settings = self._settings
        order = Order(
            assignment,
            limits_of(assignment, settings),
            self._program,
            settings.blob_url or f"file://{quote(str(settings.data_dir / 'blobs'))}",
            settings.ray_shards,
        )
        # Two dispatchers never hold the same attempt, but one may get it again after a while.
        key = f"{assignment.claim.job}-{assignment.claim.attempt}"
        run = self._runs[key] = RayRun(key, assignment, self)
        self._gateway.send(Start(key, order))
        return run

    def ready(self) -> str | None:
        """Say what keeps it from running jobs, or None when nothing does."""
        self.pump()
        return self._reason

    def close(self) -> None:
        """End everything it started."""
        for run in list(self._runs.values()):
            run.kill()
        until = time.monotonic() + FAREWELL
        while self._runs and self._gateway.alive and time.monotonic() < until:
            self.pump()
            time.sleep(TURN)
        self._gateway.close()

    def cancel(self, key: str) -> None:
        """Have an attempt ended.

        Args:
            key: Which.
        """
        if key in self._runs:
            self._gateway.send(Cancel(key))

    def pump(self) -> None:
        """Take in what the gateway has said, and see to it that there is one."""
        for message in self._gateway.heard():
            if isinstance(message, State):
                if message.reason != self._reason:
                    log.info("ray_cluster", reason=message.reason)
                self._reason = message.reason
            elif isinstance(message, Told):
                if message.key in self._runs:
                    self._runs[message.key].take(message.lines)
            elif message.key in self._runs:
                self._runs.pop(message.key).finish(message.ended)
        if self._gateway.alive:
            return
        if self._reason in {None, CONNECTING}:
            self._reason = self._gateway.last_words()
        for run in self._runs.values():
            run.finish(_lost(str(self._reason)))
        self._runs.clear()
        if time.monotonic() - self._tried > RESTART:
            self._restart()

    def _restart(self) -> None:
        # A gateway that finds no cluster is seconds of work for nothing.
        reason = reachable(self._address, GLANCE)
        self._tried = time.monotonic()
        if reason is not None:
            self._reason = reason
            return
        log.warning("ray_gateway_restarted", reason=self._reason)
        self._gateway.close()
        self._gateway = self._new_gateway()

    def _new_gateway(self) -> _Gateway:
        self._tried = time.monotonic()
        return _Gateway(self._address, _environment(os.environ))


class RayRun:
    """One attempt on the cluster."""

    def __init__(self, key: str, assignment: Assignment, executor: RayExecutor) -> None:
        """Stand for an attempt.

        Args:
            key: Its name.
            assignment: What runs.
            executor: Who has it.
        """
        self._key = key
        self._assignment = assignment
        self._executor = executor
        # What arrives is checked as if it came from the job itself, which it did.
        self._reader = UpdateReader()
        self._updates: list[Update] = []
        self._ended: Ended | None = None

    def updates(self) -> list[Update]:
        """Take what it has told since the last call."""
        found, self._updates = self._updates, []
        return found

    def ended(self) -> Ended | None:
        """Tell how it ended, or None while it runs; its node enforces the limits."""
        self._executor.pump()
        return self._ended

    def kill(self) -> None:
        """Have it ended, which takes the cluster a second or two, and remove its folder."""
        if self._ended is None:
            self._executor.cancel(self._key)
        shutil.rmtree(self._assignment.folder, ignore_errors=True)

    def take(self, lines: bytes) -> None:
        """Take updates from the cluster.

        Args:
            lines: Whole ones.
        """
        self._updates += self._reader.read(lines)

    def finish(self, ended: Ended) -> None:
        """Learn how it ended.

        Args:
            ended: How.
        """
        self._ended = ended


class _Gateway:
    """The gateway's process, as its parent sees it."""

    def __init__(self, address: str, environment: Mapping[str, str]) -> None:
        self._line, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                [
                    sys.executable,
                    "-P",
                    "-m",
                    GATEWAY,
                    str(theirs.fileno()),
                    address,
                    str(os.getpid()),
                ],
                pass_fds=[theirs.fileno()],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                # Ctrl-C is for the dispatcher, which then ends its attempts first.
                start_new_session=True,
            )
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        self._words = b""
        self._reader = FrameReader()
        self._heard = time.monotonic()

    @property
    def alive(self) -> bool:
        """Whether it runs, and says something now and then."""
        if time.monotonic() - self._heard > STUCK:
            self._process.kill()
            self._process.wait()
        return self._process.poll() is None

    def send(self, message: Start | Cancel) -> None:
        """Send a message; one to a dead gateway is lost, as are its attempts."""
        with contextlib.suppress(OSError):
            self._line.setblocking(True)
            for piece in framed({}, pickle.dumps(message)):
                self._line.sendall(piece)

    def heard(self) -> list[State | Told | Over]:
        """Take what it has said since the last call."""
        self._listen_to_errors()
        found: list[State | Told | Over] = []
        with contextlib.suppress(BlockingIOError, OSError):
            self._line.setblocking(False)
            while chunk := self._line.recv(CHUNK):
                self._heard = time.monotonic()
                for _, body in self._reader.read(chunk):
                    found.append(pickle.loads(body))  # noqa: S301 - our own gateway's bytes
        return found

    def last_words(self) -> str:
        """Give the end of what it wrote to its standard error."""
        self._listen_to_errors()
        last = self._words.decode(errors="replace").strip().splitlines()[-1:]
        return f"the process that talks to the Ray cluster ended: {' '.join(last) or 'killed'}"

    def close(self) -> None:
        """End it; the cluster then ends whatever tasks it has left."""
        self._line.close()
        try:
            self._process.wait(FAREWELL)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()

    def _listen_to_errors(self) -> None:
        # Read, or a full pipe would stop it.
        assert self._process.stderr is not None
        if self._process.stderr.closed:
            return
        with contextlib.suppress(BlockingIOError, OSError):
            while chunk := os.read(self._process.stderr.fileno(), 65536):
                self._words = (self._words + chunk)[-4096:]


def _environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Give the gateway Ray's variables and the token's place, and none of the service's secrets."""
    kept = {name: value for name, value in ours.items() if name.startswith("RAY_")}
    kept.setdefault("RAY_AUTH_MODE", "token")
    if "HOME" in ours:
        kept["HOME"] = ours["HOME"]
    return scrubbed(ours) | kept


def _lost(reason: str) -> Ended:
    message = f"the connection to the Ray cluster was lost: {reason}"
    failure = Failure(kind="worker_died", message=message, exit_code=LIMIT_EXIT_CODE)
    return Ended(failure=failure, retry=True)

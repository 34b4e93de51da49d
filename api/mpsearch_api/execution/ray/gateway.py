"""The process that talks to the cluster: a Ray driver, which ends when the cluster goes away.

    python -m mpsearch_api.execution.ray.gateway DESCRIPTOR ADDRESS PARENT

Whatever ends it also ends its attempts, which their dispatcher then has tried again.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import (
    GetTimeoutError,
    RayError,
    RayTaskError,
    TaskCancelledError,
)

from mpsearch.schemas.jobs import Failure
from mpsearch_api.execution.outcome import LIMIT_EXIT_CODE
from mpsearch_api.execution.port import Ended
from mpsearch_api.execution.processes import die_with_parent
from mpsearch_api.execution.ray.attempt import needs_of, run_attempt
from mpsearch_api.execution.ray.checking import reachable, token_mode
from mpsearch_api.execution.ray.connecting import connect
from mpsearch_api.execution.ray.delivering import deliver
from mpsearch_api.execution.ray.frames import FrameReader, framed
from mpsearch_api.execution.ray.mailbox import open_mailbox
from mpsearch_api.execution.ray.orders import Cancel, Order, Over, Report, Start, State, Told
from mpsearch_api.execution.telling import pack_update
from mpsearch_api.store.port import Update

__all__ = ["Gateway", "main"]

TURN = 0.05
LOOK = 1.0
"""Seconds between looks whether the cluster is there."""

LOST = 20.0
"""Seconds without the cluster after which its attempts are given up."""

HANGS = 90.0
"""Seconds in which one call of Ray has to come back."""

GRACE = 2.0
"""Seconds that a cancelled attempt gets to end its calls and tidy up."""

AGAIN = 0.5
"""Seconds between attempts to end the process of one that has not ended by then."""

WAITING = 10.0
"""Seconds after which a job is told that the cluster has no room for it."""

CHUNK = 2**20


@dataclass
class _Task:
    """An attempt that the cluster has.

    Attributes:
        order: What it runs.
        ref: Of its report.
        since: When it was handed over.
        begun: Whether it has been heard of.
        warned: Whether its job was told that it waits.
        forced: When its process is ended next; None unless it was cancelled.
    """

    order: Order
    ref: Any
    since: float
    begun: bool = False
    warned: bool = False
    forced: float | None = None


class Gateway:
    """Passes orders to the cluster and what comes of them to the dispatcher."""

    def __init__(self, line: socket.socket, address: str) -> None:
        """Take orders from a line.

        Args:
            line: To the dispatcher.
            address: Of the cluster, which this process is connected to.
        """
        self._line = line
        self._address = address
        self._reader = FrameReader()
        self._tasks: dict[str, _Task] = {}
        self._mailbox = open_mailbox()
        self._letters: Any = None
        self._attempt = ray.remote(run_attempt)
        self._lock = threading.Lock()
        self._turned = time.monotonic()

    def run(self) -> None:
        """Work until the dispatcher hangs up."""
        self._letters = self._mailbox.take.remote()
        self._say(State(None))
        # Calls of Ray may hang for a minute when the cluster goes away.
        threading.Thread(target=self._watch, name="watch", daemon=True).start()
        while self._listen():
            self._fetch_letters()
            self._collect()
            self._enforce()
            self._turned = time.monotonic()

    def _listen(self) -> bool:
        if not select.select([self._line], [], [], TURN)[0]:
            return True
        chunk = self._line.recv(CHUNK)
        for _, body in self._reader.read(chunk):
            self._obey(pickle.loads(body))  # noqa: S301 - our dispatcher's bytes
        return bool(chunk)

    def _obey(self, message: Start | Cancel) -> None:
        if isinstance(message, Start):
            order = message.order
            task = self._attempt.options(
                max_retries=0, name=f"job {order.assignment.claim.job}", **needs_of(order).options()
            )
            ref = task.remote(order, self._mailbox, message.key)
            self._tasks[message.key] = _Task(order, ref, time.monotonic())
            return
        found = self._tasks.get(message.key)
        if found is not None and found.forced is None:
            found.forced = time.monotonic() + GRACE
            # The attempt ends its own calls: one that Ray is asking gently cannot be forced.
            ray.cancel(found.ref, force=False, recursive=False)

    def _fetch_letters(self, timeout: float = 0.0) -> None:
        if not ray.wait([self._letters], timeout=timeout)[0]:
            return
        # An error: it is being started elsewhere.
        with contextlib.suppress(RayError):
            for key, lines in ray.get(self._letters).items():
                task = self._tasks.get(key)
                if task is not None:
                    task.begun = True
                    if lines:
                        self._say(Told(key, lines))
        self._letters = self._mailbox.take.remote()

    def _collect(self) -> None:
        refs = {task.ref: key for key, task in self._tasks.items()}
        if not refs:
            return
        done, _ = ray.wait(list(refs), num_returns=len(refs), timeout=0)
        if done:
            self._fetch_letters(LOOK)  # what was told before the end comes before the end
        for ref in done:
            key = refs[ref]
            task = self._tasks.pop(key)
            report = _report(ref)
            if report.told:
                self._say(Told(key, report.told))
            self._say(Over(key, _delivered(report, task)))

    def _enforce(self) -> None:
        """End what was cancelled and does not end; tell jobs that wait for room."""
        now = time.monotonic()
        for key, task in self._tasks.items():
            if task.forced is not None:
                if now > task.forced:
                    # Again and again: Ray ignores a request while an earlier one is on its way.
                    task.forced = now + AGAIN
                    ray.cancel(task.ref, force=True, recursive=True)
            elif not task.begun and not task.warned and now - task.since > WAITING:
                task.warned = True
                said = Update("message", "load", message=_why_waiting(task.order))
                self._say(Told(key, pack_update(said)))

    def _watch(self) -> None:
        """Tell every second whether the cluster is there; end this process when it stays away."""
        seen = time.monotonic()
        while True:
            time.sleep(LOOK)
            reason = reachable(self._address)
            now = time.monotonic()
            if reason is None:
                seen = now
            if now - self._turned > HANGS:
                reason = f"the Ray cluster at {self._address} does not answer"
            try:
                self._say(State(reason))
            except OSError:
                os._exit(1)  # the dispatcher is gone
            if max(now - seen - LOST, now - self._turned - HANGS) > 0:
                os._exit(1)

    def _say(self, message: State | Told | Over) -> None:
        with self._lock:
            for piece in framed({}, pickle.dumps(message)):
                self._line.sendall(piece)


def _report(ref: Any) -> Report:  # noqa: ANN401 - an ObjectRef
    try:
        report: Report = ray.get(ref, timeout=60.0)
    except TaskCancelledError:
        return _died("the job was cancelled in the cluster")
    except RayTaskError as error:
        said = f"the node cannot run this job: {_last_line(error)}"
        return Report(failure=Failure(kind="dependency", message=said, exit_code=LIMIT_EXIT_CODE))
    except (RayError, GetTimeoutError) as error:
        return _died(f"the job's node or worker died: {type(error).__name__}")
    return report


def _died(message: str) -> Report:
    failure = Failure(kind="worker_died", message=message, exit_code=LIMIT_EXIT_CODE)
    return Report(failure=failure, retry=True)


def _delivered(report: Report, task: _Task) -> Ended:
    try:
        produced = deliver(report.files, task.order.assignment.folder)
    except OSError as error:
        if task.forced is not None:  # its folder is gone already, and nobody wants the files
            return Ended(failure=report.failure, retry=report.retry)
        said = f"results could not be written on the dispatcher's machine: {error.strerror}"
        return Ended(failure=_died(said).failure, retry=True)
    return Ended(produced, report.failure, report.retry)


def _why_waiting(order: Order) -> str:
    needs = needs_of(order)
    gpus = f", {needs.gpus} GPUs" if needs.gpus else ""
    asked = f"{needs.cpus} CPUs{gpus} and {needs.memory / 2**30:.1f} GiB of memory"
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    for node in nodes:
        has = node["Resources"]
        if (
            node["Alive"]
            and has.get("CPU", 0) >= needs.cpus
            and has.get("GPU", 0) >= needs.gpus
            and has.get("memory", 0) >= needs.memory
        ):
            return f"waiting for the cluster: {asked} are in use"
    return f"waiting for the cluster: no node of it has {asked}; it starts when one joins"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__


def main(arguments: Sequence[str]) -> None:
    """Connect to the cluster and work until the dispatcher hangs up.

    Args:
        arguments: Descriptor of the connection to the dispatcher, address of the cluster, process
            id of the dispatcher.
    """
    descriptor, address, parent = arguments
    die_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    line = socket.socket(fileno=int(descriptor))
    try:
        connect(address, authenticated=token_mode(os.environ))
        Gateway(line, address).run()
    except (ConnectionError, RayError, RuntimeError) as error:
        with contextlib.suppress(OSError):
            for piece in framed({}, pickle.dumps(State(str(error)))):
                line.sendall(piece)
        # Ray's own farewells to a cluster that is gone would take minutes.
        os._exit(1)
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])

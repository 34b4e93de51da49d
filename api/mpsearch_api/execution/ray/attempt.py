"""An attempt on its node: a Ray task that runs the job as the local executor does, and relays."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Self

import ray

from mpsearch.errors import DependencyError
from mpsearch.schemas.jobs import Failure
from mpsearch_api.execution.limits import Limits
from mpsearch_api.execution.local import LocalExecutor
from mpsearch_api.execution.outcome import LIMIT_EXIT_CODE, failure_of
from mpsearch_api.execution.port import Assignment, Ended, Run
from mpsearch_api.execution.ray.flights import Flights, Needs
from mpsearch_api.execution.ray.node import placed
from mpsearch_api.execution.ray.orders import File, Order, Report
from mpsearch_api.execution.ray.relaying import Relay
from mpsearch_api.execution.telling import pack_update
from mpsearch_api.faults import UnavailableError
from mpsearch_api.store.port import Update

__all__ = ["needs_of", "run_attempt"]

TURN = 0.05
"""Seconds between looks at the job, and so most of what a cancellation waits for."""

PATIENCE = 120.0
"""Seconds that a node may take to import what jobs need."""

LAST_WORD = 2.0
"""Seconds that the mailbox may take for the last lines."""


def needs_of(order: Order) -> Needs:
    """Say what an attempt, and each of its parts, takes of a node.

    Args:
        order: The attempt.

    Returns:
        What its request asked for.
    """
    asked = order.assignment.claim.request.execution
    return Needs(asked.cpus, asked.gpus, order.limits.memory)


def run_attempt(order: Order, mailbox: Any, key: str) -> Report:  # noqa: ANN401 - an actor's handle
    """Run an attempt on this node; the body of a Ray task.

    Args:
        order: What to run.
        mailbox: Takes updates.
        key: Name of the attempt there.

    Returns:
        How it ended. Being cancelled (KeyboardInterrupt) ends the job and its calls at once.
    """
    # How Ray cancels; where it was started in the background of a shell, SIGINT is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    post = _Post(mailbox, key)
    post.tell([])  # so that the gateway knows that it has begun
    try:
        _check_version(order)
        with placed(order) as assignment:
            report = _run(assignment, order, post)
            return replace(report, told=post.close())
    except UnavailableError as error:  # the blob store may be back for another attempt
        failure = Failure(kind="worker_died", message=str(error), exit_code=LIMIT_EXIT_CODE)
        return Report(failure=failure, retry=True, told=post.close())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the failure's reason
        return Report(failure=failure_of(error), told=post.close())


def _check_version(order: Order) -> None:
    ours = version("mpsearch")
    if ours != order.version:
        raise DependencyError(
            f"the node {socket.gethostname()} has mpsearch {ours}, the dispatcher {order.version}; "
            "install the same version everywhere"
        )


def _run(assignment: Assignment, order: Order, post: _Post) -> Report:
    limits = _with_devices(order.limits)
    downloads = assignment.downloads and not assignment.trusted
    with ExitStack() as stack:
        cancellation = stack.enter_context(_Cancellation())
        executor = LocalExecutor(lambda _: limits, order.program, downloads=downloads)
        stack.callback(executor.close)
        _wait_ready(executor, cancellation)
        if limits.isolated:
            # What is cut off from the network must not reach it through the workers of a cluster.
            run, relay = executor.start(assignment), None
        else:
            ours, theirs = socket.socketpair()
            flights = Flights(needs_of(order), order.shards, f"shard of {assignment.claim.job}")
            relay = Relay(ours, flights)
            stack.callback(relay.close)
            with theirs:
                run = executor.start(assignment, theirs)
        # Its files are read before its end removes them.
        return _report(_look_after(run, relay, post, cancellation))


def _look_after(run: Run, relay: Relay | None, post: _Post, cancellation: _Cancellation) -> Ended:
    while True:
        cancellation.check()
        ended = run.ended()
        # Only now, since nothing comes after its last word.
        post.tell(run.updates())
        if ended is not None:
            return ended
        if relay is None:
            time.sleep(TURN)
            continue
        if not relay.busy:
            _wait_for(relay)
        relay.step(TURN)


def _wait_for(relay: Relay) -> None:
    if relay.fileno() < 0:
        time.sleep(TURN)
    else:
        select.select([relay], [], [], TURN)


def _wait_ready(executor: LocalExecutor, cancellation: _Cancellation) -> None:
    until = time.monotonic() + PATIENCE
    while (reason := executor.ready()) is not None:
        cancellation.check()
        if time.monotonic() > until:
            raise DependencyError(f"the node {socket.gethostname()} cannot run jobs: {reason}")
        time.sleep(TURN)


def _with_devices(limits: Limits) -> Limits:
    """Pass on which devices Ray has given to this task; the job's surroundings are scrubbed."""
    return (
        replace(limits, devices=os.environ.get("CUDA_VISIBLE_DEVICES")) if limits.gpus else limits
    )


def _report(ended: Ended) -> Report:
    files = {each.name: File(each.media_type, each.path.read_bytes()) for each in ended.produced}
    return Report(files, ended.failure, ended.retry)


class _Cancellation:
    """Takes note of SIGINT, so that no call is cut off between its start and being known of.

    Nor is what tidies up afterwards; one that comes when the job has ended changes nothing.
    """

    def __init__(self) -> None:
        self._asked = False

    def __enter__(self) -> Self:
        signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if there was one."""
        if self._asked:
            raise KeyboardInterrupt

    def _note(self, *_: object) -> None:
        self._asked = True


class _Post:
    """Sends updates to the mailbox, one letter at a time, and waits for none."""

    def __init__(self, mailbox: Any, key: str) -> None:  # noqa: ANN401
        self._mailbox = mailbox
        self._key = key
        self._unsent: list[bytes] = []
        self._letter: Any = None
        self._begun = False

    def tell(self, updates: list[Update]) -> None:
        """Send updates, or keep them until the last letter has arrived."""
        self._unsent += map(pack_update, updates)
        if (self._unsent or not self._begun) and self._arrived(0.0):
            self._letter = self._mailbox.tell.remote(self._key, b"".join(self._unsent))
            self._unsent = []
            self._begun = True

    def close(self) -> bytes:
        """Wait for the last letter for a while, and give back what is left to tell."""
        self._arrived(LAST_WORD)
        return b"".join(self._unsent)

    def _arrived(self, timeout: float) -> bool:
        if self._letter is None:
            return True
        if not ray.wait([self._letter], timeout=timeout)[0]:
            return False
        self._letter = None
        return True

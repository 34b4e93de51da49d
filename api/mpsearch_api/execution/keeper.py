"""The process beside every job: starts it apart, watches its limits, leaves nothing of it behind.

```text
dispatcher -- nursery (torch imported, one thread) -- keeper -- init -- job -- whatever it starts
                                                                 '--- process-id namespace ----'
```

The keeper adopts orphans and kills by tree where namespaces are refused. Each process dies with its
parent (`PR_SET_PDEATHSIG`), and the keeper also when its connection to the dispatcher closes.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal, NoReturn

from mpsearch_api.execution.limits import Limits
from mpsearch_api.execution.processes import (
    adopt_orphans,
    descendants,
    die_with_parent,
    kill_tree,
    mount_own_proc,
    proportional_memory,
    resident_memory,
    separate_processes,
    separate_world,
)

__all__ = ["Ending", "keep"]

TICK = 0.05
"""Seconds between looks at the limits: how far a job can overshoot."""

PATIENCE = 2.0
"""Seconds to wait for a fair measure of memory."""

_REFUSED = 0x7FFF_FFFF
Broken = Literal["memory", "time", "processes", "network", "killed"]


@dataclass(frozen=True)
class Ending:
    """How a job's process ended, as its keeper tells the dispatcher.

    Attributes:
        status: Exit code, or minus the signal that ended it; None if that is not known.
        broken: The limit it broke, `network` if it needed to be cut off and could not be, or
            `killed` when that was asked for.
        starved: Whether the kernel killed processes for want of memory meanwhile.
        memory: Most resident memory seen, bytes.
        seconds: Wall time.
    """

    status: int | None
    broken: Broken | None
    memory: int
    seconds: float
    starved: bool = False

    def packed(self) -> bytes:
        """Write it as one line of JSON."""
        return json.dumps(asdict(self)).encode() + b"\n"


def keep(line: socket.socket, limits: Limits, parent: int, work: Callable[[], int]) -> NoReturn:
    """Run a job under its limits and report how it ended; never returns.

    Args:
        line: Connection to the dispatcher. Closed or written to by it: end the job.
        limits: What the job may use.
        parent: Process id of the nursery.
        work: The job; runs in a process of its own and gives its exit code.
    """
    die_with_parent(parent)
    os.setsid()
    adopt_orphans()
    line.sendall(json.dumps({"keeper": os.getpid()}).encode() + b"\n")
    apart = separate_processes()
    die_with_parent(parent)  # a new user namespace forgets it
    reading, writing = os.pipe()
    keeper = os.getpid()
    first = os.fork()
    if first == 0:
        os.close(reading)
        line.close()
        _begin(limits, keeper, writing, work, apart=apart)
    os.close(writing)
    ending = _Watch(line, limits, first, reading).until_ended()
    if apart:
        with contextlib.suppress(ProcessLookupError):
            os.kill(first, signal.SIGKILL)  # and with it the whole namespace
    kill_tree(keeper)
    with contextlib.suppress(OSError):  # nobody may be listening any more
        line.sendall(ending.packed())
    os._exit(0)


def _begin(
    limits: Limits, keeper: int, report: int, work: Callable[[], int], *, apart: bool
) -> NoReturn:
    """Be the job's first process: start the job, reap what it leaves, report its status."""
    die_with_parent(0 if apart else keeper)
    adopt_orphans()  # so that the watch, which starts from here, sees them
    cut_off = not limits.network
    alone = separate_world(network=cut_off)
    if limits.isolated and not (alone and cut_off):
        os.write(report, struct.pack("i", _REFUSED))
        os._exit(1)
    if alone and apart:
        mount_own_proc()
    me = os.getpid()
    job = os.fork()
    if job == 0:
        os.close(report)
        die_with_parent(me)
        os._exit(work())
    while True:
        pid, status = os.wait()
        if pid == job:
            os.write(report, struct.pack("i", os.waitstatus_to_exitcode(status)))
            os._exit(0)


class _Watch:
    """Looks after one job until it ends or breaks a limit."""

    def __init__(self, line: socket.socket, limits: Limits, first: int, report: int) -> None:
        self._line = line
        self._limits = limits
        self._first = first
        self._report = report
        self._started = time.monotonic()
        self._memory = 0
        self._kills = _kills_for_memory()
        self._scale = _Scale()

    def until_ended(self) -> Ending:
        """Wait for the end of the job, or for a reason to end it."""
        poll = select.poll()
        poll.register(self._report, select.POLLIN)
        poll.register(self._line, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll(TICK * 1000):
                if descriptor == self._report:
                    return self._reported()
                return self._ending(None, "killed")
            broken = self._broken()
            if broken is not None:
                return self._ending(None, broken)

    def _reported(self) -> Ending:
        packed = os.read(self._report, 4)
        if len(packed) < 4:  # the first process died without a word
            return self._ending(-signal.SIGKILL, None)
        (status,) = struct.unpack("i", packed)
        return self._ending(None, "network") if status == _REFUSED else self._ending(status, None)

    def _ending(self, status: int | None, broken: Broken | None) -> Ending:
        starved = _kills_for_memory() > self._kills
        seconds = time.monotonic() - self._started
        return Ending(status, broken, self._memory, seconds, starved)

    def _broken(self) -> Broken | None:
        if time.monotonic() - self._started > self._limits.seconds:
            return "time"
        pids = [self._first, *descendants(self._first, most=self._limits.processes)]
        if len(pids) > self._limits.processes:
            return "processes"
        memory = self._scale.weigh(pids, self._limits.memory)
        self._memory = max(self._memory, memory)
        return "memory" if memory > self._limits.memory else None


class _Scale:
    """Weighs processes: plainly as long as that is below the limit, else fairly.

    What the nursery imported is shared by all jobs, so that only a proportional sum is fair. It is
    slow, and waits for locks that a job which forks in a loop hardly ever lets go: a process of its
    own does it (no thread starts any more once a process-id namespace is set for children).
    """

    def __init__(self) -> None:
        self._measuring: tuple[int, int] | None = None  # process id, and the pipe it answers on
        self._asked: float | None = None

    def weigh(self, pids: list[int], limit: int) -> int:
        """Weigh processes.

        Args:
            pids: Process ids.
            limit: Bytes.

        Returns:
            Bytes; the plain sum also where the fair one does not come in time.
        """
        plain = resident_memory(pids)
        if plain <= limit:
            if self._measuring is None:
                self._asked = None
            return plain
        if self._asked is None:
            self._asked = time.monotonic()
        late = time.monotonic() - self._asked > PATIENCE
        if self._measuring is None:
            try:
                self._measuring = self._begin(pids)
            except OSError:
                # As when the job ended this moment, and with it the namespace of new processes.
                return plain if late else limit
        pid, reading = self._measuring
        answered = bool(select.select([reading], [], [], TICK)[0])
        if not answered and not late:
            return limit
        packed = os.read(reading, 8) if answered else b""
        self._measuring = None
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)
        if packed:
            self._asked = None
            return int.from_bytes(packed, "little")
        # Not in time; or whoever measured was killed, as when the job ended meanwhile.
        return plain if late else limit

    def _begin(self, pids: list[int]) -> tuple[int, int]:
        reading, writing = os.pipe()
        try:
            pid = os.fork()
        except OSError:
            os.close(reading)
            os.close(writing)
            raise
        if pid:
            os.close(writing)
            return pid, reading
        try:
            os.write(writing, proportional_memory(pids).to_bytes(8, "little"))
        finally:
            os._exit(0)


def _kills_for_memory() -> int:
    """Count the processes that the kernel has killed for want of memory since it started."""
    with contextlib.suppress(OSError), open("/proc/vmstat", "rb") as file:  # noqa: PTH123
        for line in file:
            if line.startswith(b"oom_kill "):
                return int(line.split()[1])
    return 0

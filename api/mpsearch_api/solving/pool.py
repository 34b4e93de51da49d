"""Processes that solve: queued fairly, killed when their time is up, replaced, recycled."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mpsearch import errors
from mpsearch.errors import MpsearchError
from mpsearch_api import faults
from mpsearch_api.faults import ServiceError
from mpsearch_api.solving.frames import KINDS, pack, read_async

__all__ = ["BusyError", "SolvePool", "SolveTimeoutError", "WorkerDiedError"]

TASKS_PER_WORKER = 500
START_SECONDS = 60.0
MOST_WAITING = 64
MOST_OF_ONE = 16
MIB = 2**20
_PASSED_ON = ("PATH", "LANG", "LC_ALL", "PYTHONPATH", "VIRTUAL_ENV", "TMPDIR", "TZ", "HOME")
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class BusyError(ServiceError):
    """Too many problems are waiting for a solver."""

    status = 503
    title = "Busy"


class SolveTimeoutError(ServiceError):
    """The hard time limit ran out; the solver was ended."""

    status = 504
    title = "Not solved in time"


class WorkerDiedError(ServiceError):
    """The solving process died under this problem."""

    status = 503
    title = "The solver died"


@dataclass(eq=False)
class _Worker:
    process: asyncio.subprocess.Process
    tasks: int = 0

    async def ask(self, task: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(pack(task, body))
        await self.process.stdin.drain()
        self.tasks += 1
        return await read_async(self.process.stdout)

    async def end(self) -> None:
        with suppress(ProcessLookupError):
            self.process.kill()
        await self.process.wait()


class SolvePool:
    """Some solving processes, started on entering and ended on leaving the context.

    A task gets a process for itself. When its seconds are over, or it is cancelled, the process is
    killed, since nothing else is sure to stop a solver; another one takes its place. Of those who
    wait, tenants take turns.
    """

    def __init__(
        self, processes: int, *, seconds: float, memory: int = 2048 * MIB, niceness: int = 0
    ) -> None:
        """Keep the limits.

        Args:
            processes: Tasks run at once.
            seconds: Hard limit of a task.
            memory: Address space of a process, bytes.
            niceness: Of the processes.
        """
        self.seconds = seconds
        self._count = processes
        self._memory = memory
        self._niceness = niceness
        self._idle: list[_Worker] = []
        # Tenants in the order of their turns, each with the tasks that wait, oldest first.
        self._waiting: OrderedDict[str, deque[asyncio.Future[_Worker]]] = OrderedDict()
        self._alive: set[_Worker] = set()
        self._starting: set[asyncio.Task[None]] = set()
        self._closed = False

    async def __aenter__(self) -> SolvePool:
        """Begin to start the processes; tasks wait until one is there."""
        for _ in range(self._count):
            self._start_one()
        return self

    async def __aexit__(self, *_: object) -> None:
        """End all processes."""
        self._closed = True
        for task in list(self._starting):
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        await asyncio.gather(*(worker.end() for worker in list(self._alive)))
        self._alive.clear()

    @property
    def processes(self) -> list[int]:
        """Ids of the processes that are alive."""
        return sorted(worker.process.pid for worker in self._alive)

    async def run(self, task: dict[str, Any], body: bytes = b"", *, tenant: str = "") -> bytes:
        """Have a task done.

        Args:
            task: As the worker knows it.
            body: What goes with it.
            tenant: For whom.

        Returns:
            The answer.

        Raises:
            BusyError: Too many are waiting, or the wait was longer than a task may take.
            SolveTimeoutError: The time limit ran out.
            WorkerDiedError: The process died.
            refusal: What the task itself raised.
        """
        worker = await self._next(tenant)
        kept = False
        try:
            async with asyncio.timeout(self.seconds):
                answer, content = await worker.ask(task, body)
            kept = True
        except TimeoutError:
            raise SolveTimeoutError(
                f"not answered within {self.seconds:g} s; allow a larger gap, give a time_limit "
                "below that, or solve it on a machine of your own with `mpsearch solve`"
            ) from None
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            code = await worker.process.wait()
            raise WorkerDiedError(
                f"the solving process ended with code {code} under this problem, out of memory "
                "perhaps; another one has taken its place"
            ) from error
        finally:
            if kept and worker.tasks < TASKS_PER_WORKER:
                self._offer(worker)
            else:
                await self._replace(worker)
        if not answer["ok"]:
            refusal = _error(answer)
            raise refusal
        return content

    async def _next(self, tenant: str) -> _Worker:
        if self._idle:
            return self._idle.pop()
        waiting = sum(map(len, self._waiting.values()))
        of_one = len(self._waiting.get(tenant, ()))
        if waiting >= MOST_WAITING or of_one >= MOST_OF_ONE:
            raise BusyError(
                f"{waiting} problems are waiting for a solver, {of_one} of them yours; try again"
            )
        place: asyncio.Future[_Worker] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(place)
        try:
            async with asyncio.timeout(max(self.seconds, START_SECONDS)):
                return await self._given(place)
        except TimeoutError:
            raise BusyError("every solver is at work; try again") from None
        finally:
            self._leave(tenant, place)

    async def _given(self, place: asyncio.Future[_Worker]) -> _Worker:
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self._offer(place.result())  # it came the moment that nobody wanted it any more
            raise

    def _leave(self, tenant: str, place: asyncio.Future[_Worker]) -> None:
        queue = self._waiting.get(tenant, deque())
        if place in queue:
            queue.remove(place)
        if not queue:
            self._waiting.pop(tenant, None)

    def _offer(self, worker: _Worker) -> None:
        """Give a worker to the oldest task of the tenant whose turn it is, or let it wait."""
        for tenant, queue in list(self._waiting.items()):
            self._waiting.move_to_end(tenant)
            while queue:
                place = queue.popleft()
                if not place.done():
                    place.set_result(worker)
                    return
        self._idle.append(worker)

    async def _replace(self, worker: _Worker) -> None:
        self._alive.discard(worker)
        if not self._closed:
            self._start_one()
        # Shielded: a caller that has gone must not leave the process behind.
        await asyncio.shield(worker.end())

    def _start_one(self) -> None:
        task = asyncio.create_task(self._start())
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _start(self) -> None:
        pause = 0.1
        while not self._closed:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "mpsearch_api.solving.worker",
                str(self._memory),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=_environment(),
            )
            worker = _Worker(process)
            self._alive.add(worker)
            assert process.stdout is not None
            try:
                async with asyncio.timeout(START_SECONDS):
                    await read_async(process.stdout)
            except (asyncio.IncompleteReadError, TimeoutError):
                self._alive.discard(worker)
                await worker.end()
                await asyncio.sleep(pause)
                pause = min(pause * 2, 10.0)
                continue
            if self._niceness:
                os.setpriority(os.PRIO_PROCESS, process.pid, self._niceness)
            self._offer(worker)
            return


def _environment() -> dict[str, str]:
    """Give a solver nothing that is secret, and one thread."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return passed | dict.fromkeys(_ONE_THREAD, "1")


def _error(answer: dict[str, Any]) -> MpsearchError:
    kind, message = answer["kind"], answer["message"]
    assert kind in KINDS
    if kind == "InfeasibleError":
        return errors.InfeasibleError(message, answer.get("minimum"))
    made: type[MpsearchError] = getattr(faults, kind, None) or getattr(errors, kind)
    return made(message)

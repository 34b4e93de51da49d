"""The line between a job and its attempt, with workers that are threads of this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor, as_completed, wait

import pytest

from mpsearch_api.execution.ray.packing import LARGE, run_packed
from mpsearch_api.execution.ray.pool import WorkersLostError
from mpsearch_api.execution.ray.relay import RelayPool

pytest.importorskip("ray", reason="Ray is not installed: pip install 'mpsearch[ray]'")

from mpsearch_api.execution.ray.flights import Landed
from mpsearch_api.execution.ray.relaying import Relay


class ThreadFlights:
    """Flights whose workers are threads; keeps account of parcels."""

    def __init__(self, workers: int = 2) -> None:
        self.kept: dict[str, bytes] = {}
        self.ever_kept: list[str] = []
        self.withdrawn: list[int] = []
        self._workers = workers
        self._threads = ThreadPoolExecutor(max(1, workers))
        self._running: dict = {}

    @property
    def busy(self) -> bool:
        return bool(self._running)

    def keep(self, key: str, content: bytes) -> None:
        self.kept[key] = content
        self.ever_kept.append(key)

    def drop(self, key: str) -> None:
        del self.kept[key]

    def begin(self, number: int, body: bytes, keys) -> None:
        parcels = {key: self.kept[key] for key in keys}
        task = self._threads.submit(run_packed, body, parcels) if self._workers else Future()
        self._running[task] = number

    def newest(self) -> int:
        return max(self._running.values())

    def withdraw(self, number: int) -> None:
        self.withdrawn.append(number)
        self._running = {task: each for task, each in self._running.items() if each != number}

    def collect(self, timeout: float) -> list[Landed]:
        done, _ = wait(self._running, timeout, return_when="FIRST_COMPLETED")
        return [self._landed(self._running.pop(task), task.result()) for task in done]

    def _landed(self, number: int, outcome: bytes) -> Landed:
        if b"lose me" in outcome:
            return Landed(number, lost="its worker died")
        if b"starve me" in outcome:
            return Landed(number, starved="its node ran out of memory")
        return Landed(number, outcome)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


class Line:
    """Both ends, the attempt's in a thread."""

    def __init__(self, workers: int = 2, stall: float = 60.0) -> None:
        ours, theirs = socket.socketpair()
        self.flights = ThreadFlights(workers)
        self.relay = Relay(ours, self.flights, stall)
        self.pool = RelayPool(theirs)
        self.theirs = theirs
        self.stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self.stopped.is_set():
            self.relay.step(0.01)
            time.sleep(0.001)
        self.relay.close()

    def close(self) -> None:
        self.stopped.set()
        self._thread.join()


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line()
    yield line
    line.close()


def triple(value):
    return 3 * value


def measure(content: bytes, number: int) -> int:
    return len(content) + number


def test_answers_find_their_calls(line: Line) -> None:
    futures = {line.pool.submit(triple, number): number for number in range(200)}
    for future in as_completed(futures, timeout=60):
        assert future.result() == 3 * futures[future]


def test_a_long_argument_crosses_the_line_once(line: Line) -> None:
    content = bytes(50 * LARGE) + b"end"
    futures = [line.pool.submit(measure, content, number) for number in range(20)]
    assert [each.result(60) for each in futures] == [len(content) + n for n in range(20)]
    assert len(line.flights.ever_kept) == 1


def test_parcels_are_dropped_when_newer_ones_are_used(line: Line) -> None:
    for letter in (b"a", b"b", b"c"):
        assert line.pool.submit(measure, letter * LARGE, 1).result(60) == LARGE + 1
    deadline = time.monotonic() + 60
    while len(line.flights.kept) > 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert len(line.flights.ever_kept) == 3


def test_long_answers_come_back_while_long_arguments_go_out(line: Line) -> None:
    futures = [line.pool.submit(triple, bytes([n]) * 3_000_000) for n in range(20)]
    for number, future in enumerate(futures):
        assert future.result(60) == bytes([number]) * 9_000_000


def test_an_error_is_raised_where_it_was_asked(line: Line) -> None:
    with pytest.raises(TypeError):
        line.pool.submit(triple).result(60)


def test_a_cancelled_call_is_withdrawn_and_its_waiters_wake(line: Line) -> None:
    future = line.pool.submit(time.sleep, 1.0)
    assert future.cancel()
    assert future in wait([future], 60).done
    with pytest.raises(CancelledError):
        future.result(0)
    assert line.pool.submit(triple, 1).result(60) == 3
    assert line.flights.withdrawn == [0]


def test_a_call_whose_workers_die_says_so_and_others_go_on(line: Line) -> None:
    lost = line.pool.submit(triple, "lose me")
    with pytest.raises(WorkersLostError, match="its worker died") as caught:
        lost.result(60)
    assert caught.value.exit_code == 4
    with pytest.raises(MemoryError, match="ran out of memory"):
        line.pool.submit(triple, "starve me").result(60)
    assert line.pool.submit(triple, 1).result(60) == 3


def test_when_the_attempt_is_gone_calls_fail_instead_of_hanging(line: Line) -> None:
    waiting = line.pool.submit(time.sleep, 0.5)
    line.stopped.set()
    with pytest.raises(WorkersLostError, match="line to the workers"):
        waiting.result(60)
    with pytest.raises(WorkersLostError, match="line to the workers"):
        line.pool.submit(triple, 1)


def test_after_shutdown_no_call_is_taken_and_the_rest_is_cancelled(line: Line) -> None:
    futures = [line.pool.submit(time.sleep, 0.3) for _ in range(5)]
    line.pool.shutdown(wait=True, cancel_futures=True)
    assert all(each.cancelled() for each in futures)
    with pytest.raises(RuntimeError, match="shutdown"):
        line.pool.submit(triple, 1)


def test_shutdown_waits_for_calls_that_are_not_cancelled(line: Line) -> None:
    futures = [line.pool.submit(triple, number) for number in range(5)]
    line.pool.shutdown(wait=True)
    assert [each.result(0) for each in futures] == [0, 3, 6, 9, 12]


def test_when_the_job_hangs_up_the_attempt_goes_on(line: Line) -> None:
    assert line.pool.submit(triple, 2).result(60) == 6
    line.theirs.shutdown(socket.SHUT_RDWR)
    deadline = time.monotonic() + 60
    while line.relay.fileno() >= 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not line.relay.busy


def test_calls_that_the_cluster_never_gets_to_are_made_by_the_job_itself() -> None:
    # As when jobs hold all the memory or all the GPUs that their calls wait for.
    line = Line(workers=0, stall=0.05)
    try:
        futures = [line.pool.submit(triple, number) for number in range(20)]
        assert [each.result(60) for each in futures] == [3 * number for number in range(20)]
        with pytest.raises(TypeError):
            line.pool.submit(triple).result(60)
        deadline = time.monotonic() + 60
        while line.relay.busy:  # what was made here is withdrawn there
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        line.close()


def test_a_call_that_is_made_in_both_places_is_answered_once() -> None:
    line = Line(workers=1, stall=0.05)
    try:
        futures = [line.pool.submit(slow, number) for number in range(5)]
        assert [each.result(60) for each in futures] == [0, 3, 6, 9, 12]
        assert line.pool.submit(triple, 5).result(60) == 15
    finally:
        line.close()


def slow(value):
    time.sleep(0.3)
    return 3 * value

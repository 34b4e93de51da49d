"""The attempt's end of the line from its job: passes calls on to the cluster, outcomes back."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import deque

from mpsearch_api.execution.ray.flights import Flights, Landed
from mpsearch_api.execution.ray.frames import FrameReader, Header, framed

__all__ = ["Relay"]

CHUNK = 2**20
STALLED = 5.0
"""Seconds that the rest of a message may take; its sender does nothing else meanwhile."""


STALL = 30.0
"""Seconds without an outcome after which the job is asked to make calls itself, one by one.

A job keeps the memory and the GPUs it asked for while its calls wait for as much; when jobs hold
them all, none would ever end. Where calls just take long this makes one of them twice, the newest,
which has begun last or not at all, and the first outcome counts: both are equal.
"""


class Relay:
    """Passes on what one job asks for; never waits for the job to listen."""

    def __init__(self, line: socket.socket, flights: Flights, stall: float = STALL) -> None:
        """Serve a line.

        Args:
            line: The attempt's end.
            flights: Where calls run.
            stall: Seconds without an outcome after which the job makes calls itself.
        """
        self._stall = stall
        self._quiet_since: float | None = None
        self._here: int | None = None
        self._line = line
        self._line.setblocking(False)
        self._flights = flights
        self._reader = FrameReader()
        self._outgoing: deque[memoryview] = deque()
        self._open = True

    @property
    def busy(self) -> bool:
        """Whether calls are under way."""
        return self._flights.busy

    def step(self, timeout: float) -> None:
        """Take what the job sent, collect outcomes, send what it can take.

        Args:
            timeout: Seconds to wait for outcomes, if calls are under way.
        """
        self._listen()
        if self._flights.busy:
            # Ray lends the processors of a task out while it waits for others.
            for landed in self._flights.collect(timeout):
                self._quiet_since = time.monotonic()
                self._answer(landed)
        self._ask_for_a_hand()
        self._write()

    def fileno(self) -> int:
        """Give the descriptor, for `select`; -1 once the job has closed its end."""
        return self._line.fileno() if self._open else -1

    def _ask_for_a_hand(self) -> None:
        if not self._flights.busy:
            self._quiet_since = self._here = None
            return
        now = time.monotonic()
        self._quiet_since = self._quiet_since or now
        if self._here is None and now - self._quiet_since > self._stall:
            self._here = self._flights.newest()
            self._send({"here": self._here})

    def _answer(self, landed: Landed) -> None:
        if landed.number == self._here:
            self._here = None
        header: Header = {"call": landed.number}
        if landed.lost:
            header["lost"] = landed.lost
        if landed.starved:
            header["starved"] = landed.starved
        self._send(header, landed.outcome)

    def _send(self, header: Header, body: bytes = b"") -> None:
        self._outgoing += [memoryview(piece) for piece in framed(header, body) if piece]

    def _listen(self) -> None:
        while self._open:
            try:
                chunk = self._line.recv(CHUNK)
            except BlockingIOError:
                # A long message comes in many pieces; waiting for tasks in between would take ages.
                if self._reader.midway and select.select([self._line], [], [], STALLED)[0]:
                    continue
                return
            except OSError:
                chunk = b""
            if not chunk:
                self._open = False
                return
            for header, body in self._reader.read(chunk):
                self._take(header, body)

    def _take(self, header: Header, body: bytes) -> None:
        if "keep" in header:
            self._flights.keep(header["keep"], body)
        elif "drop" in header:
            self._flights.drop(header["drop"])
        elif "call" in header:
            self._flights.begin(header["call"], body, header["keys"])
        elif "withdraw" in header:
            self._flights.withdraw(header["withdraw"])
            if header["withdraw"] == self._here:
                self._here = None

    def _write(self) -> None:
        while self._open and self._outgoing:
            try:
                sent = self._line.send(self._outgoing[0])
            except BlockingIOError:
                return
            except OSError:
                self._open = False
                return
            rest = self._outgoing[0][sent:]
            if rest:
                self._outgoing[0] = rest
            else:
                self._outgoing.popleft()

    def close(self) -> None:
        """End every call and the line."""
        self._flights.close()
        with contextlib.suppress(OSError):
            self._line.close()

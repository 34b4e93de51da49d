"""The job's end of the line to its attempt: an executor for a process that knows no Ray."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable
from queue import SimpleQueue

from mpsearch_api.execution.ray.frames import FrameReader, framed
from mpsearch_api.execution.ray.packing import Packed
from mpsearch_api.execution.ray.pool import PackedPool, WorkersLostError

__all__ = ["RelayPool"]

CHUNK = 2**20


class RelayPool(PackedPool):
    """Sends calls through a socket; see `relaying.Relay` for the other end."""

    def __init__(self, line: socket.socket) -> None:
        """Listen for outcomes.

        Args:
            line: The job's end of the line.
        """
        super().__init__()
        self._line = line
        self._here: SimpleQueue[int] = SimpleQueue()
        threading.Thread(target=self._lend_a_hand, name="calls", daemon=True).start()
        threading.Thread(target=self._listen, name="outcomes", daemon=True).start()

    def _lend_a_hand(self) -> None:
        """Make the calls here that the cluster does not get to; see `relaying.STALL`."""
        while True:
            self._run_here(self._here.get())

    def _listen(self) -> None:
        reader = FrameReader()
        try:
            while chunk := self._line.recv(CHUNK):
                for header, body in reader.read(chunk):
                    if "here" in header:
                        self._here.put(header["here"])
                    elif "lost" in header:
                        self._settle(header["call"], WorkersLostError(header["lost"]))
                    elif "starved" in header:
                        self._settle(header["call"], MemoryError(header["starved"]))
                    else:
                        self._settle(header["call"], body)
        except (OSError, ValueError) as error:
            self._break(WorkersLostError(f"the line to the workers broke: {error}"))
        else:
            self._break(WorkersLostError("the line to the workers was closed"))

    def _send(self, number: int, packed: Packed) -> None:
        for key, content in packed.new.items():
            self._write({"keep": key}, content)
        self._write({"call": number, "keys": packed.keys}, packed.body)

    def _drop(self, keys: Iterable[str]) -> None:
        # If the line is broken, whoever listens to it says so.
        with contextlib.suppress(WorkersLostError):
            for key in keys:
                self._write({"drop": key})

    def _withdraw(self, number: int) -> None:
        with contextlib.suppress(WorkersLostError):
            self._write({"withdraw": number})

    def _write(self, header: dict[str, object], body: bytes = b"") -> None:
        try:
            for piece in framed(header, body):
                self._line.sendall(piece)
        except OSError as error:
            raise WorkersLostError(f"the line to the workers broke: {error}") from error

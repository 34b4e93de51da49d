"""Counting what an ONNX file holds before any library parses it.

Reads the wire format of protocol buffers (https://protobuf.dev/programming-guides/encoding) over
the fields of onnx.proto that can nest or carry data; nothing is built from them. A parser would
take tens of bytes of memory for two bytes of an empty message, and follow external data to any
file.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

from mpsearch.errors import ModelError

__all__ = ["OnnxCounts", "OnnxLimits", "scan_onnx"]


@dataclass(frozen=True)
class OnnxLimits:
    """What a file may hold.

    Attributes:
        file_bytes: Largest file; protocol buffers end at 2 GiB.
        nodes: Most operations.
        initializers: Most stored tensors.
        fields: Most fields of all messages that are looked into.
        structure_bytes: Most bytes that are not values of tensors.
        depth: How deep graphs may nest in attributes of nodes.
    """

    file_bytes: int = 2**31 - 1
    nodes: int = 20_000
    initializers: int = 20_000
    fields: int = 200_000
    structure_bytes: int = 8 * 2**20
    depth: int = 4


DEFAULT_ONNX_LIMITS = OnnxLimits()


@dataclass
class OnnxCounts:
    """What a scan counted, with the meaning of `OnnxLimits`."""

    nodes: int = 0
    initializers: int = 0
    fields: int = 0
    structure_bytes: int = 0
    has_graph: bool = False
    has_functions: bool = False


# Message -> field number -> message that the field holds (onnx.proto3 of ONNX 1.15).
_MESSAGES: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
# Values as they lie in memory: packed floats and doubles, and raw bytes. Packed integers are
# unpacked to up to eight times their bytes, so they count as structure.
_BULK = {4, 9, 10}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14


class _Refused(Exception):  # noqa: N818 - never leaves this module
    """Why a file is refused."""


def scan_onnx(path: Path, limits: OnnxLimits = DEFAULT_ONNX_LIMITS) -> OnnxCounts:
    """Count what an ONNX file holds.

    Args:
        path: The file.
        limits: What it may hold.

    Returns:
        The counts.

    Raises:
        ModelError: Missing, broken, beyond a limit, or with data in other files.
    """
    try:
        if not path.is_file():
            raise ModelError(f"no ONNX file at {path}")
        size = path.stat().st_size
        if not 0 < size <= limits.file_bytes:
            raise ModelError(
                f"{path} has {size:,} bytes; from 1 to {limits.file_bytes:,} are accepted"
            )
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            scan = _Scan(data, limits)
            scan.message("model", 0, size, 0)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except _Refused as refused:
        raise ModelError(f"{path} is not an ONNX file that can be used: {refused}") from None
    if not scan.counts.has_graph:
        raise ModelError(f"{path} is not an ONNX file that can be used: it holds no graph")
    return scan.counts


class _Scan:
    def __init__(self, data: mmap.mmap, limits: OnnxLimits) -> None:
        self._data = data
        self._limits = limits
        self.counts = OnnxCounts()

    def message(self, kind: str, position: int, end: int, depth: int) -> None:
        """Go through the fields of one message."""
        self._enter(kind, depth)
        inner = _MESSAGES[kind]
        while position < end:
            self.counts.fields += 1
            if self.counts.fields > self._limits.fields:
                raise _Refused(f"it has more than {self._limits.fields:,} fields")
            start = position
            key, position = self._varint(position, end)
            number, wire = key >> 3, key & 7
            if number == 0:
                raise _Refused(f"it is broken at byte {start}")
            if wire != 2:
                position = self._scalar(kind, number, wire, position, end)
                self._structure(position - start)
                continue
            length, position = self._varint(position, end)
            if length > end - position:
                raise _Refused(f"it ends within a field at byte {start}")
            if kind == "tensor" and number == _EXTERNAL_DATA:
                raise _Refused(
                    "it keeps data in other files, which could be any file of this machine; save "
                    "it with all data inside (onnx.save, save_as_external_data=False)"
                )
            if number in inner:
                held = inner[number]
                self._structure(position - start)
                deeper = depth + (held == "graph" and kind == "attribute")
                self.message(held, position, position + length, deeper)
            elif not (kind == "tensor" and number in _BULK):
                self._structure(position + length - start)
            position += length

    def _enter(self, kind: str, depth: int) -> None:
        counts, limits = self.counts, self._limits
        counts.nodes += kind == "node"
        counts.initializers += kind == "tensor"
        counts.has_graph |= kind == "graph"
        counts.has_functions |= kind == "function"
        if counts.nodes > limits.nodes:
            raise _Refused(f"it has more than {limits.nodes:,} nodes")
        if counts.initializers > limits.initializers:
            raise _Refused(f"it has more than {limits.initializers:,} tensors")
        if depth > limits.depth:
            raise _Refused(f"its graphs are nested more than {limits.depth} deep")

    def _structure(self, length: int) -> None:
        self.counts.structure_bytes += length
        if self.counts.structure_bytes > self._limits.structure_bytes:
            raise _Refused(
                f"it has more than {self._limits.structure_bytes:,} bytes beside tensor values"
            )

    def _scalar(self, kind: str, number: int, wire: int, position: int, end: int) -> int:
        if wire == 0:
            value, position = self._varint(position, end)
            if kind == "tensor" and number == _DATA_LOCATION and value != 0:
                raise _Refused("it keeps data in other files, which could be any of this machine")
            return position
        if wire not in {1, 5}:
            raise _Refused(f"it is broken at byte {position}")
        position += 8 if wire == 1 else 4
        if position > end:
            raise _Refused("it ends within a field")
        return position

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        if position < end and self._data[position] < 0x80:
            return self._data[position], position + 1  # most are this short
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                raise _Refused("it ends within a field")
            byte = self._data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise _Refused(f"it is broken at byte {position}")

"""Checking the header of a safetensors file before anything else reads the file.

The format (https://github.com/huggingface/safetensors, "Format"): 8 bytes of header length, little
endian; a JSON object of name -> dtype, shape and byte range; then the bytes of all tensors without
holes. Nothing here allocates more than a small multiple of `Limits.header_bytes`.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from mpsearch.errors import ModelError

__all__ = ["Header", "Limits", "TensorEntry", "read_header"]

# Bits of one element, as the reference implementation has them.
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
_FIELDS = {"dtype", "shape", "data_offsets"}
MAX_DIMENSIONS = 64
"""More than this, torch has no tensors of."""


@dataclass(frozen=True)
class Limits:
    """What a header may cost to read.

    Attributes:
        header_bytes: Longest header; the headers of the largest published files have some 100 kB.
        tensors: Most tensors in one file.
        file_bytes: Largest file; None for any.
    """

    header_bytes: int = 8 * 2**20
    tensors: int = 50_000
    file_bytes: int | None = None


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True)
class TensorEntry:
    """One tensor as the header declares it.

    Attributes:
        dtype: Name of the element type, such as `F32`.
        shape: Shape.
        begin: First byte, counted from the end of the header.
        end: Byte after the last.
    """

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A header that passed every check.

    Attributes:
        tensors: Name -> declaration, in the order of the file's header.
        metadata: The free text that the file carries.
    """

    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


class _Refused(Exception):  # noqa: N818 - never leaves this module
    """Why a header is refused."""


def read_header(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> Header:
    """Read and check the header of a safetensors file; no tensor is read.

    Args:
        path: The file.
        limits: What it may cost.

    Returns:
        The header: every name once, known types, byte ranges that agree with the shapes, do not
        overlap, leave no hole and end where the file ends.

    Raises:
        ModelError: Anything else; names the file and the fault.
    """
    path = Path(path)
    try:
        size = _size_of(path)
        with path.open("rb") as file:
            return _checked(_header_text(file.read(8), file, size, limits), size, limits)
    except FileNotFoundError as error:
        raise ModelError(f"no weights file at {path}") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    except _Refused as refused:
        raise ModelError(f"{path} is not a safetensors file that can be used: {refused}") from None


def _size_of(path: Path) -> int:
    if path.exists() and not path.is_file():
        # A pipe or device would block, or never end.
        raise _Refused("it is no regular file")
    return path.stat().st_size


def _header_text(length_bytes: bytes, file: Any, size: int, limits: Limits) -> bytes:  # noqa: ANN401
    if limits.file_bytes is not None and size > limits.file_bytes:
        raise _Refused(f"it has {size:,} bytes, more than the {limits.file_bytes:,} allowed")
    if len(length_bytes) < 8:
        raise _Refused(f"it has {size} bytes; the length of the header alone takes 8")
    (length,) = struct.unpack("<Q", length_bytes)
    if length > limits.header_bytes:
        raise _Refused(
            f"its header claims {length:,} bytes, more than the {limits.header_bytes:,} allowed"
        )
    if length > size - 8:
        raise _Refused(f"its header claims {length:,} bytes, the file has {size - 8:,} left")
    text: bytes = file.read(length)
    if not text.startswith(b"{"):
        raise _Refused("its header does not start with '{'")
    # Counted before parsing: a parsed value takes tens of times the bytes it is written in.
    punctuation = text.count(b",") + text.count(b":") + text.count(b"[") + text.count(b"{")
    if punctuation > 16 * limits.tensors:
        raise _Refused(f"its header has too many values for {limits.tensors:,} tensors")
    return text


def _checked(text: bytes, size: int, limits: Limits) -> Header:
    parsed = _parse(text)
    if not isinstance(parsed, dict):
        raise _Refused("its header is no JSON object")
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise _Refused("its __metadata__ is not text by name")
    if len(parsed) > limits.tensors:
        raise _Refused(f"it has {len(parsed):,} tensors, more than the {limits.tensors:,} allowed")
    tensors = {name: _entry(name, value) for name, value in parsed.items()}
    _check_ranges(tensors, size - 8 - len(text))
    return Header(tensors, metadata)


def _parse(text: bytes) -> object:
    try:
        return json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_float=_no_number,
            parse_constant=_no_number,
        )
    except UnicodeDecodeError as error:
        raise _Refused(f"its header is not UTF-8 at byte {error.start}") from None
    except RecursionError:
        raise _Refused("its header is nested too deeply") from None
    except ValueError as error:  # malformed, or an integer of thousands of digits
        raise _Refused(f"its header is no JSON: {str(error)[:120]}") from None


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Refused(f"its header has {_shown(key)} twice")
        found[key] = value
    return found


def _no_number(text: str) -> NoReturn:
    raise _Refused(f"its header holds {_shown(text)}, which is no whole number")


def _entry(name: str, value: object) -> TensorEntry:
    label = f"tensor {_shown(name)}"
    if not isinstance(value, dict) or set(value) != _FIELDS:
        raise _Refused(f"{label} is not declared by exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise _Refused(f"{label} has the unknown type {_shown(dtype)}")
    if not _whole_numbers(shape) or len(shape) > MAX_DIMENSIONS:
        raise _Refused(f"{label} has no shape of at most {MAX_DIMENSIONS} whole numbers")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _Refused(f"{label} has no byte range")
    bits, stored = math.prod(shape) * _BITS[dtype], 8 * (offsets[1] - offsets[0])
    if bits != stored:
        raise _Refused(
            f"{label} of shape {_shown(shape)} and type {dtype} does not fill its byte range "
            f"of {stored // 8} bytes"
        )
    return TensorEntry(dtype, tuple(shape), *offsets)


def _whole_numbers(value: object) -> bool:
    """Say whether this is a list of integers that fit a signed 64-bit integer; true is none."""
    return isinstance(value, list) and all(
        type(each) is int and 0 <= each < 2**63 for each in value
    )


def _check_ranges(tensors: dict[str, TensorEntry], size: int) -> None:
    reached, last = 0, "the start"
    ordered = sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end))
    for name, entry in ordered:
        if entry.begin < reached:
            raise _Refused(f"tensors {_shown(last)} and {_shown(name)} overlap")
        if entry.begin > reached:
            raise _Refused(f"no tensor has the bytes from {reached} to {entry.begin}")
        reached, last = entry.end, name
    if reached != size:
        raise _Refused(
            f"its tensors take {reached:,} bytes, the file has {size:,} after the header"
        )


def _shown(value: object) -> str:
    """Show a value of a stranger's file: escaped and short."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"

"""What is uploaded: files and bytes, read in parts; and which arguments name something local."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mpsearch.errors import DataError, InputError

__all__ = [
    "BytesSource",
    "FileSource",
    "Local",
    "Source",
    "as_source",
    "data_source",
    "local_data",
    "local_hardware",
    "local_model",
    "sha256_of",
]

Bytes = bytes | bytearray | memoryview

_BLOCK = 2**20
_DATA_TYPES = frozenset({".npz", ".safetensors"})
_MODEL_TYPES = frozenset({".onnx", ".pt2"})
_TABLE_TYPES = frozenset({".json", ".yaml", ".yml", ".csv"})


class Source(Protocol):
    """Bytes with a name and a size."""

    @property
    def name(self) -> str:
        """File name, whose suffix says what it is."""
        ...

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    def read(self, offset: int, length: int) -> bytes:
        """Read a part.

        Args:
            offset: First byte.
            length: How many; the part ends at the end of the source.

        Returns:
            The bytes.
        """
        ...


@dataclass(frozen=True)
class BytesSource:
    """Bytes in memory.

    Attributes:
        name: File name to give them.
        content: The bytes.
    """

    name: str
    content: bytes

    @property
    def size(self) -> int:
        """Bytes in all."""
        return len(self.content)

    def read(self, offset: int, length: int) -> bytes:
        """Read a part; see `Source.read`."""
        return self.content[offset : offset + length]


@dataclass(frozen=True)
class FileSource:
    """A file, whose size and time of change must stay what they were at the start.

    Attributes:
        path: The file.
        size: Bytes in all.
        changed: Time of its last change, nanoseconds.
    """

    path: Path
    size: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> FileSource:
        """Look at a file.

        Args:
            path: The file.

        Returns:
            The source.

        Raises:
            InputError: There is none, or it is a folder.
        """
        try:
            found = path.expanduser().stat()
        except OSError as error:
            raise InputError(f"cannot upload {path}: {error.strerror}") from error
        if not path.expanduser().is_file():
            raise InputError(f"cannot upload {path}: it is no file; pack a folder's data as .npz")
        return cls(path.expanduser(), found.st_size, found.st_mtime_ns)

    @property
    def name(self) -> str:
        """File name without its folders."""
        return self.path.name

    def read(self, offset: int, length: int) -> bytes:
        """Read a part.

        Args:
            offset: First byte.
            length: How many.

        Returns:
            The bytes.

        Raises:
            InputError: The file has changed since the start, or cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                part = file.read(length)
            found = self.path.stat()
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from error
        if (found.st_size, found.st_mtime_ns) != (self.size, self.changed):
            raise InputError(f"{self.path} changed while it was being uploaded; upload it again")
        return part


def sha256_of(source: Source) -> str:
    """Hash a source.

    Args:
        source: The bytes.

    Returns:
        SHA-256 in hex.
    """
    digest = hashlib.sha256()
    for offset in range(0, source.size, _BLOCK):
        digest.update(source.read(offset, _BLOCK))
    return digest.hexdigest()


def as_source(given: str | Path | Bytes, name: str | None) -> Source:
    """Make a source of what a caller may give.

    Args:
        given: A path, or the bytes themselves.
        name: File name to give bytes; must be given with them.

    Returns:
        The source.

    Raises:
        InputError: Nothing is there, or bytes came without a name.
    """
    if isinstance(given, Bytes):
        if not name:
            raise InputError("bytes need a name whose suffix says what they are: name='net.onnx'")
        source: Source = BytesSource(name, bytes(given))
    else:
        source = FileSource.of(Path(given))
    if source.size == 0:
        raise InputError(f"{source.name} is empty")
    return source


def data_source(given: object, name: str | None) -> Source:
    """Make a source of data: a path, the bytes of a file, or arrays.

    Args:
        given: A path; bytes; `inputs`; `(inputs, targets)`; or name -> array. Arrays are anything
            that numpy reads, CPU tensors included. Names are those of data files: `inputs`,
            `targets`, `held_out_inputs`, `held_out_targets`.
        name: File name to give bytes and arrays.

    Returns:
        The source; arrays as an uncompressed `.npz`.
    """
    if isinstance(given, str | Path | Bytes):
        return as_source(given, name)
    return BytesSource(name or "data.npz", _npz(_named_arrays(given)))


def _named_arrays(given: object) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return {str(name): array for name, array in given.items()}
    if isinstance(given, tuple | list) and len(given) == 2:
        return {"inputs": given[0], "targets": given[1]}
    return {"inputs": given}


def _npz(arrays: Mapping[str, Any]) -> bytes:
    import numpy as np

    found = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in found.items():
        if array.dtype.kind not in "fiub" or array.size == 0:
            raise DataError(
                f"{name} is of shape {array.shape} and type {array.dtype}; give arrays of numbers: "
                "inputs, (inputs, targets), or a mapping of names to arrays"
            )
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, **found)
    return file.getvalue()


@dataclass(frozen=True)
class Local:
    """Something of the caller's that must be uploaded before a job can use it.

    Attributes:
        source: Its bytes.
        architecture: For weights: what they belong to.
    """

    source: Source
    architecture: str | None = None


def local_model(given: str | Path) -> Local | None:
    """Tell whether a model argument names a file here.

    Args:
        given: A path, or a spec such as `torchvision:resnet18@weights.safetensors`.

    Returns:
        What to upload; None when the text is for the service to understand.

    Raises:
        InputError: A file of weights without its architecture, or a file that is not there.
    """
    text = str(given)
    architecture, at, weights = text.rpartition("@")
    suffix = Path(text).suffix.lower()
    if at and architecture and suffix == ".safetensors":
        return Local(as_source(Path(weights), None), architecture)
    if suffix == ".safetensors":
        raise InputError(
            f"{text}: weights need their architecture: ARCHITECTURE@{Path(text).name}, such as "
            f"torchvision:resnet18@{Path(text).name}"
        )
    if isinstance(given, Path) or suffix in _MODEL_TYPES:
        return Local(as_source(Path(text), None))
    return None


def local_data(given: object) -> Source | None:
    """Tell whether a data argument is a file here, or arrays.

    Args:
        given: A path, a spec, bytes or arrays.

    Returns:
        What to upload; None when the text is for the service to understand.

    Raises:
        InputError: A file with settings after `?`, which uploads do not take.
    """
    if not isinstance(given, str):
        return data_source(given, None)
    path, question, _ = given.partition("?")
    if Path(path).suffix.lower() not in _DATA_TYPES:
        return None
    if question and not Path(given).exists():
        raise InputError(f"{given}: settings after ? are not taken with an uploaded file")
    return data_source(given, None)


def local_hardware(given: str | Path) -> Source | None:
    """Tell whether a hardware argument names a file here.

    Args:
        given: A path, the name of a device, or the id of an uploaded table.

    Returns:
        What to upload; None when the text is for the service to understand.
    """
    if isinstance(given, Path) or Path(given).suffix.lower() in _TABLE_TYPES:
        return as_source(Path(given), None)
    return None

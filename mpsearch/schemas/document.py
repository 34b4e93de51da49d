"""What saved documents have in common: a version, strict fields, atomic saving, clear errors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from mpsearch.errors import DocumentError

__all__ = ["Document", "Record", "write_atomically"]


class Record(BaseModel):
    """Part of a document: immutable, no unknown fields, numpy arrays allowed."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False
    )


class Document(Record):
    """A record that is saved as one JSON file."""

    version: int = 1

    def save(self, path: str | Path) -> Path:
        """Write the document as JSON, all or nothing.

        Args:
            path: Where to write; missing folders are made.

        Returns:
            The path written.
        """
        return write_atomically(path, self.model_dump_json(indent=1).encode() + b"\n")

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a document back.

        Args:
            path: A file that `save` wrote.

        Returns:
            The document.

        Raises:
            DocumentError: The file is missing, truncated, or does not fit the schema; the message
                says where.
        """
        try:
            text = Path(path).read_bytes()
        except OSError as error:
            raise DocumentError(f"cannot read {path}: {error.strerror}") from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str | bytes, where: str) -> Self:
        """Validate JSON text.

        Args:
            text: The JSON.
            where: What to call it in an error, usually a file name.

        Returns:
            The document.

        Raises:
            DocumentError: The text is not JSON, or does not fit the schema.
        """
        kind = cls.__name__.lower()
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise DocumentError(f"{where} is not a valid {kind}: {_first_faults(error)}") from error


def _first_faults(error: ValidationError, shown: int = 4) -> str:
    faults: list[Any] = error.errors(include_url=False, include_context=False)
    parts = []
    for fault in faults[:shown]:
        place = ".".join(str(step) for step in fault["loc"])
        parts.append(f"{place}: {fault['msg']}" if place else str(fault["msg"]))
    more = len(faults) - shown
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def write_atomically(path: str | Path, content: bytes) -> Path:
    """Write a file so that a reader sees the old content or the new, never a part.

    Args:
        path: Where to write; missing folders are made.
        content: The bytes.

    Returns:
        The path written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    return target

"""Reading a small JSON file of a stranger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpsearch.errors import InputError

__all__ = ["read_json", "read_json_object"]

MAX_BYTES = 8 * 2**20


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:  # noqa: ANN401
    """Read a JSON value.

    Args:
        path: The file.
        max_bytes: Largest file that is read.

    Returns:
        The value.

    Raises:
        InputError: No such file, too large, or not JSON.
    """
    try:
        if not path.is_file():
            raise InputError(f"no file {path}")
        size = path.stat().st_size
        if size > max_bytes:
            raise InputError(f"{path} has {size:,} bytes, more than the {max_bytes:,} allowed")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON that can be read: {str(error)[:200]}") from error


def read_json_object(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        max_bytes: Largest file that is read.

    Returns:
        The object.

    Raises:
        InputError: No such file, too large, or not a JSON object.
    """
    found = read_json(path, max_bytes)
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, not a JSON object")
    return found

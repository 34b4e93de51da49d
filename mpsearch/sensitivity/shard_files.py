"""Finished shards of measurements on disk."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.schemas.document import write_atomically

__all__ = ["Arrays", "read_shard", "write_shard"]

Arrays = Mapping[str, NDArray[Any]]
"""What a shard gave: arrays by name."""


def write_shard(file: Path, found: Arrays) -> None:
    """Write a shard, whole or not at all.

    Args:
        file: Where to; a `.npz` file.
        found: What was measured.
    """
    packed = io.BytesIO()
    # numpy's stub takes any name for its own flag.
    np.savez(packed, **found)  # type: ignore[arg-type]
    write_atomically(file, packed.getvalue())


def read_shard(file: Path) -> Arrays | None:
    """Read a shard; the archive's checksums show whether it is what was written.

    Args:
        file: As in `write_shard`.

    Returns:
        What was measured, or None where there is no such file; also None, with a warning, where it
        cannot be read: what is kept there can be measured again.
    """
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as packed:
            return {name: packed[name] for name in packed.files}
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        warnings.warn(
            f"measured again, since {file} cannot be read ({error})", RuntimeWarning, stacklevel=2
        )
        return None

"""Finished shards of measurements on disk."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import DocumentError
from mpsearch.schemas.document import write_atomically

__all__ = ["Measured", "read_shard", "write_shard"]


@dataclass(frozen=True)
class Measured:
    """What was measured of many choices.

    Attributes:
        losses: float64 `[choices]`.
        outputs: The model's outputs for the first inputs, float32 `[choices, inputs, ...]`; no
            inputs where none were asked for.
    """

    losses: NDArray[np.float64]
    outputs: NDArray[Any]


def write_shard(file: Path, found: Measured) -> None:
    """Write a shard, whole or not at all.

    Args:
        file: A `.json` file for losses alone, or a `.npz` file with outputs.
        found: What was measured.
    """
    if file.suffix == ".json":
        write_atomically(file, json.dumps(found.losses.tolist()).encode())
        return
    packed = io.BytesIO()
    np.savez(packed, losses=found.losses, outputs=found.outputs)
    write_atomically(file, packed.getvalue())


def read_shard(file: Path, count: int) -> Measured | None:
    """Read a shard.

    Args:
        file: As in `write_shard`.
        count: How many choices it must hold.

    Returns:
        What was measured, or None where there is no such file.

    Raises:
        DocumentError: The file is no shard of so many measurements.
    """
    if not file.exists():
        return None
    try:
        found = _read(file)
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DocumentError(f"{file} is no shard of measurements ({error}); delete it") from error
    if found.losses.shape != (count,) or len(found.outputs) != count:
        raise DocumentError(f"{file} is no shard of {count} measurements; delete it")
    return found


def _read(file: Path) -> Measured:
    if file.suffix == ".json":
        losses = np.array(json.loads(file.read_text()), dtype=np.float64)
        return Measured(losses, np.zeros((losses.size, 0)))
    with np.load(file, allow_pickle=False) as packed:
        return Measured(packed["losses"], packed["outputs"])

"""What a worker of the cluster does: run one call, keeping what the next one will need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ray

from mpsearch_api.execution.ray.packing import run_packed

__all__ = ["run_shard"]

_parcels: dict[str, bytes] = {}
"""Of the last call: calls that follow each other mostly share the model, which is large."""


def run_shard(body: bytes, parcels: Sequence[tuple[str, Any]]) -> bytes:
    """Run a packed call in this worker.

    Args:
        body: The call.
        parcels: Key -> where the cluster has the content.

    Returns:
        The packed outcome.
    """
    for key in set(_parcels) - {key for key, _ in parcels}:
        del _parcels[key]
    for key, place in parcels:
        if key not in _parcels:
            _parcels[key] = ray.get(place)
    return run_packed(body, _parcels)

"""Files that came from a node, written where the dispatcher publishes them from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mpsearch_api.execution.port import Produced
from mpsearch_api.execution.ray.orders import File

__all__ = ["deliver"]

DELIVERED = "delivered"


def deliver(files: Mapping[str, File], folder: Path) -> tuple[Produced, ...]:
    """Write files into the folder of an attempt.

    Args:
        files: Name -> file; names were checked by `ending`.
        folder: Of the attempt.

    Returns:
        The files, in their order.
    """
    if not files:
        return ()
    target = folder / DELIVERED
    target.mkdir(mode=0o700)
    found = []
    for name, file in files.items():
        path = target / name
        path.write_bytes(file.content)
        found.append(Produced(name, path, file.media_type))
    return tuple(found)

"""Where attempts leave their updates and the gateway finds them; an actor that takes no processor.

When its node dies the cluster starts it elsewhere, empty: what was told of progress meanwhile is
lost, the jobs are not.
"""

from __future__ import annotations

from typing import Any

import ray

__all__ = ["Mailbox", "open_mailbox"]

MOST = 2**20
"""Bytes kept of one attempt."""


class Mailbox:
    """Keeps lines until they are taken."""

    def __init__(self) -> None:
        """Start empty."""
        self._lines: dict[str, bytes] = {}

    def tell(self, key: str, lines: bytes) -> None:
        """Leave lines.

        Args:
            key: Of the attempt.
            lines: Whole ones.
        """
        kept = self._lines.get(key, b"") + lines
        if len(kept) > MOST:
            kept = kept[-MOST:].partition(b"\n")[2]
        self._lines[key] = kept

    def take(self) -> dict[str, bytes]:
        """Take everything.

        Returns:
            Attempt -> its lines since the last time.
        """
        found, self._lines = self._lines, {}
        return found


def open_mailbox() -> Any:  # noqa: ANN401 - Ray's handles have no useful type
    """Start a mailbox in the cluster.

    Returns:
        The actor's handle.
    """
    return ray.remote(Mailbox).options(num_cpus=0, max_restarts=-1, name=None).remote()

"""Token buckets: so many requests a minute per key, with a burst."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

__all__ = ["RateLimit"]

MOST_KEYS = 10_000
BURST_SECONDS = 10.0


class RateLimit:
    """A bucket per key that refills evenly (the leaky bucket as a meter, ITU-T I.371)."""

    def __init__(self, per_minute: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with full buckets.

        Args:
            per_minute: Requests; a sixth of them may come at once.
            clock: Seconds.
        """
        self._rate = per_minute / 60
        self._most = max(1.0, self._rate * BURST_SECONDS)
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Take one request from a bucket.

        Args:
            key: Whose.

        Returns:
            0 when the request may pass, otherwise the seconds until it may.
        """
        now = self._clock()
        left, since = self._buckets.pop(key, (self._most, now))
        left = min(self._most, left + (now - since) * self._rate)
        wait = 0.0 if left >= 1 else (1 - left) / self._rate
        self._buckets[key] = (left if wait else left - 1, now)
        if len(self._buckets) > MOST_KEYS:
            self._buckets.popitem(last=False)
        return wait

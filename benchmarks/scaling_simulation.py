"""Workers that take shards one after the other: a simulation by events, on a clock of its own."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["Cluster", "Outcome", "simulate", "spread"]


@dataclass(frozen=True)
class Cluster:
    """What shards run on.

    Attributes:
        workers: Processes that compute one shard at a time.
        start: Seconds until a new worker can ask for the payload.
        payload: Bytes that a worker needs before its first shard.
        bandwidth: Bytes a second out of and into one machine.
        submit: Seconds that the driver spends on a shard, one after the other.
        failures: Deaths of a worker per hour of its work; its shard is computed again.
        restart: Seconds until a dead worker is back, before it fetches the payload again.
        before: Serial seconds at the beginning, such as packing the payload.
        after: Serial seconds at the end, such as adding up and solving.
    """

    workers: int
    start: float = 0.0
    payload: float = 0.0
    bandwidth: float = math.inf
    submit: float = 0.0
    failures: float = 0.0
    restart: float = 0.0
    before: float = 0.0
    after: float = 0.0


@dataclass(frozen=True)
class Outcome:
    """How it went.

    Attributes:
        seconds: From beginning to end.
        busy: Seconds of finished shards, of all workers.
        deaths: Workers that died.
    """

    seconds: float
    busy: float
    deaths: int

    def efficiency(self, workers: int) -> float:
        """Part of the workers' time that finished shards took."""
        return self.busy / (self.seconds * workers)


def spread(mean: float, count: int, variation: float, rng: np.random.Generator) -> list[float]:
    """Draw shard times, lognormal with a coefficient of variation.

    Args:
        mean: Their mean, s.
        count: How many.
        variation: Standard deviation over mean.
        rng: Where they are drawn from.

    Returns:
        Seconds.
    """
    sigma = math.sqrt(math.log1p(variation**2))
    return list(map(float, rng.lognormal(math.log(mean) - sigma**2 / 2, sigma, count)))


def simulate(
    rounds: Sequence[Sequence[float]], cluster: Cluster, rng: np.random.Generator
) -> Outcome:
    """Run rounds of shards; a round begins when the last shard of the one before has ended.

    The payload is handed on by every worker that has it, as Ray's object manager does: the number
    of copies doubles with every transfer.

    Args:
        rounds: Seconds of every shard of every round.
        cluster: What they run on.
        rng: Draws the failures.

    Returns:
        The outcome.
    """
    transfer = cluster.payload / cluster.bandwidth
    free: list[tuple[float, int]] = []
    for worker in range(cluster.workers):
        generation = math.ceil(math.log2(worker + 2))  # copies: 1 at the driver, then 2, 4, 8 …
        free.append((cluster.before + cluster.start + generation * transfer, worker))
    heapq.heapify(free)
    clock, busy, deaths = cluster.before, 0.0, 0
    for shards in rounds:
        # (when it may start at the earliest, its seconds); one that was lost comes back at the end.
        waiting = [(clock + cluster.submit * (n + 1), seconds) for n, seconds in enumerate(shards)]
        heapq.heapify(waiting)
        ended = clock
        while waiting:
            ready, seconds = heapq.heappop(waiting)
            idle, worker = heapq.heappop(free)
            begun = max(ready, idle)
            lives = _life(cluster, rng)
            if lives < seconds:
                deaths += 1
                died = begun + lives
                heapq.heappush(waiting, (died, seconds))
                heapq.heappush(free, (died + cluster.restart + transfer, worker))
                continue
            ended = max(ended, begun + seconds)
            busy += seconds
            heapq.heappush(free, (begun + seconds, worker))
        clock = ended
    return Outcome(clock + cluster.after, busy, deaths)


def _life(cluster: Cluster, rng: np.random.Generator) -> float:
    """Draw how long a worker goes on working; deaths come without memory."""
    if not cluster.failures:
        return math.inf
    return float(rng.exponential(3600.0 / cluster.failures))

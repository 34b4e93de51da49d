"""Times of repeated runs: what counts of them, and whether more would show anything new."""

from __future__ import annotations

import heapq
import math
import statistics
from collections.abc import Sequence
from typing import Literal, Self

from pydantic import Field

from mpsearch.hardware.runtime_session import least_disturbed
from mpsearch.schemas.document import Document, Record

__all__ = ["RoundsTaken", "Seconds"]


class Seconds(Record):
    """What the runs of one graph took, in seconds, one value for every run."""

    whole: list[float] = Field(default_factory=list, description="without the profiler")
    work: dict[int, list[float]] = Field(default_factory=dict, description="operation -> kernels")
    between: dict[int, list[float]] = Field(
        default_factory=dict, description="operation -> conversions of what it leaves"
    )

    def part(self, chosen: slice) -> Self:
        """Take some of the runs.

        Args:
            chosen: Which.

        Returns:
            Their times.
        """
        return type(self)(
            whole=self.whole[chosen],
            work={number: values[chosen] for number, values in self.work.items()},
            between={number: values[chosen] for number, values in self.between.items()},
        )

    def followed_by(self, later: Self) -> Self:
        """Append the runs of another set.

        Args:
            later: Times of the same graph.

        Returns:
            All of them.
        """
        return type(self)(
            whole=[*self.whole, *later.whole],
            work={n: [*self.work.get(n, []), *values] for n, values in later.work.items()},
            between={n: [*self.between.get(n, []), *values] for n, values in later.between.items()},
        )

    def undisturbed(self) -> tuple[dict[int, float], dict[int, float]]:
        """Summarise the runs by what they take when nothing else disturbs.

        The profiler's clock runs on while a kernel waits for a core, and a long kernel nearly
        always waits on a busy machine: of each the two shortest times count. They are scaled so
        that they add up to the graph's own time without the profiler.

        Returns:
            Seconds of kernels, and of conversions, by operation.
        """
        work = {number: _shortest(values) for number, values in self.work.items()}
        between = {number: _shortest(values) for number, values in self.between.items()}
        scale = least_disturbed(self.whole) / math.fsum([*work.values(), *between.values()])
        return (
            {number: seconds * scale for number, seconds in work.items()},
            {number: seconds * scale for number, seconds in between.items()},
        )

    def halves(self) -> tuple[Self, Self]:
        """Cut the runs into earlier and later ones.

        Returns:
            Both halves.
        """
        middle = len(self.whole) // 2
        return self.part(slice(middle)), self.part(slice(middle, None))


class RoundsTaken(Document):
    """Rounds that have been run so far."""

    kind: Literal["runtime_rounds"] = "runtime_rounds"
    outline: str = Field(description="digest of what is run, and under which conditions")
    graphs: dict[str, Seconds]
    pace: list[float] = Field(description="seconds of a fixed matrix product in every round")

    @property
    def rounds(self) -> int:
        """How many rounds count."""
        return len(self.pace)

    @property
    def unsettled(self) -> float:
        """Share of the time by which the halves of all rounds differ; 1 for a single round."""
        if self.rounds < 2:
            return 1.0
        apart, together = [], []
        for seconds in self.graphs.values():
            early, late = seconds.halves()
            for one, other in zip(early.undisturbed(), late.undisturbed(), strict=True):
                apart += [abs(one[number] - other[number]) for number in one]
                together += [(one[number] + other[number]) / 2 for number in one]
        return math.fsum(apart) / math.fsum(together)


def _shortest(values: Sequence[float]) -> float:
    # One value alone is as coarse as the profiler's clock, a microsecond.
    return statistics.fmean(heapq.nsmallest(2, values))

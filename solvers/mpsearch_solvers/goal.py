"""What a problem asks to minimise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LOSS = "loss"
WORST_LOSS = "worst_loss"
RESERVED = frozenset({LOSS, WORST_LOSS})


@dataclass(frozen=True)
class Goal:
    """What to minimise, and how much loss is allowed while doing so.

    Attributes:
        minimize: `"loss"` (the sum over groups), `"worst_loss"` (the largest loss of any one
            group, ties broken by the sum), the name of a resource, or weights over `"loss"` and
            resources for a weighted sum.
        max_loss: Largest total loss allowed, in the unit of the losses; None for no limit.
    """

    minimize: str | Mapping[str, float] = LOSS
    max_loss: float | None = None

    @property
    def weights(self) -> Mapping[str, float]:
        """The goal as weights over `"loss"` and resources; worst_loss breaks ties by loss."""
        if isinstance(self.minimize, str):
            return {LOSS if self.minimize == WORST_LOSS else self.minimize: 1.0}
        return self.minimize

    @property
    def is_worst_loss(self) -> bool:
        """Whether the largest single loss counts instead of a sum."""
        return self.minimize == WORST_LOSS

    def to_dict(self) -> dict[str, object]:
        """Return the goal as it stands in a problem file."""
        minimize = self.minimize if isinstance(self.minimize, str) else dict(self.minimize)
        document: dict[str, object] = {"minimize": minimize}
        if self.max_loss is not None:
            document["max_loss"] = self.max_loss
        return document

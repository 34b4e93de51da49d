"""The answer: what to choose, what it costs, and what is proven about it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mpsearch_solvers.problem import Ints

OPTIMAL = "optimal"
FEASIBLE = "feasible"
INFEASIBLE = "infeasible"
UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False)
class Solution:
    """An allocation with its certificate, or the reason why there is none.

    Attributes:
        status: `optimal` (proven to the gap asked for), `feasible`, `infeasible` (proven), or
            `unknown` (time ran out with nothing feasible).
        objective: Value of the goal, from exact sums of the given numbers; None without a choice.
        bound: Proven lower bound on the goal's value; None when the method proves nothing.
        gap: `(objective - bound) / max(|objective|, |bound|)`, 0 when equal; None without either.
        choice: Option name of every group.
        indices: Column of every group's option, shape (groups,); None without a choice.
        usage: What is spent of every resource: sums over groups, peaks over steps.
        loss: Summed loss of the choice.
        method: Method that answered.
        reason: Why `auto` chose it; "" when the caller did.
        solver: Program behind the method, with its version; "" for this package's own code.
        seconds: Wall time.
        shadow_prices: Loss (goal) saved per unit of budget at the bound, per limited resource;
            empty when the method has no duals.
        binding_steps: Schedule step at which each peak resource peaks.
        minimum: Infeasible only: least achievable usage of each resource with a `max`, alone.
        maximum: Infeasible only: most achievable usage of each resource with a `min`, alone.
        minimum_given_others: Infeasible only: least (for a `min`, most) usage while all other
            limits hold; None where the others cannot be kept either.
        conflict: Infeasible only: resources whose limits cannot hold together, none to spare.
        note: Anything else worth knowing.
    """

    status: str
    objective: float | None = None
    bound: float | None = None
    gap: float | None = None
    choice: Mapping[str, str] = field(default_factory=dict)
    indices: Ints | None = None
    usage: Mapping[str, float] = field(default_factory=dict)
    loss: float | None = None
    method: str = ""
    reason: str = ""
    solver: str = ""
    seconds: float = 0.0
    shadow_prices: Mapping[str, float] = field(default_factory=dict)
    binding_steps: Mapping[str, str] = field(default_factory=dict)
    minimum: Mapping[str, float] | None = None
    maximum: Mapping[str, float] | None = None
    minimum_given_others: Mapping[str, float | None] | None = None
    conflict: tuple[str, ...] | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; fields of infeasible answers appear only there."""
        document: dict[str, Any] = {
            "status": self.status,
            "objective": self.objective,
            "bound": self.bound,
            "gap": self.gap,
            "choice": dict(self.choice),
            "usage": dict(self.usage),
            "loss": self.loss,
            "method": self.method,
            "reason": self.reason,
            "solver": self.solver,
            "seconds": self.seconds,
            "shadow_prices": dict(self.shadow_prices),
            "binding_steps": dict(self.binding_steps),
            "note": self.note,
        }
        if self.status == INFEASIBLE:
            document["minimum"] = dict(self.minimum or {})
            document["maximum"] = dict(self.maximum or {})
            document["minimum_given_others"] = dict(self.minimum_given_others or {})
            document["conflict"] = list(self.conflict or ())
        return document

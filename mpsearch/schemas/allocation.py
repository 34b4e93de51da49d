"""The answer: an option for every layer, its certificate, and what was measured of it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, PrivateAttr

from mpsearch.schemas.costs import Costs
from mpsearch.schemas.document import Document, Record
from mpsearch.schemas.profile import DataRecord, InputRange, ModelRecord, Profile

__all__ = [
    "Allocation",
    "Baseline",
    "BudgetUse",
    "Frontier",
    "FrontierPoint",
    "Measurement",
    "Refinement",
    "Verification",
]

Status = Literal["optimal", "feasible"]


class BudgetUse(Record):
    """One budget: what was asked for, the limit it means, and how much is used."""

    requested: str = Field(description="the budget as written, such as 0.25x or 3 MB")
    limit: float = Field(description="in `unit`")
    usage: float = Field(description="in `unit`, summed exactly over the original costs")
    unit: str
    least: float = Field(description="least achievable use of this resource alone, in `unit`")
    tolerance: float | None = Field(
        default=None,
        description="largest relative error of such sums against whole models that were run; "
        "null: not checked, or exact",
    )
    binding_step: str | None = Field(
        default=None, description="schedule step at which a peak resource peaks; null for sums"
    )


class Measurement(Record):
    """What one pass over the verification data showed."""

    loss: float
    metric: float | None = Field(
        default=None, description="accuracy or agreement in [0, 1], perplexity, dB …"
    )


class Baseline(Record):
    """What a rule of thumb gives within the same budgets."""

    name: str
    description: str
    exists: bool = Field(description="whether the rule has an allocation within every budget")
    measurement: Measurement | None = None
    layers: dict[str, str] | None = Field(
        default=None, description="layer -> option; null for `random`, which is a median"
    )


class Verification(Record):
    """The allocation run on the real model, beside the float model and equal-budget baselines."""

    data: DataRecord
    held_out: bool = Field(description="whether the inputs were kept from scoring")
    loss_function: str
    metric_name: str | None = None
    metric_is_share: bool = Field(
        default=True, description="whether the metric is a share in [0, 1], such as accuracy"
    )
    float_model: Measurement
    allocation: Measurement
    baselines: list[Baseline] = Field(default_factory=list)
    seconds: float = 0.0


class Refinement(Record):
    """Proposals beside the predicted best, run on the calibration data."""

    proposals: int = Field(description="solved for scores that were perturbed at random")
    measured: int = Field(description="distinct allocations that were run, the predicted best too")
    loss_before: float | None = Field(
        description="of the predicted best, measured; null: not finite"
    )
    loss_after: float = Field(
        description="of the answer, measured: the least of those that beat the predicted best by "
        "more than a standard error"
    )
    standard_error: float | None = Field(
        description="of the difference, over parts of the calibration data, which does not know "
        "that the answer is the best of several; null: no difference"
    )


class Allocation(Document):
    """An option for every layer, with predicted loss, costs, certificate and measurement."""

    kind: Literal["allocation"] = "allocation"
    layers: dict[str, str] = Field(description="layer -> option")
    groups: dict[str, str] = Field(description="group -> option")
    status: Status = Field(description="`optimal` only when proven to the gap asked for")
    objective: float = Field(description="value of the goal, from the original numbers in float64")
    bound: float | None = Field(description="proven lower bound of the goal; null if none")
    gap: float | None = Field(description="(objective - bound) / max(|objective|, |bound|)")
    predicted_loss: float
    goal: str = Field(
        default="min:loss",
        description="`min:loss`: the certificate is of the goal itself; `min:RESOURCE`: the "
        "allocation is the smallest that was found and measured, and the certificate is that of "
        "least predicted loss at its use",
    )
    allocations_measured: int | None = Field(
        default=None, description="how many a `min:RESOURCE` search ran on the model"
    )
    max_drop: float | None = Field(
        default=None, description="largest measured drop of the metric that was asked for"
    )
    refinement: Refinement | None = Field(
        default=None,
        description="null: not asked for. Where it changed the answer, the certificate says how "
        "far its predicted loss is from the least, and the status is `feasible`",
    )
    budgets: dict[str, BudgetUse] = Field(default_factory=dict)
    costs: dict[str, float] = Field(default_factory=dict, description="use of every resource")
    units: dict[str, str] = Field(default_factory=dict)
    fixed: dict[str, float] = Field(default_factory=dict)
    shadow_prices: dict[str, float] = Field(
        default_factory=dict, description="loss saved per unit of budget, at the bound"
    )
    method: str
    reason: str = Field(default="", description="why this method was chosen")
    solver: str
    seconds: float
    estimator: str
    activation_ranges: dict[str, tuple[float, float]] = Field(
        default_factory=dict,
        description="layer -> [low, high] of its input, calibrated on the data",
    )
    resolved_ranges: dict[str, dict[str, InputRange]] = Field(
        default_factory=dict,
        description="layer -> activation format that clips or chooses its grid -> what it became",
    )
    monotone: Literal["keep", "clamp"] = "keep"
    seed: int = 0
    model: ModelRecord | None = None
    verification: Verification | None = Field(
        default=None, description="null: nothing was measured"
    )
    warnings: list[str] = Field(default_factory=list)

    _origin: tuple[Profile, Costs] | None = PrivateAttr(default=None)

    @property
    def origin(self) -> tuple[Profile, Costs] | None:
        """The profile and costs it was solved from; not saved, so None for a loaded one."""
        return self._origin

    def solved_from(self, profile: Profile, costs: Costs) -> Self:
        """Remember what this allocation was solved from, for baselines at equal budget.

        Args:
            profile: Predicted losses.
            costs: Prices.

        Returns:
            This allocation.
        """
        self._origin = profile, costs
        return self


class FrontierPoint(Record):
    """One Pareto-optimal allocation."""

    usage: float
    predicted_loss: float
    bound: float | None
    gap: float | None
    status: Status
    groups: dict[str, str]


class Frontier(Document):
    """Pareto-optimal allocations between predicted loss and one resource, cheapest first."""

    kind: Literal["frontier"] = "frontier"
    resource: str
    unit: str
    points: list[FrontierPoint]
    uniform: dict[str, FrontierPoint] = Field(
        default_factory=dict, description="every group at the same option, by option"
    )

"""What gates may speak of, and its value in an allocation."""

from __future__ import annotations

from dataclasses import dataclass

from mpsearch.budgets import format_amount
from mpsearch.errors import InputError, UnknownNameError
from mpsearch.schemas import Allocation

__all__ = ["MEASURED", "NAMES", "Name", "check_resource", "figure", "shown"]

NAMES = {
    "accuracy_drop": "metric_drop of a metric that is a share in [0, 1]",
    "best_baseline_loss": "measured loss of the best baseline that exists",
    "bound": "proven lower bound of the goal",
    "float_loss": "measured loss of the float model",
    "float_metric": "measured metric of the float model",
    "gap": "relative gap between objective and bound",
    "loss": "measured loss of the allocation",
    "loss_increase": "measured loss minus that of the float model",
    "metric": "measured metric of the allocation",
    "metric_drop": "metric of the float model minus that of the allocation",
    "objective": "value of the goal",
    "predicted_loss": "predicted loss increase",
    "share.RESOURCE": "use of a resource by its budget's limit",
    "status": "optimal or feasible",
    "usage.RESOURCE": "use of a resource, in its base unit or with a unit",
}
"""What a gate may speak of."""

MEASURED = frozenset(
    {
        "accuracy_drop",
        "best_baseline_loss",
        "float_loss",
        "float_metric",
        "loss",
        "loss_increase",
        "metric",
        "metric_drop",
    }
)
"""Names that have a value only when the allocation was verified."""


@dataclass(frozen=True)
class Name:
    """A figure of the allocation; `resource` is empty where the name has none."""

    name: str
    resource: str = ""

    def __str__(self) -> str:
        return f"{self.name}.{self.resource}" if self.resource else self.name


def figure(name: Name, allocation: Allocation) -> float:
    """Look up a number.

    Args:
        name: What to look up.
        allocation: The answer.

    Returns:
        Its value.

    Raises:
        InputError: It has none; the message says why.
        UnknownNameError: Nothing is known of such a resource.
    """
    if name.name in MEASURED:
        found, why = _measured(name.name, allocation)
    elif name.resource:
        found, why = _spent(name, allocation), "it has no budget"
    else:
        found, why = getattr(allocation, name.name), "nothing was proven"
    if found is None:
        raise InputError(f"--fail-if: {name} has no value, because {why}")
    return float(found)


def _measured(name: str, allocation: Allocation) -> tuple[float | None, str]:
    verification = allocation.verification
    if verification is None:
        return None, "the allocation was not run on the model"
    ours, float_model = verification.allocation, verification.float_model
    if name in {"loss", "float_loss", "loss_increase"}:
        values = {"loss": ours.loss, "float_loss": float_model.loss}
        return values.get(name, ours.loss - float_model.loss), ""
    if name == "best_baseline_loss":
        losses = [b.measurement.loss for b in verification.baselines if b.measurement is not None]
        return min(losses, default=None), "no baseline keeps the budgets"
    if ours.metric is None or float_model.metric is None:
        return None, "the data has no targets to compute a metric with"
    if name == "accuracy_drop" and not verification.metric_is_share:
        return None, f"{verification.metric_name} is not a share in [0, 1]; use metric_drop"
    values = {"metric": ours.metric, "float_metric": float_model.metric}
    return values.get(name, float_model.metric - ours.metric), ""


def _spent(name: Name, allocation: Allocation) -> float | None:
    check_resource(name, allocation)
    budget = allocation.budgets.get(name.resource)
    if name.name == "share":
        return None if budget is None else budget.usage / budget.limit
    return allocation.costs[name.resource] if budget is None else budget.usage


def check_resource(name: Name, allocation: Allocation) -> None:
    """Check that an allocation says what it uses of a resource.

    Args:
        name: A figure of the resource.
        allocation: The answer.

    Raises:
        UnknownNameError: It does not.
    """
    known = {*allocation.costs, *allocation.budgets}
    if name.resource not in known:
        raise UnknownNameError("resource in --fail-if", name.resource, known)


def shown(name: Name, allocation: Allocation) -> str:
    """Write the value of a figure.

    Args:
        name: What to look up.
        allocation: The answer.

    Returns:
        Its value, with its unit where it has one.
    """
    if name == Name("status"):
        return allocation.status
    value = figure(name, allocation)
    if name.name == "usage":
        return format_amount(value, allocation.units.get(name.resource, ""))
    return f"{value:.6g}"

"""Budgets: the grammar people write, and the limits it means for a table of costs.

```text
budget   = resource ("=" | "<=") amount
amount   = number unit     absolute:  3 MB, 256 KiB, 2.5 ms, 1.2 GBOPs, 4.5 (base unit)
         | number "x"      relative:  0.25x of the float32 model
         | number "%"      a fraction of the way from the cheapest to the dearest allocation
```
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mpsearch.errors import BudgetError, InputError, UnknownNameError
from mpsearch.schemas import Costs

__all__ = [
    "GRAMMAR",
    "Budget",
    "format_amount",
    "limit_of",
    "parse_budget",
    "parse_budgets",
    "parse_bytes",
]

GRAMMAR = (
    "write RESOURCE=AMOUNT, where AMOUNT is absolute with a unit (3MB, 256KiB, 2.5ms, 1.2GBOPs), "
    "relative to the float model (0.25x), or a fraction of the way from the cheapest to the "
    "dearest allocation (50%)"
)

_DECIMAL = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}
_SMALL = {"": 1.0, "m": 1e-3, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "n": 1e-9, "p": 1e-12}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}

UNITS: dict[str, dict[str, float]] = {
    "B": {f"{prefix}B": factor for prefix, factor in (_DECIMAL | _BINARY).items()},
    "s": {f"{prefix}s": factor for prefix, factor in _SMALL.items()},
    "J": {f"{prefix}J": factor for prefix, factor in _SMALL.items()},
    "BOPs": {
        f"{prefix}{name}": factor for prefix, factor in _DECIMAL.items() for name in ("BOPs", "")
    },
    "bits": {"bits": 1.0, "bit": 1.0},
}
"""Base unit -> spelling -> how many base units one is."""

_AMOUNT = re.compile(r"\s*([+-]?[\d.][\d.]*(?:[eE][+-]?\d+)?)\s*([^\d\s.]*)\s*")


@dataclass(frozen=True)
class Budget:
    """A limit on a resource, as asked for.

    Attributes:
        resource: Name of the resource.
        kind: How `amount` is meant.
        amount: In the unit; as a multiple of the float model; or as a fraction in (0, 1].
        unit: Spelling of the unit for an absolute amount; empty for the base unit.
        text: The amount as written.
    """

    resource: str
    kind: Literal["absolute", "relative", "fraction"]
    amount: float
    unit: str
    text: str


def parse_budget(text: str) -> Budget:
    """Read one budget, such as `weight_memory=0.25x`.

    Args:
        text: Resource, `=` or `<=`, amount.

    Returns:
        The budget.

    Raises:
        BudgetError: Not of this grammar, or the amount is not positive.
    """
    match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*(<?=)(.*)", text, re.DOTALL)
    if not match:
        raise BudgetError(f"cannot read budget {text!r}: {GRAMMAR}")
    return parse_amount(match[1], match[3].strip())


def parse_amount(resource: str, value: str | float) -> Budget:
    """Read the amount of a budget.

    Args:
        resource: Name of the resource.
        value: Text of the grammar above, or a number in the resource's base unit.

    Returns:
        The budget.

    Raises:
        BudgetError: Not of this grammar, or the amount is not positive.
    """
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise BudgetError(f"cannot read budget {resource}={value!r}: {GRAMMAR}")
    text = value.strip() if isinstance(value, str) else repr(float(value))
    match = _AMOUNT.fullmatch(text)
    try:
        amount = float(match[1]) if match else math.nan
    except ValueError:
        amount = math.nan
    if match is None or not math.isfinite(amount):
        raise BudgetError(f"cannot read budget {resource}={text}: {GRAMMAR}")
    if amount <= 0:
        raise BudgetError(f"budget {resource}={text} must be greater than zero")
    unit = match[2]
    if unit in {"x", "×"}:
        return Budget(resource, "relative", amount, "", text)
    if unit == "%":
        if amount > 100:
            raise BudgetError(f"budget {resource}={text}: a fraction is at most 100%")
        return Budget(resource, "fraction", amount / 100, "", text)
    return Budget(resource, "absolute", amount, unit, text)


def parse_bytes(name: str, value: str | int) -> int:
    """Read an amount of memory that is no budget.

    Args:
        name: What the amount is of, for the message.
        value: A number with a unit of bytes, such as `2GiB`, or a number of bytes.

    Returns:
        Bytes, at least 1.

    Raises:
        InputError: Not a positive amount of bytes.
    """
    match = _AMOUNT.fullmatch(str(value))
    try:
        size = float(match[1]) * UNITS["B"][match[2] or "B"] if match else math.nan
    except (ValueError, KeyError):
        size = math.nan
    if not (math.isfinite(size) and size >= 1):
        raise InputError(
            f"{name} {value!r}: write a number with a unit of bytes, such as 2GiB or 500MB"
        )
    return int(size)


def parse_budgets(budgets: Mapping[str, str | float]) -> list[Budget]:
    """Read a mapping of budgets as the library takes it.

    Args:
        budgets: Resource -> amount, such as `{"weight_memory": "0.25x", "latency": "3 ms"}`.

    Returns:
        One budget each, in order.

    Raises:
        BudgetError: One of them cannot be read, or there is none.
    """
    if budgets and not isinstance(budgets, Mapping):
        raise BudgetError(f"budgets are a mapping of resource to amount, not {budgets!r}")
    if not budgets:
        raise BudgetError(f"give at least one budget: {GRAMMAR}")
    return [parse_amount(resource, value) for resource, value in budgets.items()]


def limit_of(budget: Budget, costs: Costs, offered: NDArray[np.bool_] | None = None) -> float:
    """Compute the limit a budget means for a table of costs.

    Args:
        budget: What was asked for.
        costs: Prices of the model.
        offered: Bool mask of the options each group may take, groups x options; None: all.

    Returns:
        The limit in the resource's base unit.

    Raises:
        UnknownNameError: The resource is not priced, or the unit does not exist.
        BudgetError: A relative budget of a resource that has no float baseline.
    """
    if budget.resource not in costs.resources:
        raise UnknownNameError("resource", budget.resource, costs.resources)
    if budget.kind == "relative":
        if budget.resource not in costs.baseline:
            raise BudgetError(
                f"budget {budget.resource}={budget.text}: the float model's "
                f"{budget.resource} is not known; give an absolute amount"
            )
        return budget.amount * costs.baseline[budget.resource]
    if budget.kind == "fraction":
        return _between(budget, costs, offered)
    base = costs.units[budget.resource]
    spellings = UNITS.get(base, {base: 1.0})
    if not budget.unit:
        return budget.amount
    if budget.unit not in spellings:
        raise UnknownNameError(
            f"unit for {budget.resource}",
            budget.unit,
            [name for name in spellings if name],
            f"In {budget.resource}={budget.text}; {GRAMMAR}",
        )
    return budget.amount * spellings[budget.unit]


def _between(budget: Budget, costs: Costs, offered: NDArray[np.bool_] | None) -> float:
    mask = costs.offered([budget.resource]) if offered is None else offered
    # The way runs between quantized allocations; `float` would stretch it. A group that is
    # offered nothing else keeps it.
    quantized = mask & (np.array(costs.options) != "float")
    mask = np.where(quantized.any(axis=1, keepdims=True), quantized, mask)
    cheapest = costs.extreme(budget.resource, mask)
    dearest = costs.extreme(budget.resource, mask, least=False)
    return cheapest + budget.amount * (dearest - cheapest)


def format_amount(value: float, unit: str) -> str:
    """Write an amount with a decimal prefix, three or four digits.

    Args:
        value: In the base unit.
        unit: Base unit.

    Returns:
        Such as `37.3 kB`, `1.24 GBOPs`, `4.5 bits`.
    """
    if unit in {"B", "BOPs"}:
        prefixes = [p for p in ("P", "T", "G", "M") if p] + ["k", ""]
        factors = {"k": 1e3, **_DECIMAL}
    elif unit in {"s", "J"}:
        prefixes = ["", "m", "µ", "n", "p"]
        factors = _SMALL
    else:
        return f"{value:.4g} {unit}".strip()
    for prefix in prefixes:
        if abs(value) >= factors[prefix]:
            return f"{value / factors[prefix]:.4g} {prefix}{unit}"
    return f"{value:.4g} {unit}"

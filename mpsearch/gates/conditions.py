"""Conditions on an allocation: comparisons, and how they are joined."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from mpsearch.budgets import UNITS
from mpsearch.errors import UnknownNameError
from mpsearch.gates.figures import Name, check_resource, figure
from mpsearch.schemas import Allocation

__all__ = [
    "SIGNS",
    "Comparison",
    "Condition",
    "Junction",
    "Number",
    "Operand",
    "Word",
    "names_in",
]

SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True)
class Number:
    """A number as written; `unit` is empty for a plain one."""

    value: float
    unit: str = ""


@dataclass(frozen=True)
class Word:
    """A status."""

    value: str


Operand = Number | Name | Word


@dataclass(frozen=True)
class Comparison:
    """Two values and how they must compare."""

    left: Operand
    sign: str
    right: Operand

    def holds(self, allocation: Allocation) -> bool:
        """Tell whether the comparison is true of an allocation."""
        if Word in {type(self.left), type(self.right)} or Name("status") in {self.left, self.right}:
            words = [_word(side, allocation) for side in (self.left, self.right)]
            return (words[0] == words[1]) is (self.sign == "==")
        left, right = (
            _number(side, other, allocation)
            for side, other in ((self.left, self.right), (self.right, self.left))
        )
        return SIGNS[self.sign](left, right)


@dataclass(frozen=True)
class Junction:
    """Conditions of which all, any or (with a single one) none must hold."""

    kind: str
    parts: tuple[Condition, ...]

    def holds(self, allocation: Allocation) -> bool:
        """Tell whether the junction is true of an allocation; looks at every part."""
        found = [part.holds(allocation) for part in self.parts]
        return {"and": all(found), "or": any(found), "not": not found[0]}[self.kind]


Condition = Comparison | Junction


def names_in(condition: Condition) -> Iterator[Name]:
    """List the figures that a condition speaks of.

    Args:
        condition: The condition.

    Yields:
        Them, in order.
    """
    if isinstance(condition, Junction):
        for part in condition.parts:
            yield from names_in(part)
    else:
        yield from (side for side in (condition.left, condition.right) if isinstance(side, Name))


def _word(side: Operand, allocation: Allocation) -> str:
    return side.value if isinstance(side, Word) else allocation.status


def _number(side: Operand, other: Operand, allocation: Allocation) -> float:
    if isinstance(side, Name):
        return figure(side, allocation)
    assert isinstance(side, Number)
    if side.unit in {"", "%"}:
        return side.value
    assert isinstance(other, Name)
    check_resource(other, allocation)
    base = allocation.units.get(other.resource, "")
    factors = UNITS.get(base, {base: 1.0})
    if side.unit not in factors:
        raise UnknownNameError(f"unit of {other.resource}", side.unit, factors)
    return side.value * factors[side.unit]

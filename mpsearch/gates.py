"""Gates: conditions on an allocation that make a command fail, such as `accuracy_drop > 1%`.

```text
gate       = all ("or" all)*
all        = one ("and" one)*
one        = "not" one | "(" gate ")" | comparison
comparison = value ("<" | "<=" | ">" | ">=" | "==" | "!=") value
value      = number ["%" | unit] | name | word        usage.latency > 3 ms,  status != optimal
```

Every name is looked up, whichever side of an `or` it stands on: a gate about something that was not
measured is an error, never a gate that passes.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mpsearch.budgets import UNITS, format_amount
from mpsearch.errors import GateError, InputError, UnknownNameError
from mpsearch.schemas import Allocation

__all__ = ["GRAMMAR", "MEASURED", "NAMES", "Gate", "check_gates", "parse_gate"]

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

GRAMMAR = (
    "write comparisons joined by and, or, not: accuracy_drop>1%, gap>0.01, usage.latency>3ms, "
    "status!=optimal"
)
_STATUSES = ("optimal", "feasible")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>%|(?!and\b|or\b|not\b)"
    r"[A-Za-zµμ]+)?|(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)?)|(?P<sign><=|>=|==|!=|<|>|=|\(|\)))"
)
_LONGEST = 1000
_DEEPEST = 50


@dataclass(frozen=True)
class Number:
    """A number as written; `unit` is empty for a plain one."""

    value: float
    unit: str = ""


@dataclass(frozen=True)
class Name:
    """A figure of the allocation; `resource` is empty where the name has none."""

    name: str
    resource: str = ""

    def __str__(self) -> str:
        return f"{self.name}.{self.resource}" if self.resource else self.name


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
        return _COMPARE[self.sign](left, right)


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


@dataclass(frozen=True)
class Gate:
    """A condition as written.

    Attributes:
        text: What was written.
        condition: What it means.
    """

    text: str
    condition: Condition

    @property
    def names(self) -> list[Name]:
        """The figures it speaks of, in order, each once."""
        return list(dict.fromkeys(_names(self.condition)))

    def holds(self, allocation: Allocation) -> bool:
        """Tell whether the condition is true of an allocation, so that the command fails.

        Args:
            allocation: The answer.

        Returns:
            Whether it is.
        """
        return self.condition.holds(allocation)

    def explained(self, allocation: Allocation) -> str:
        """Write the gate with the values of its names.

        Args:
            allocation: The answer.

        Returns:
            Such as `accuracy_drop>1% (accuracy_drop = 0.0234)`.
        """
        values = [f"{name} = {_shown(name, allocation)}" for name in self.names]
        return f"{self.text} ({', '.join(values)})"


def parse_gate(text: str, *, verified: bool = True) -> Gate:
    """Read a gate.

    Args:
        text: What was written.
        verified: Whether the allocation will be run on the model.

    Returns:
        The gate.

    Raises:
        InputError: Not of the grammar, an unknown name, or one that will not be measured.
    """
    if len(text) > _LONGEST:
        raise InputError(f"--fail-if is longer than {_LONGEST} characters")
    gate = Gate(text.strip(), _Parser(text).condition())
    unmeasured = [str(name) for name in gate.names if name.name in MEASURED]
    if unmeasured and not verified:
        raise InputError(
            f"--fail-if {text!r}: {', '.join(unmeasured)} cannot be known, because nothing will be "
            "run on the model"
        )
    return gate


def check_gates(gates: Sequence[Gate], allocation: Allocation) -> None:
    """Fail when a gate holds.

    Args:
        gates: The conditions.
        allocation: The answer.

    Raises:
        GateError: At least one holds; the message has all of them with their values.
    """
    held = [gate.explained(allocation) for gate in gates if gate.holds(allocation)]
    if held:
        raise GateError("the gate --fail-if holds: " + "; ".join(held))


class _Parser:
    """Recursive descent over the tokens of one gate."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(self._split(text))
        self._at = 0
        self._depth = 0

    def _split(self, text: str) -> Iterator[re.Match[str]]:
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._fault(f"{text[position:].strip()[:20]!r} cannot be read")
            yield match
            position = match.end()

    def condition(self) -> Condition:
        found = self._any()
        if self._at < len(self._tokens):
            raise self._fault(f"{self._next().group().strip()!r} is out of place")
        return found

    def _any(self) -> Condition:
        return self._joined("or", self._all)

    def _all(self) -> Condition:
        return self._joined("and", self._one)

    def _joined(self, word: str, part: Callable[[], Condition]) -> Condition:
        parts = [part()]
        while self._take(word):
            parts.append(part())
        return parts[0] if len(parts) == 1 else Junction(word, tuple(parts))

    def _one(self) -> Condition:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self._fault("it is nested too deeply")
        try:
            if self._take("not"):
                return Junction("not", (self._one(),))
            if self._take("("):
                inner = self._any()
                if not self._take(")"):
                    raise self._fault("a bracket is not closed")
                return inner
            return self._comparison()
        finally:
            self._depth -= 1

    def _comparison(self) -> Comparison:
        left = self._operand()
        sign = self._next()["sign"] or ""
        if sign not in _COMPARE:
            hint = "; compare with ==" if sign == "=" else ""
            raise self._fault(f"a comparison is missing{hint}")
        right = self._operand()
        self._check(left, sign, right)
        return Comparison(left, sign, right)

    def _check(self, left: Operand, sign: str, right: Operand) -> None:
        sides = (left, right)
        about_status = Name("status") in sides or any(isinstance(s, Word) for s in sides)
        if about_status:
            fits = any(isinstance(s, Word) for s in sides) and Name("status") in sides
            if not fits or sign not in {"==", "!="}:
                raise self._fault("write status==optimal, status!=optimal or with feasible")
        for side, other in (sides, sides[::-1]):
            has_unit = isinstance(side, Number) and side.unit not in {"", "%"}
            if has_unit and not (isinstance(other, Name) and other.name == "usage"):
                raise self._fault("a number has a unit beside usage.RESOURCE only")
        if not any(isinstance(side, Name) for side in sides):
            raise self._fault("it compares nothing of the allocation")

    def _operand(self) -> Operand:
        token = self._next()
        if token["number"]:
            value, unit = float(token["number"]), token["unit"] or ""
            if not math.isfinite(value):  # nothing would ever be beyond it
                raise self._fault(f"{token['number']} is beyond the range of numbers")
            return Number(value / 100, "%") if unit == "%" else Number(value, unit)
        text = token["name"] or ""
        if text in _STATUSES:
            return Word(text)
        name, dot, resource = text.partition(".")
        if dot and name in {"usage", "share"}:
            return Name(name, resource)
        if text in NAMES:
            return Name(text)
        if not text or text in {"and", "or", "not"}:
            raise self._fault("a name or a number is missing")
        raise UnknownNameError("figure in --fail-if", text, [*NAMES, *_STATUSES])

    def _next(self) -> re.Match[str]:
        if self._at == len(self._tokens):
            raise self._fault("it ends too early")
        self._at += 1
        return self._tokens[self._at - 1]

    def _take(self, word: str) -> bool:
        if self._at < len(self._tokens) and self._tokens[self._at].group().strip() == word:
            self._at += 1
            return True
        return False

    def _fault(self, why: str) -> InputError:
        return InputError(f"--fail-if {self._text!r}: {why}; {GRAMMAR}")


def _names(condition: Condition) -> Iterator[Name]:
    if isinstance(condition, Junction):
        for part in condition.parts:
            yield from _names(part)
    else:
        yield from (side for side in (condition.left, condition.right) if isinstance(side, Name))


def _word(side: Operand, allocation: Allocation) -> str:
    return side.value if isinstance(side, Word) else allocation.status


def _number(side: Operand, other: Operand, allocation: Allocation) -> float:
    if isinstance(side, Name):
        return _figure(side, allocation)
    assert isinstance(side, Number)
    if side.unit in {"", "%"}:
        return side.value
    assert isinstance(other, Name)
    _known_resource(other, allocation)
    base = allocation.units.get(other.resource, "")
    factors = UNITS.get(base, {base: 1.0})
    if side.unit not in factors:
        raise UnknownNameError(f"unit of {other.resource}", side.unit, factors)
    return side.value * factors[side.unit]


def _figure(name: Name, allocation: Allocation) -> float:
    """Look up a number, or say why there is none."""
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
    _known_resource(name, allocation)
    budget = allocation.budgets.get(name.resource)
    if name.name == "share":
        return None if budget is None else budget.usage / budget.limit
    return allocation.costs[name.resource] if budget is None else budget.usage


def _known_resource(name: Name, allocation: Allocation) -> None:
    known = {*allocation.costs, *allocation.budgets}
    if name.resource not in known:
        raise UnknownNameError("resource in --fail-if", name.resource, known)


def _shown(name: Name, allocation: Allocation) -> str:
    if name == Name("status"):
        return allocation.status
    value = _figure(name, allocation)
    if name.name == "usage":
        return format_amount(value, allocation.units.get(name.resource, ""))
    return f"{value:.6g}"

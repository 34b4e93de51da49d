"""Reading gates: recursive descent over the tokens of one.

```text
gate       = all ("or" all)*
all        = one ("and" one)*
one        = "not" one | "(" gate ")" | comparison
comparison = value ("<" | "<=" | ">" | ">=" | "==" | "!=") value
value      = number ["%" | unit] | name | word        usage.latency > 3 ms,  status != optimal
```
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

from mpsearch.errors import InputError, UnknownNameError
from mpsearch.gates.conditions import (
    SIGNS,
    Comparison,
    Condition,
    Junction,
    Number,
    Operand,
    Word,
)
from mpsearch.gates.figures import NAMES, Name

__all__ = ["GRAMMAR", "LONGEST", "Parser"]

GRAMMAR = (
    "write comparisons joined by and, or, not: accuracy_drop>1%, gap>0.01, usage.latency>3ms, "
    "status!=optimal"
)
_STATUSES = ("optimal", "feasible")
_TOKEN = re.compile(
    r"\s*(?:(?P<number>[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(?P<unit>%|(?!and\b|or\b|not\b)"
    r"[A-Za-zµμ]+)?|(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)?)|(?P<sign><=|>=|==|!=|<|>|=|\(|\)))"
)
LONGEST = 1000
"""Characters that a gate may have."""

_DEEPEST = 50


class Parser:
    """Reads one gate."""

    def __init__(self, text: str) -> None:
        """Split it into tokens.

        Args:
            text: What was written.

        Raises:
            InputError: Something in it is no token.
        """
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
        """Read all of it.

        Returns:
            What it means.

        Raises:
            InputError: It is not of the grammar.
            UnknownNameError: It names no figure.
        """
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
        if sign not in SIGNS:
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

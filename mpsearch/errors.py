"""Every error that mpsearch raises on purpose, and the exit code each one ends a command with.

```text
MpsearchError
├── InputError                  exit 2   the caller gave something that cannot be used
│   ├── UnknownNameError                 a model, option, estimator, unit … that does not exist
│   ├── ModelError                       the model or its weights cannot be used
│   ├── DataError                        the data set cannot be used
│   ├── DocumentError                    a saved profile, cost or allocation file is broken
│   ├── MismatchError                    two inputs that are fine alone do not belong together
│   └── BudgetError                      a budget that cannot be read
├── InfeasibleError             exit 3   no allocation meets every budget
├── UnsolvedError               exit 4   time ran out before any answer was found
├── DependencyError             exit 4   a package, program or service is missing or failed
└── GateError                   exit 5   a --fail-if gate did not hold
```

A message says what was wrong, with the value, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "BudgetError",
    "DataError",
    "DependencyError",
    "DocumentError",
    "GateError",
    "InfeasibleError",
    "InputError",
    "MismatchError",
    "ModelError",
    "MpsearchError",
    "UnknownNameError",
    "UnsolvedError",
]


class MpsearchError(Exception):
    """Base of every error that mpsearch raises on purpose."""

    exit_code = 1


class InputError(MpsearchError):
    """The caller gave something that cannot be used."""

    exit_code = 2


class UnknownNameError(InputError):
    """A name that is not in the list it should come from; the message shows the nearest names."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        """Compose the message.

        Args:
            kind: What the name should be, in words: "model", "estimator", "option" …
            name: The name that was given.
            known: Every name that would have been accepted.
            hint: A sentence to add, for example the grammar of names.
        """
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3)
        message = f"unknown {kind} {name!r}"
        if near:
            message += f"; did you mean {' or '.join(near)}?"
        if names:
            message += f" (known: {', '.join(names)})"
        if hint:
            message += f". {hint}"
        super().__init__(message)
        self.kind = kind
        self.name = name
        self.near = near


class ModelError(InputError):
    """The model or its weights cannot be used: NaN weights, no quantizable layer, wrong shapes."""


class DataError(InputError):
    """The data set cannot be used: empty, wrong shape for the model, non-finite values."""


class DocumentError(InputError):
    """A saved file (profile, costs, allocation …) is truncated or does not fit its schema."""


class MismatchError(InputError):
    """Two inputs that are fine alone do not belong together: a profile and another model."""


class BudgetError(InputError):
    """A budget that cannot be read, names no known resource or unit, or is not positive."""


class InfeasibleError(MpsearchError):
    """No allocation meets every budget; carries the least achievable use of each resource."""

    exit_code = 3

    def __init__(self, message: str, minimum: dict[str, float] | None = None) -> None:
        """Keep the figures beside the message.

        Args:
            message: What a person should read.
            minimum: Least achievable use per resource, each alone, in the resource's base unit.
        """
        super().__init__(message)
        self.minimum = dict(minimum or {})


class UnsolvedError(MpsearchError):
    """The time limit ran out before any allocation within the budgets was found."""

    exit_code = 4


class DependencyError(MpsearchError):
    """A package, program or service that this needs is missing or failed; names the extra."""

    exit_code = 4


class GateError(MpsearchError):
    """A `--fail-if` condition held, so the command reports failure to the pipeline that ran it."""

    exit_code = 5

"""Every error that mpsearch_solvers raises on purpose.

```text
SolverError
├── ProblemError (also a ValueError)   the problem cannot be read; carries the path of the value
├── MethodError  (also a ValueError)   a method that does not exist or cannot solve this problem
└── BackendError                       a MIP solver is missing or failed
```
"""

from __future__ import annotations

__all__ = ["BackendError", "MethodError", "ProblemError", "SolverError"]


def _shortened(text: str, most: int) -> str:
    """Return a text without its middle: what a file holds may fill many screens."""
    if len(text) <= most:
        return text
    return f"{text[: most * 2 // 3]} … {text[-most // 4 :]}"


class SolverError(Exception):
    """Base of every error that mpsearch_solvers raises on purpose."""


class ProblemError(SolverError, ValueError):
    """A problem that cannot be used; the message starts with the path of the offending value."""

    def __init__(self, path: str, message: str) -> None:
        """Compose the message.

        Args:
            path: Where the value stands, in the words of the problem file:
                `groups[3].options[0].loss`, `limits.latency`.
            message: What is wrong with it and what to do.
        """
        path, message = _shortened(path, 200), _shortened(message, 1_000)
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class MethodError(SolverError, ValueError):
    """A method that does not exist, or that cannot solve the problem it was given."""


class BackendError(SolverError):
    """A MIP solver that is missing, or that failed without an answer."""

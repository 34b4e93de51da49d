"""Python modules that hold one literal, read without being run."""

from __future__ import annotations

import ast
from typing import Any

__all__ = ["read_literal"]


def read_literal(text: str) -> dict[str, Any]:
    """Read the dictionary that a module assigns.

    Args:
        text: The module's source; it is never run.

    Returns:
        The value of its first assignment.

    Raises:
        ValueError: Nothing is assigned, or it is no literal dictionary.
    """
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign):
            found = ast.literal_eval(statement.value)
            if isinstance(found, dict):
                return found
    raise ValueError("it assigns no dictionary")

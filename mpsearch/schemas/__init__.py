"""Pydantic models that the library, the client and the service share; no torch in here.

The names below are loaded on first use, so that whoever needs the wire schemas alone (jobs,
uploads, problems) does not wait for numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mpsearch.schemas.allocation import (
        Allocation,
        Baseline,
        BudgetUse,
        Frontier,
        FrontierPoint,
        Measurement,
        Refinement,
        Verification,
    )
    from mpsearch.schemas.costs import Conversion, Costs, PeakStep
    from mpsearch.schemas.profile import DataRecord, InputRange, ModelRecord, Profile

__all__ = [
    "Allocation",
    "Baseline",
    "BudgetUse",
    "Conversion",
    "Costs",
    "DataRecord",
    "Frontier",
    "FrontierPoint",
    "InputRange",
    "Measurement",
    "ModelRecord",
    "PeakStep",
    "Profile",
    "Refinement",
    "Verification",
]

_HOMES = {
    "allocation": (
        "Allocation",
        "Baseline",
        "BudgetUse",
        "Frontier",
        "FrontierPoint",
        "Measurement",
        "Refinement",
        "Verification",
    ),
    "costs": ("Conversion", "Costs", "PeakStep"),
    "profile": ("DataRecord", "InputRange", "ModelRecord", "Profile"),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Load a schema on first use.

    Args:
        name: Name of the schema.

    Returns:
        The class.

    Raises:
        AttributeError: There is no such schema.
    """
    if name not in _MODULES:
        raise AttributeError(f"module 'mpsearch.schemas' has no attribute {name!r}")
    found = getattr(importlib.import_module(f"mpsearch.schemas.{_MODULES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})

"""Pydantic models that the library, the client and the service share; no torch in here."""

from mpsearch.schemas.allocation import (
    Allocation,
    Baseline,
    BudgetUse,
    Frontier,
    FrontierPoint,
    Measurement,
    Verification,
)
from mpsearch.schemas.costs import Costs, PeakStep
from mpsearch.schemas.profile import DataRecord, InputRange, ModelRecord, Profile

__all__ = [
    "Allocation",
    "Baseline",
    "BudgetUse",
    "Costs",
    "DataRecord",
    "Frontier",
    "FrontierPoint",
    "InputRange",
    "Measurement",
    "ModelRecord",
    "PeakStep",
    "Profile",
    "Verification",
]

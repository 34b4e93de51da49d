"""mpsearch: which numeric format should every layer have, proven and measured.

The names below are loaded on first use, so that reading saved documents, solving and the client
work without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mpsearch.errors import DependencyError

if TYPE_CHECKING:
    from mpsearch.allocating import allocate, frontier
    from mpsearch.models.dataset import DataSet
    from mpsearch.pipeline import price, profile, verify
    from mpsearch.quantize import apply, quantized
    from mpsearch.schemas import Allocation, Costs, Frontier, Profile, Verification
    from mpsearch.searching import search
    from mpsearch.sensitivity.evidence import compare_estimators

__version__ = "0.1.0"

__all__ = [
    "Allocation",
    "Costs",
    "DataSet",
    "Frontier",
    "Profile",
    "Verification",
    "allocate",
    "apply",
    "compare_estimators",
    "frontier",
    "price",
    "profile",
    "quantized",
    "search",
    "verify",
]

_HOMES = {
    "Allocation": "mpsearch.schemas",
    "Costs": "mpsearch.schemas",
    "DataSet": "mpsearch.models.dataset",
    "Frontier": "mpsearch.schemas",
    "Profile": "mpsearch.schemas",
    "Verification": "mpsearch.schemas",
    "allocate": "mpsearch.allocating",
    "apply": "mpsearch.quantize",
    "compare_estimators": "mpsearch.sensitivity.evidence",
    "frontier": "mpsearch.allocating",
    "price": "mpsearch.pipeline",
    "profile": "mpsearch.pipeline",
    "quantized": "mpsearch.quantize",
    "search": "mpsearch.searching",
    "verify": "mpsearch.pipeline",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401
    """Load a public name on first use.

    Args:
        name: Name of the attribute.

    Returns:
        What the module it lives in has under this name.

    Raises:
        AttributeError: mpsearch has no such name.
        DependencyError: The name needs torch, which is not installed.
        ModuleNotFoundError: Anything else fails to import.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'mpsearch' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in {"torch", "safetensors"}:
            raise
        raise DependencyError(
            f"mpsearch.{name} needs {missing}, which is not installed; "
            "run: pip install 'mpsearch[torch]'"
        ) from error


def __dir__() -> list[str]:
    """List the public names, loaded or not."""
    return sorted({*globals(), *__all__})

"""A model together with the name that reports call it by."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

__all__ = ["NamedModel"]


@dataclass(frozen=True)
class NamedModel:
    """A live model with the name that reports call it by.

    Attributes:
        name: The name.
        module: The model.
    """

    name: str
    module: nn.Module

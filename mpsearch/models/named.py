"""A model together with the name that reports call it by, and the inputs it is known to take."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

__all__ = ["InputForm", "NamedModel"]


@dataclass(frozen=True)
class InputForm:
    """What one input of a model looks like.

    Attributes:
        shape: Shape without the batch axis.
        vocabulary: Number of token ids where inputs are token ids; None where they are values.
    """

    shape: tuple[int, ...]
    vocabulary: int | None = None

    def __str__(self) -> str:
        """Say it in words."""
        sizes = ", ".join(["n", *map(str, self.shape)])
        if self.vocabulary is None:
            return f"float32 values [{sizes}]"
        return f"int64 token ids below {self.vocabulary} [{sizes}]"


@dataclass(frozen=True)
class NamedModel:
    """A live model with the name that reports call it by.

    Attributes:
        name: The name.
        module: The model.
        inputs: What its inputs look like, where that is known.
        notes: What whoever reads a profile of it should know, such as random weights.
    """

    name: str
    module: nn.Module
    inputs: InputForm | None = None
    notes: tuple[str, ...] = ()

"""A model together with the name that reports call it by, and the inputs it is known to take."""

from __future__ import annotations

import keyword
import re
from dataclasses import dataclass

from torch import nn

from mpsearch.models.run_limits import RunLimits

__all__ = ["MAX_INPUTS", "InputForm", "NamedModel", "argument_name", "fixed_batch_note"]

MAX_INPUTS = 16
"""Most inputs of a model out of a file."""


def argument_name(name: str) -> str:
    """Make the name of an input that a file gives one that Python source may hold.

    torch.fx writes it into code that it runs.

    Args:
        name: Any text.

    Returns:
        The name with everything but ASCII letters, digits and underscores replaced; it is no word
        of the language.
    """
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", name[:100])
    usable = plain.isidentifier() and not keyword.iskeyword(plain) and plain != "self"
    return plain if usable else f"input_{plain}"


def fixed_batch_note(path: str, size: int) -> str:
    """Say that a file takes batches of one size.

    Args:
        path: The file.
        size: The size.

    Returns:
        A sentence for `NamedModel.notes`.
    """
    return (
        f"{path} was exported for batches of {size}; other sizes may be refused by the model, so "
        "export it with a dynamic batch axis"
    )


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
        limits: What running one input may cost, for models whose graph came out of a file; None
            where the code is known.
    """

    name: str
    module: nn.Module
    inputs: InputForm | None = None
    notes: tuple[str, ...] = ()
    limits: RunLimits | None = None

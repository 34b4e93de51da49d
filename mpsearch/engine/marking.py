"""Marks on models whose weights are quantized, so that none is taken for a float model."""

from __future__ import annotations

from contextlib import ExitStack

from torch import nn

from mpsearch.errors import ModelError

__all__ = ["mark_quantized", "refuse_quantized"]

_QUANTIZED = "_mpsearch_quantized"
"""Name in a module's own dictionary, which deep copies and pickles take along."""


def mark_quantized(model: nn.Module, *, for_now: bool = False) -> ExitStack:
    """Mark a model and its parts as quantized.

    Args:
        model: The model.
        for_now: For the length of a context, in which other contexts may be entered.

    Returns:
        What takes the marks off; open until it is closed.
    """
    with ExitStack() as undo:
        for module in model.modules():
            if _QUANTIZED not in module.__dict__:  # else the mark of a context around this one
                module.__dict__[_QUANTIZED] = "for now" if for_now else "in place"
                undo.callback(module.__dict__.pop, _QUANTIZED, None)
        return undo.pop_all()


def refuse_quantized(model: nn.Module, *, nested: bool = False) -> None:
    """Raise where a float model is needed and quantized values would pass for its weights.

    Args:
        model: The model.
        nested: It may be inside a context that quantizes it for now.

    Raises:
        ModelError: It, a part of it, or what it was copied from is quantized.
    """
    for name, module in model.named_modules():
        mark = module.__dict__.get(_QUANTIZED)
        part = f"part {name} of this" if name else "this"
        if mark == "for now" and not nested:
            raise ModelError(
                f"{part} {type(model).__name__} is inside a context of mpsearch.quantized, or a "
                "copy made in one; leave the context first"
            )
        if mark == "in place":
            raise ModelError(
                f"{part} {type(model).__name__} is quantized in place already, or a copy of one "
                "that is; call mpsearch.quantize.restore(model) on the original first"
            )

"""Reading weights from safetensors into a model, with a clear account of what does not fit."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from mpsearch.errors import ModelError

__all__ = ["check_finite", "load_weights"]


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load every parameter and buffer of a model from a safetensors file, in place.

    Args:
        model: The architecture; its tensors are overwritten.
        path: The `.safetensors` file.

    Raises:
        ModelError: The file is missing or broken, tensors are missing, left over or of another
            shape, or a weight is NaN or infinite. The model is not touched then.
    """
    try:
        found = load_file(path)
    except FileNotFoundError as error:
        raise ModelError(f"no weights file at {path}") from error
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is not a readable safetensors file: {error}") from error
    wanted = model.state_dict()
    problems = [f"missing {name}" for name in wanted if name not in found]
    problems += [f"unexpected {name}" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {tuple(found[name].shape)}, the model wants {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + ("; …" if len(problems) > 8 else "")
        raise ModelError(f"{path} does not fit {type(model).__name__}: {shown}")
    check_finite(found, str(path))
    model.load_state_dict(found)


def check_finite(tensors: dict[str, torch.Tensor], where: str) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        tensors: Name to tensor.
        where: What the tensors belong to, for the message.

    Raises:
        ModelError: A floating-point tensor has a NaN or infinite value; names up to five.
    """
    broken = [
        name
        for name, tensor in tensors.items()
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all())
    ]
    if broken:
        shown = ", ".join(broken[:5]) + (", …" if len(broken) > 5 else "")
        raise ModelError(f"{where} has NaN or infinite values in {len(broken)} tensors: {shown}")

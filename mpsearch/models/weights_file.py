"""Reading weights from safetensors into a model, with a clear account of what does not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from mpsearch.errors import ModelError
from mpsearch.models.safetensors_header import DEFAULT_LIMITS, Limits, TensorEntry, read_header

__all__ = ["check_finite", "load_weights", "read_tensors"]


def load_weights(model: nn.Module, path: str | Path, limits: Limits = DEFAULT_LIMITS) -> None:
    """Load every parameter and buffer of a model from a safetensors file, in place.

    Args:
        model: The architecture; its tensors are overwritten.
        path: The `.safetensors` file.
        limits: What the file's header may cost.

    Raises:
        ModelError: The file is missing or broken, tensors are missing, left over or of another
            shape, or a weight is NaN or infinite. The model is not touched then.
    """
    wanted = model.state_dict()
    stand_in = _check_fit(type(model).__name__, wanted, read_header(path, limits).tensors, path)
    found = read_tensors(path, limits)
    check_finite(found, str(path))
    tied = {name: found[other] for name, other in stand_in.items()}
    model.load_state_dict(wanted | found | tied)


def read_tensors(path: str | Path, limits: Limits = DEFAULT_LIMITS) -> dict[str, torch.Tensor]:
    """Read all tensors of a safetensors file, its header checked first.

    Args:
        path: The file.
        limits: What its header may cost.

    Returns:
        Name -> tensor.

    Raises:
        ModelError: The file is missing or broken, or holds a type this torch does not have.
    """
    names = read_header(path, limits).tensors
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, AttributeError) as error:
        raise ModelError(f"{path} is not a readable safetensors file: {error}") from error


def _check_fit(
    model: str,
    wanted: Mapping[str, torch.Tensor],
    found: Mapping[str, TensorEntry],
    path: str | Path,
) -> dict[str, str]:
    """Compare names and shapes before a single tensor is read.

    Returns:
        Name that the file leaves out -> name in the file of the tensor that shares its storage,
        which is how tied weights are saved.

    Raises:
        ModelError: They differ.
    """
    missing = [name for name in wanted if name not in found]
    stand_in = {}
    present = [name for name in found if name in wanted]
    for name in missing:
        tensor = wanted[name]
        for other in present:
            if tensor.numel() and _same_storage(wanted[other], tensor):
                stand_in[name] = other
                break
    # Counts training steps, nothing reads it in evaluation, and older files lack it.
    needed = [name for name in missing if name.rpartition(".")[2] != "num_batches_tracked"]
    problems = [f"missing {name}" for name in needed if name not in stand_in]
    problems += [f"unexpected {name}" for name in found if name not in wanted]
    problems += [
        f"{name} has shape {found[name].shape}, the model wants {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != tuple(wanted[name].shape)
    ]
    if problems:
        more = len(problems) - 8
        shown = "; ".join(problems[:8]) + (f"; … and {more} more" if more > 0 else "")
        raise ModelError(f"{path} does not fit {model}: {shown}")
    return stand_in


def _same_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
    )


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
        if tensor.is_floating_point() and not _is_finite(tensor)
    ]
    if broken:
        shown = ", ".join(broken[:5]) + (", …" if len(broken) > 5 else "")
        raise ModelError(f"{where} has NaN or infinite values in {len(broken)} tensors: {shown}")


def _is_finite(tensor: torch.Tensor) -> bool:
    if tensor.element_size() == 1:
        if str(tensor.dtype).startswith("torch.float4"):
            return True  # has no code for NaN or infinity
        tensor = tensor.float()  # torch cannot ask an 8-bit float directly
    if tensor.numel() == 0:
        return True
    # NaN comes through to both ends; one pass, where isfinite of every value takes five
    low, high = torch.aminmax(tensor)
    return math.isfinite(low) and math.isfinite(high)

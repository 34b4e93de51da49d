"""Content hashes of tensors and models, so that a profile finds the model it belongs to."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

__all__ = ["model_fingerprint", "tensor_bytes"]


def tensor_bytes(tensor: Tensor) -> bytes:
    """Give a tensor's values as raw bytes in row-major order.

    Args:
        tensor: Any dense tensor.

    Returns:
        The bytes.
    """
    flat = tensor.detach().cpu().contiguous().flatten()
    return flat.view(torch.uint8).numpy().tobytes()


def model_fingerprint(model: nn.Module) -> str:
    """Hash a model's state: names, shapes, types and values of parameters and buffers.

    Args:
        model: The model; not changed.

    Returns:
        sha256 in hex. Two models of equal state but other code hash alike.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            digest.update(f"{name}:{tensor.dtype}{tuple(tensor.shape)}".encode())
            digest.update(tensor_bytes(tensor))
    return digest.hexdigest()

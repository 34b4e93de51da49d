"""Content hashes of tensors and models, so that a profile finds the model it belongs to."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from mpsearch.errors import MismatchError
from mpsearch.models.named import NamedModel
from mpsearch.schemas import ModelRecord

__all__ = ["check_model", "model_fingerprint", "record_of", "tensor_bytes"]


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


def record_of(named: NamedModel) -> ModelRecord:
    """Say which model something was made for.

    Args:
        named: The model.

    Returns:
        Its name and the hash of its state.
    """
    return ModelRecord(name=named.name, fingerprint=model_fingerprint(named.module))


def check_model(named: NamedModel, record: ModelRecord | None, what: str) -> None:
    """Refuse something that was made for another model.

    Args:
        named: The model at hand.
        record: Which model `what` was made for; None when it belongs to none.
        what: What is being checked, for the message.

    Raises:
        MismatchError: The fingerprints differ.
    """
    if record is None:
        return
    found = record_of(named)
    if record.fingerprint != found.fingerprint:
        raise MismatchError(
            f"the {what} belongs to another model: it was made for {record.name} "
            f"({record.fingerprint[:12]}), this is {found.name} ({found.fingerprint[:12]})"
        )

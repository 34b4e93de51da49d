"""Names by content: what a result depends on, as one hash."""

from __future__ import annotations

import hashlib
import json
from importlib.metadata import version
from typing import Any

from torch import nn

from mpsearch.losses import Loss, as_loss, known_losses
from mpsearch.models.dataset import DataSet
from mpsearch.models.fingerprint import model_fingerprint

__all__ = ["content_key", "loss_identity", "measured_content"]


def content_key(**content: Any) -> str:
    """Hash what a result depends on.

    Args:
        **content: Names and JSON values.

    Returns:
        sha256 in hex.
    """
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()


def loss_identity(loss: Loss) -> str:
    """Name a loss by its content as far as Python shows it.

    Args:
        loss: The loss.

    Returns:
        Its name where it is a named one, else module, name and compiled code of its function.
    """
    if loss.name in known_losses() and as_loss(loss.name) is loss:
        return loss.name
    code = getattr(loss.function, "__code__", None)
    shown = (code.co_code.hex(), repr(code.co_consts), repr(code.co_names)) if code else ()
    where = getattr(loss.function, "__module__", ""), getattr(loss.function, "__qualname__", "")
    return content_key(name=loss.name, where=where, code=shown)


def measured_content(model: nn.Module, data: DataSet, loss: Loss) -> dict[str, Any]:
    """List what every measurement of a model depends on, for `content_key`.

    Args:
        model: Its weights, its code as far as it prints itself, its device.
        data: What it runs on.
        loss: What is measured.

    Returns:
        Names and JSON values.
    """
    first = next(model.parameters(), None)
    return {
        "package": version("mpsearch"),
        "model": model_fingerprint(model),
        # Equal weights do not make equal models: the code may differ.
        "code": f"{type(model).__module__}.{type(model).__qualname__}\n{model}",
        "device": str(first.device) if first is not None else "cpu",
        "data": data.fingerprint,
        "batch_size": data.batch_size,
        "loss": loss_identity(loss),
    }

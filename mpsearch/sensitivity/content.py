"""Names by content: what a result depends on, as one hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from mpsearch.losses import Loss, as_loss, known_losses

__all__ = ["content_key", "loss_identity"]


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

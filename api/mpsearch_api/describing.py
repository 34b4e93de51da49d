"""What the server must know of code that imports torch, written by a process that may import it.

`python -m mpsearch_api.describing` prints one JSON document: the architectures and data sets that a
spec may name, the losses, and the settings of every estimator. The server runs it once when it
starts, so that it can check submissions without importing torch itself.
"""

from __future__ import annotations

import inspect
import json
import sys
import typing
from typing import Any

__all__ = ["describe"]


def describe() -> dict[str, Any]:
    """Import what needs torch and describe it.

    Returns:
        `architectures`, `torchvision`, `data`, `losses` (lists of names), and `settings`:
        estimator -> setting -> `{"types": [...], "values": [...] or None, "default": ...}`.
    """
    from mpsearch.losses import known_losses
    from mpsearch.models.registry import known_data, known_models
    from mpsearch.sensitivity import catalog

    return {
        "architectures": [name for name in known_models() if _is_plain(name)],
        "torchvision": _torchvision(),
        "data": [name for name in known_data() if _is_plain(name)],
        "losses": known_losses(),
        "settings": {entry.name: _settings(entry.implementation) for entry in catalog.known()},
    }


def _is_plain(name: str) -> bool:
    return not name.startswith("FILE") and not name.endswith(":…")


def _torchvision() -> list[str]:
    try:
        from torchvision import models
    except ImportError:
        return []
    return sorted(models.list_models(module=models))


def _settings(implementation: str) -> dict[str, Any]:
    module, _, name = implementation.partition(":")
    made = getattr(__import__(module, fromlist=[name]), name)
    signature = inspect.signature(made.__init__, eval_str=True)
    return {
        parameter.name: _setting(parameter)
        for parameter in signature.parameters.values()
        if parameter.name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
        and parameter.kind is not inspect.Parameter.VAR_POSITIONAL
    }  # fmt: skip


def _setting(parameter: inspect.Parameter) -> dict[str, Any]:
    default = parameter.default
    plain = default is None or isinstance(default, (bool, int, float, str))
    types, values = _kinds(parameter.annotation)
    return {"types": types, "values": values, "default": default if plain else None}


def _kinds(annotation: Any) -> tuple[list[str], list[Any] | None]:  # noqa: ANN401
    """Name the JSON types of an annotation, and list its values where it is a Literal."""
    if typing.get_origin(annotation) is typing.Literal:
        values = list(typing.get_args(annotation))
        return sorted({type(value).__name__ for value in values}), values
    members = typing.get_args(annotation) or (annotation,)
    if typing.get_origin(annotation) in {list, tuple, dict, set}:
        return [], None  # not a scalar, so no JSON scalar fits
    types: list[str] = []
    listed: list[Any] | None = None
    for member in members:
        if typing.get_origin(member) is typing.Literal:
            inner, more = _kinds(member)
            types += inner
            listed = (listed or []) + (more or [])
        elif member in {bool, int, float, str}:
            types.append(member.__name__)
        elif member is type(None):
            types.append("None")
    return types, listed


if __name__ == "__main__":
    sys.stdout.write(json.dumps(describe()))

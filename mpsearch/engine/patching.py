"""Standing between a module's call and its forward method."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Wrapper", "flatten", "interposable", "interposed", "rebuild"]

Wrapper = Callable[[str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""Name of the module, its forward, and the arguments, to what the forward should return."""

PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


def interposable(model: nn.Module) -> dict[str, nn.Module]:
    """Find the modules whose calls can be watched and replaced.

    Args:
        model: The model.

    Returns:
        Name -> module; without the model itself, and without compiled modules, whose calls do not
        go through Python.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if name and not isinstance(module, torch.jit.ScriptModule)
    }


@contextmanager
def interposed(modules: Iterable[tuple[str, nn.Module]], wrapper: Wrapper) -> Iterator[None]:
    """Run every call of some modules through a function; hooks still run around it.

    Args:
        modules: Names and modules.
        wrapper: Called instead of each module's forward.

    Yields:
        Nothing; forward methods are back as they were on leaving, by an exception too.
    """

    def wrapped(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)  # some models look at the signature
        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            return wrapper(name, forward, args, kwargs)

        return call

    with ExitStack() as undo:
        for name, module in modules:
            own = module.__dict__.get("forward")
            if own is None:
                undo.callback(module.__dict__.pop, "forward")
            else:  # some libraries put a forward on the object itself
                undo.callback(module.__dict__.__setitem__, "forward", own)
            module.__dict__["forward"] = wrapped(name, module.forward)
        yield


def flatten(value: object, tensors: list[Tensor]) -> bool:
    """Collect the tensors of a nest of plain tuples, lists and dictionaries.

    Args:
        value: A tensor, a number, or a nest of them.
        tensors: Gets the tensors, in order.

    Returns:
        Whether the nest holds nothing but tensors, numbers, texts and the like, so that it can be
        built again, and so that a call that receives it has nothing else to leave its traces in.
    """
    kind = type(value)
    if kind is Tensor or kind is nn.Parameter:
        assert isinstance(value, Tensor)
        tensors.append(value)
        return True
    if kind in {tuple, list}:
        assert isinstance(value, (tuple, list))
        # Every tensor must be collected, also after a foreign part, so `all` may not stop early.
        known = [flatten(part, tensors) for part in value]
        return all(known)
    if kind is dict:
        assert isinstance(value, dict)
        return flatten(list(value.values()), tensors)
    return isinstance(value, PLAIN)


def rebuild(value: object, tensors: Iterator[Tensor]) -> object:
    """Build a nest again with other tensors, in fresh containers.

    Args:
        value: What `flatten` accepted.
        tensors: The tensors to use, in its order.

    Returns:
        A nest of the same structure.
    """
    if isinstance(value, Tensor):
        return next(tensors)
    if type(value) is tuple:
        return tuple([rebuild(part, tensors) for part in value])
    if type(value) is list:
        return [rebuild(part, tensors) for part in value]
    if type(value) is dict:
        return {key: rebuild(part, tensors) for key, part in value.items()}
    return value

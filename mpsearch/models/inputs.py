"""Reaching the inputs of a layer: to observe them, or to put quantized ones in their place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mpsearch.models.kinds import Use, WeightSite

__all__ = [
    "OnInput",
    "OnProduct",
    "hooked_module",
    "intercept",
    "is_own_hook",
    "unnest",
    "watch_products",
]

OnInput = Callable[[Tensor, int], Tensor]
"""An input, and the axis along which the weight contracts it, to the tensor that replaces it."""

OnProduct = Callable[[Tensor, Tensor, int, int], Tensor]
"""Input, weight operand, and the axis of each that is contracted, to the input's replacement."""

_ROLES = {"query": (0, "query"), "key": (1, "key"), "value": (2, "value")}

_aten = torch.ops.aten
# Position of the two factors among the arguments; the weight may be either.
_PRODUCTS: dict[object, tuple[int, int]] = {
    _aten.mm.default: (0, 1),
    _aten.bmm.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.baddbmm.default: (1, 2),
}
if hasattr(_aten, "_grouped_mm"):  # newer than the oldest torch that is accepted
    _PRODUCTS[_aten._grouped_mm.default] = (0, 1)


def intercept(
    model: nn.Module, site: WeightSite, use: Use, function: OnInput
) -> Callable[[], None]:
    """Put a function in the way of a layer's input.

    Args:
        model: The model; gets forward hooks.
        site: The layer's weight.
        use: Which of its uses.
        function: Called with every input and the axis the weight contracts (negative, so that it
            holds with and without a batch axis); what it returns takes the input's place.

    Returns:
        A function that removes the hooks.
    """
    if use.takes == "nothing":
        return ExitStack().close
    if use.takes == "operand":
        return watch_products(model, site, use, _AsProduct(function))
    undo = ExitStack()
    unnest(model, use.module, undo)
    hook = _ArgumentHook(function, use.takes, _contracted_axis(site.kind))
    module = model.get_submodule(use.module)
    undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
    return undo.close


def hooked_module(model: nn.Module, path: str) -> str:
    """Find the outermost module that runs in another way when one inside it has hooks.

    Args:
        model: The model.
        path: Name of the module that gets hooks.

    Returns:
        Its own name, or that of an encoder around it that packs padded inputs.
    """
    return next((name for name, _ in _encoders(model, path)), path)


def unnest(model: nn.Module, path: str, undo: ExitStack) -> None:
    """Keep the encoders around a module from packing padded inputs into nested tensors.

    Inputs cannot be looked into then, and attention with hooks does not take them at all.

    Args:
        model: The model.
        path: Name of the module that gets hooks.
        undo: Gets what allows packing again.
    """
    for _, encoder in _encoders(model, path):
        if encoder.use_nested_tensor:
            encoder.use_nested_tensor = False
            undo.callback(setattr, encoder, "use_nested_tensor", True)


def _encoders(model: nn.Module, path: str) -> list[tuple[str, nn.TransformerEncoder]]:
    """Encoders around a module that were made to pack padded inputs, the outermost first."""
    parts = path.split(".")
    names = [".".join(parts[:count]) for count in range(len(parts))]
    around = [(name, model.get_submodule(name)) for name in names]
    return [
        (name, module)
        for name, module in around
        if isinstance(module, nn.TransformerEncoder) and module.enable_nested_tensor
    ]


def _contracted_axis(kind: str) -> int:
    """The input channels of a convolution come before its spatial axes; elsewhere they are last."""
    return -1 - int(kind[-2]) if kind.startswith("conv") else -1


class _AsProduct:
    def __init__(self, function: OnInput) -> None:
        self._function = function

    def __call__(self, values: Tensor, _: Tensor, axis: int, __: int) -> Tensor:
        return self._function(values, axis)


class _ArgumentHook:
    """Forward pre-hook that replaces arguments; a class, so that hooked copies can be pickled."""

    def __init__(self, function: OnInput, takes: str, axis: int) -> None:
        self._function = function
        self._takes = takes
        self._axis = axis

    def __call__(
        self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Replace the arguments that hold the layer's input."""
        positional, named = list(args), dict(kwargs)
        # Attention given one tensor three times must see one tensor afterwards, too.
        done: dict[int, Any] = {}
        for holder, key in self._places(positional, named):
            value = holder[key]
            if id(value) not in done:
                done[id(value)] = self._replaced(value)
            holder[key] = done[id(value)]
        return tuple(positional), named

    def _places(self, args: list[Any], kwargs: dict[str, Any]) -> list[tuple[Any, Any]]:
        if self._takes == "first":
            places: list[tuple[Any, Any]] = [
                *((args, i) for i in range(len(args))),
                *((kwargs, k) for k in kwargs),
            ]
            return [(h, k) for h, k in places if _is_values(h[k])][:1]
        roles = list(_ROLES) if self._takes == "query_key_value" else [self._takes]
        found: list[tuple[Any, Any]] = []
        for position, name in (_ROLES[role] for role in roles):
            if position < len(args):
                found.append((args, position))
            elif name in kwargs:
                found.append((kwargs, name))
        return [(h, k) for h, k in found if _is_values(h[k])]

    def _replaced(self, value: Tensor | PackedSequence) -> Tensor | PackedSequence:
        if isinstance(value, PackedSequence):
            return value._replace(data=self._function(value.data, self._axis))
        return self._function(value, self._axis)


def _is_values(value: object) -> bool:
    if isinstance(value, PackedSequence):
        return value.data.is_floating_point()
    return isinstance(value, Tensor) and value.is_floating_point()


def watch_products(
    model: nn.Module, site: WeightSite, use: Use, function: OnProduct
) -> Callable[[], None]:
    """Put a function in the way of what is multiplied with a weight inside a module's call.

    Matrix products are recognised below autograd by the weight's storage, so that slices and
    transposes of it count, too. Copies of it (gathered experts, casts) do not.

    Args:
        model: The model; gets forward hooks.
        site: The weight.
        use: Which of its uses.
        function: Called with every input that meets the weight.

    Returns:
        A function that removes the hooks.
    """
    undo = ExitStack()
    unnest(model, use.module, undo)
    module = model.get_submodule(use.module)
    watch = _ProductHooks(site.parameters[0].removeprefix(f"{use.module}."), function)
    undo.callback(module.register_forward_pre_hook(watch.enter).remove)
    undo.callback(module.register_forward_hook(watch.leave, always_call=True).remove)
    return undo.close


class _ProductHooks:
    """Switches the recognition of products on while a module runs."""

    def __init__(self, parameter: str, function: OnProduct) -> None:
        self._parameter = parameter
        self._function = function
        self._active: list[ExitStack] = []

    def enter(self, module: nn.Module, _: tuple[Any, ...]) -> None:
        """Start; runs before the module."""
        stack = ExitStack()
        if isinstance(module, nn.MultiheadAttention):
            stack.enter_context(_StepByStep())
        weight = module.get_parameter(self._parameter)
        stack.enter_context(_Products(weight, self._function))
        self._active.append(stack)

    def leave(self, *_: object) -> None:
        """Stop; runs after the module, also when it raised."""
        if self._active:
            self._active.pop().close()


def is_own_hook(hook: object) -> bool:
    """Say whether a forward hook is one of this module's, which keep no results.

    Args:
        hook: From a module's hooks.

    Returns:
        Whether it is.
    """
    return isinstance(getattr(hook, "__self__", hook), (_ArgumentHook, _ProductHooks))


class _StepByStep(TorchFunctionMode):
    """Does nothing, but attention takes no fused kernel while any function mode is on."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        del types
        return func(*args, **(kwargs or {}))


class _Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, weight: Tensor, function: OnProduct) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storage = weight.untyped_storage().data_ptr()
        self._function = function

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        del types
        positions = _PRODUCTS.get(func)
        if positions is not None:
            args = tuple(self._replaced(list(args), *positions))
        return func(*args, **(kwargs or {}))

    def _replaced(self, args: list[Any], left: int, right: int) -> list[Any]:
        # left is (…, rows, contracted), right (…, contracted, columns)
        for values, weight, axis, weight_axis in ((left, right, -1, -2), (right, left, -2, -1)):
            if args[weight].untyped_storage().data_ptr() == self._storage:
                with torch.no_grad():
                    args[values] = self._function(args[values], args[weight], axis, weight_axis)
                break
        return args

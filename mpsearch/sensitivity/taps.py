"""Layer inputs and gradients, handed over the moment a backward pass reaches them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import ModelError
from mpsearch.models.layers import Layer
from mpsearch.quantize import layer_module

__all__ = ["Call", "Taps", "frozen", "own_use", "substituted", "tapped"]


@dataclass
class Call:
    """One execution of a layer within one forward pass.

    Attributes:
        layer: Name of the layer.
        number: 0 for the layer's first call of this forward pass, 1 for the second …
        inputs: What went in, outside the graph; None once `release` was called.
    """

    layer: str
    number: int
    inputs: Tensor | None
    _version: int

    def take(self) -> Tensor:
        """Give the input back.

        Returns:
            The layer's first input, `[batch, ...]`.

        Raises:
            ModelError: The model changed it in place after the layer had read it.
        """
        assert self.inputs is not None
        if self.inputs._version != self._version:
            raise ModelError(
                f"the model overwrites the input of layer {self.layer} in place after the layer "
                "has read it; make that operation out of place (inplace=False) to score it"
            )
        return self.inputs

    def release(self) -> None:
        """Drop the input, so that its memory is free before the pass ends."""
        self.inputs = None


OnGradient = Callable[[Call, Tensor], None]
"""Gets a call and the gradient of its output (or input), in the shape of that tensor."""


@dataclass
class Taps:
    """What the taps of one forward pass need to be differentiated in.

    Attributes:
        leaves: Tensors that the graph starts from; differentiate in these. Empty them before the
            next forward pass with `restart`.
    """

    leaves: list[Tensor] = field(default_factory=list)
    _calls: dict[str, int] = field(default_factory=dict)

    def restart(self) -> None:
        """Forget the last forward pass."""
        self.leaves.clear()
        self._calls.clear()

    def calls(self, layer: str) -> int:
        """Count how often a layer ran since the last `restart`.

        Args:
            layer: Its name.

        Returns:
            The number of calls.
        """
        return self._calls.get(layer, 0)

    def _watched(self, tensor: Tensor) -> Tensor:
        if tensor.requires_grad or not tensor.is_floating_point():
            return tensor
        # Nothing before this point is differentiated, so autograd would not come this far back:
        # the tensor becomes a leaf that is differentiated in for its own sake.
        leaf = tensor.detach().requires_grad_()
        self.leaves.append(leaf)
        return leaf

    def _next_call(self, layer: str, inputs: Tensor) -> Call:
        number = self._calls.get(layer, 0)
        self._calls[layer] = number + 1
        kept = inputs.detach()
        return Call(layer, number, kept, kept._version)


@contextmanager
def tapped(
    model: nn.Module,
    layers: Sequence[Layer],
    on_output: OnGradient | None = None,
    on_input: OnGradient | None = None,
) -> Iterator[Taps]:
    """Watch the gradients of layers' outputs and inputs during backward passes.

    Args:
        model: The model; its hooks are removed on leaving.
        layers: Layers to watch.
        on_output: Called with the gradient of every output.
        on_input: Called with the gradient of every first input that is floating point.

    Yields:
        The taps. After a forward pass, differentiate in `leaves`; then call `restart`.
    """
    taps = Taps()

    def before(_: nn.Module, inputs: tuple[Any, ...], name: str) -> tuple[Any, ...] | None:
        if on_input is None or not inputs[0].is_floating_point():
            return None
        watched = own_use(inputs[0])
        if watched.is_leaf:
            taps.leaves.append(watched)
        kept = watched.detach()
        call = Call(name, taps.calls(name), kept, kept._version)
        watched.register_hook(lambda gradient: on_input(call, gradient))  # type: ignore[no-untyped-call]
        return (watched, *inputs[1:])

    def after(_: nn.Module, inputs: tuple[Any, ...], output: Tensor, name: str) -> Tensor | None:
        call = taps._next_call(name, inputs[0])
        if on_output is None:
            return None
        watched = taps._watched(output)
        watched.register_hook(lambda gradient: on_output(call, gradient))  # type: ignore[no-untyped-call]
        # A leaf may not be changed in place, which an activation after the layer may well do.
        return watched.clone() if watched.is_leaf else watched

    with ExitStack() as hooks:
        for layer in layers:
            module = layer_module(model, layer.name)
            pre = module.register_forward_pre_hook(_named(before, layer.name))
            post = module.register_forward_hook(_named(after, layer.name))
            hooks.callback(pre.remove)
            hooks.callback(post.remove)
        yield taps


def _named(hook: Callable[..., Any], name: str) -> Callable[..., Any]:
    return lambda *arguments: hook(*arguments, name)


def own_use(tensor: Tensor) -> Tensor:
    """Make a node of the graph for one use of a tensor, so that its gradient is of that use alone.

    A tensor that several layers read (a residual block's input) has one gradient, the sum over all
    of them.

    Args:
        tensor: A layer's input.

    Returns:
        The same values. Where nothing before the layer is differentiated autograd would not come
        this far back: the result is a leaf then, to be differentiated in for its own sake.
    """
    if tensor.requires_grad:
        return tensor.view_as(tensor)
    return tensor.detach().requires_grad_()


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """Differentiate in no parameter, so that a backward pass computes no weight gradient.

    Args:
        model: Its parameters' flags are restored on leaving.

    Yields:
        Nothing; gradients are enabled inside.
    """
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        for parameter in flags:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in flags.items():
            parameter.requires_grad_(flag)


@contextmanager
def substituted(module: nn.Module, tensors: Mapping[str, Tensor | None]) -> Iterator[nn.Module]:
    """Run a module's own forward with other tensors in place of its parameters.

    Args:
        module: The module; call its `forward`, which runs no hooks.
        tensors: Parameter name -> tensor, or None for no such parameter (a missing bias).

    Yields:
        The module.
    """
    parameters = module._parameters
    kept = {name: parameters[name] for name in tensors if name in parameters}
    try:
        for name in kept:
            parameters[name] = tensors[name]  # type: ignore[assignment]
        yield module
    finally:
        parameters.update(kept)

"""Layer inputs and gradients, handed over the moment a backward pass reaches them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import InputError, ModelError
from mpsearch.models.inputs import intercept
from mpsearch.models.kinds import Use
from mpsearch.sensitivity.protocol import ScoringTask

__all__ = [
    "Call",
    "Taps",
    "frozen",
    "own_use",
    "refuse_rows",
    "substituted",
    "tapped",
    "watch_inputs",
]


@dataclass
class Call:
    """One execution of a layer within one forward pass.

    Attributes:
        layer: Name of the layer.
        use: Name of the module that ran; another one than the layer's where a weight is tied.
        number: 0 for the module's first call of this forward pass, 1 for the second …
        inputs: What went in, outside the graph; None once `release` was called.
        axis: Axis of the input that the weight contracts.
    """

    layer: str
    use: str
    number: int
    inputs: Tensor | None
    axis: int
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
    _pending: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def restart(self) -> None:
        """Forget the last forward pass."""
        self.leaves.clear()
        self._calls.clear()
        self._pending.clear()

    def calls(self, use: str) -> int:
        """Count how often a module ran since the last `restart`.

        Args:
            use: Its name.

        Returns:
            The number of calls.
        """
        return self._calls.get(use, 0)

    def _call(self, layer: str, use: str, values: Tensor, axis: int) -> Call:
        kept = values.detach()
        return Call(layer, use, self.calls(use), kept, axis, kept._version)


@contextmanager
def tapped(
    task: ScoringTask,
    on_output: OnGradient | None = None,
    on_input: OnGradient | None = None,
    on_call: OnGradient | None = None,
) -> Iterator[Taps]:
    """Watch layers as they run, and the gradients of their outputs and inputs afterwards.

    Args:
        task: Model and layers; the model's hooks are removed on leaving.
        on_output: Called with the gradient of every output.
        on_input: Called with the gradient of every input that is floating point.
        on_call: Called with every output, while the forward pass goes on.

    Yields:
        The taps. After a forward pass, differentiate in `leaves`; then call `restart`.
    """
    taps = Taps()
    with ExitStack() as hooks:
        for layer in task.layers:
            site = task.quantizer.sites.find(task.model, layer.name)
            _refuse_kind(layer.name, site.kind)
            for use in site.uses:
                _refuse_operand(layer.name, use)
                before = _InputTap(taps, layer.name, use, on_input)
                hooks.callback(intercept(task.model, site, use, before))
                module = task.model.get_submodule(use.module)
                after = _OutputTap(taps, layer.name, use, on_output, on_call)
                hooks.callback(module.register_forward_hook(after).remove)
        yield taps


def _refuse_kind(layer: str, kind: str) -> None:
    if not (kind.startswith("conv") or kind in {"linear", "embedding"}):
        raise InputError(
            f"layer {layer} ({kind}) has no output of its own that gradients could be watched at; "
            "skip it, or use an estimator that needs the weight's gradient alone "
            "(gradient_deviation, hessian_trace) or measures (measured_loss, measured_kl)"
        )


def _refuse_operand(layer: str, use: Use) -> None:
    if use.takes == "operand":
        raise InputError(
            f"layer {layer} is multiplied inside {use.module or 'the model'}, below automatic "
            "differentiation, so gradients at its input or output cannot be watched; skip it, "
            "offer weight-only options to an estimator that needs the weight's gradient alone "
            "(gradient_deviation, hessian_trace), or measure (measured_loss, measured_kl)"
        )


def refuse_rows(call: Call, batch: int, rows: int) -> None:
    """Refuse a layer that does not run on the inputs of the batch one by one.

    Args:
        call: A call of the layer.
        batch: Inputs of the batch.
        rows: Length of the first axis of what the layer ran on.

    Raises:
        InputError: They differ, as they do behind a router or where axes were folded together.
    """
    if rows != batch:
        raise InputError(
            f"layer {call.layer} runs on {rows} rows while the batch has {batch} inputs: what "
            "belongs to one input cannot be told apart. Use batch_size=1, skip the layer, or use "
            "an estimator that needs no terms of single inputs (gradient_deviation, fisher_output, "
            "hessian_trace, measured_loss, measured_kl)"
        )


@dataclass
class _InputTap:
    """Notes a layer's input for the output tap that follows, and hooks its gradient."""

    taps: Taps
    layer: str
    use: Use
    on_input: OnGradient | None

    def __call__(self, values: Tensor, axis: int) -> Tensor:
        if self.on_input is not None:
            values = own_use(values)
            if values.is_leaf:
                self.taps.leaves.append(values)
            call, visit = self.taps._call(self.layer, self.use.module, values, axis), self.on_input
            values.register_hook(lambda gradient: visit(call, gradient))  # type: ignore[no-untyped-call]
        self.taps._pending[self.use.module] = values, axis
        return values


@dataclass
class _OutputTap:
    """Hooks the gradient of a layer's output."""

    taps: Taps
    layer: str
    use: Use
    on_output: OnGradient | None
    on_call: OnGradient | None

    def __call__(self, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        name = self.use.module
        values, axis = self.taps._pending.pop(name, (args[0] if args else output, -1))
        call = self.taps._call(self.layer, name, values, axis)
        self.taps._calls[name] = call.number + 1
        if self.on_call is not None:
            self.on_call(call, output)
        if self.on_output is None:
            return None
        visit = self.on_output
        if output.requires_grad:
            output.register_hook(lambda gradient: visit(call, gradient))  # type: ignore[no-untyped-call]
            return None
        # Nothing before this point is differentiated, so autograd would not come this far back.
        leaf = output.detach().requires_grad_()
        self.taps.leaves.append(leaf)
        leaf.register_hook(lambda gradient: visit(call, gradient))  # type: ignore[no-untyped-call]
        # A leaf may not be changed in place, which an activation after the layer may well do.
        return leaf.clone()


@contextmanager
def watch_inputs(
    task: ScoringTask,
    watch: Callable[[int, Tensor, int], Tensor | None],
    *,
    differentiated: bool = False,
) -> Iterator[None]:
    """Reach every input that an activation format would round, of any kind of layer.

    Args:
        task: Model and layers.
        watch: Called with the layer's position, the input, and the axis that the weight contracts;
            what it returns, unless None, takes the input's place.
        differentiated: Whether gradients of the inputs are wanted, which those that are multiplied
            below automatic differentiation do not have.

    Yields:
        Nothing; the hooks are removed on leaving.
    """
    with ExitStack() as hooks:
        for row, layer in enumerate(task.layers):
            site = task.quantizer.sites.find(task.model, layer.name)
            for use in site.uses:
                if differentiated:
                    _refuse_operand(layer.name, use)

                def function(values: Tensor, axis: int, row: int = row) -> Tensor:
                    found = watch(row, values, axis)
                    return values if found is None else found

                hooks.callback(intercept(task.model, site, use, function))
        yield


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

    Raises:
        ModelError: A tensor is given for something that is no parameter of the module's own.
    """
    parameters = module._parameters
    for name, tensor in tensors.items():
        if tensor is not None and name not in parameters:
            raise ModelError(
                f"{type(module).__name__} has no parameter {name!r} of its own (is it "
                "parametrized?); remove the parametrization or skip the layer"
            )
    kept = {name: parameters[name] for name in tensors if name in parameters}
    try:
        for name in kept:
            parameters[name] = tensors[name]  # type: ignore[assignment]
        yield module
    finally:
        parameters.update(kept)

"""Repairing a quantized model without training: biases and batch-norm statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from mpsearch.engine.quantizer import Quantizer, layer_module
from mpsearch.errors import InputError
from mpsearch.formats import Option
from mpsearch.models.dataset import Batch, DataSet
from mpsearch.models.running import evaluation_mode, forward

__all__ = ["correct_biases", "reestimate_batchnorms"]

_BatchNorm = nn.modules.batchnorm._BatchNorm

CORRECTED = (nn.Linear, nn.modules.conv._ConvNd)


class _ChannelMoments:
    """Mean and variance of every channel over all batches, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, values: Tensor, channel_axis: int) -> None:
        """Count the values of a batch."""
        rows = values.detach().double().movedim(channel_axis, 0).flatten(1)
        total, squares = rows.sum(1), rows.square().sum(1)
        self._count += rows.shape[1]
        self._sum = total if self._sum is None else self._sum + total
        self._squares = squares if self._squares is None else self._squares + squares

    @property
    def seen(self) -> bool:
        """Whether there was any value."""
        return self._count > 0

    @property
    def mean(self) -> Tensor:
        """Mean of every channel."""
        assert self._sum is not None
        return self._sum / self._count

    @property
    def variance(self) -> Tensor:
        """Unbiased variance of every channel, as batch norm keeps it."""
        assert self._squares is not None
        spread = self._squares - self._count * self.mean.square()
        return spread.clamp(min=0) / max(1, self._count - 1)


def correct_biases(quantizer: Quantizer, choice: Mapping[str, Option], data: DataSet) -> ExitStack:
    """Give every quantized layer's output channels their mean in float back.

    Layers are corrected in order of execution, each measured with those before it quantized and
    corrected already. A layer without a bias gets one for the time being. Corrected are linear
    layers and convolutions; others stay as they are.

    Args:
        quantizer: Holds the model, in float.
        choice: Layer -> option.
        data: Its calibration part is run once for every corrected layer.

    Returns:
        What puts the old biases back; open until it is closed.

    Raises:
        InputError: None of the layers is of a kind that can be corrected.
    """
    modules = {
        name: module
        for name in choice
        if isinstance(module := layer_module(quantizer.model, name), CORRECTED)
    }
    if not modules:
        raise InputError("correct_bias: no layer of the allocation is linear or a convolution")
    wanted = _output_means(quantizer.model, modules, data.batches())
    with ExitStack() as undo, quantizer.options(choice):
        for name in wanted:  # in order of execution
            module = modules[name]
            found = _output_means(quantizer.model, {name: module}, data.batches())
            missing = (wanted[name] - found[name]).to(_weight_of(module))
            bias = module.bias
            undo.callback(setattr, module, "bias", bias)
            corrected = missing if bias is None else bias.detach() + missing
            trained = bias is None or bias.requires_grad
            module.bias = nn.Parameter(corrected, requires_grad=trained)
        return undo.pop_all()


def _weight_of(module: nn.Module) -> Tensor:
    return module.get_parameter("weight")


def _output_means(
    model: nn.Module, modules: Mapping[str, nn.Module], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    moments: dict[str, _ChannelMoments] = {}

    def watch(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def record(module: nn.Module, _: object, output: Tensor) -> None:
            axis = -1 if isinstance(module, nn.Linear) else 1 - _weight_of(module).ndim
            moments.setdefault(name, _ChannelMoments()).add(output, axis)

        return record

    with ExitStack() as hooks, torch.no_grad(), evaluation_mode(model):
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(watch(name)).remove)
        for inputs, _ in batches:
            forward(model, inputs)
    return {name: found.mean for name, found in moments.items() if found.seen}


def reestimate_batchnorms(model: nn.Module, data: DataSet) -> ExitStack:
    """Measure the mean and variance that every batch norm sees, over all batches together.

    While measuring, each batch is normalised by its own statistics, as in training, so that the
    norms after it see what they will see; the running statistics are then set to the pooled ones.

    Args:
        model: The model, quantized.
        data: Its calibration part is run once.

    Returns:
        What puts the old statistics back; open until it is closed.

    Raises:
        InputError: The model has no batch norm with running statistics.
    """
    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not norms:
        raise InputError(
            f"reestimate_batchnorm: {type(model).__name__} has no batch norm with statistics"
        )
    moments = {norm: _ChannelMoments() for norm in norms}

    def record(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, _BatchNorm)
        moments[norm].add(inputs[0], 1)

    with ExitStack() as undo:
        before = {norm: _statistics(norm) for norm in norms}
        for norm, old in before.items():
            undo.callback(_set_statistics, norm, *old)
        with ExitStack() as hooks, torch.no_grad(), evaluation_mode(model):
            for norm in norms:
                norm.train()
                hooks.callback(norm.register_forward_pre_hook(record).remove)
            for inputs, _ in data.batches():
                forward(model, inputs)
        for norm in norms:
            if moments[norm].seen:
                _set_statistics(norm, moments[norm].mean, moments[norm].variance, None)
            else:
                _set_statistics(norm, *before[norm])
        return undo.pop_all()


_Statistics = tuple[Tensor, Tensor, Tensor | None]


def _statistics(norm: nn.modules.batchnorm._BatchNorm) -> _Statistics:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    counted = norm.num_batches_tracked
    return (
        norm.running_mean.clone(),
        norm.running_var.clone(),
        None if counted is None else counted.clone(),
    )


def _set_statistics(
    norm: nn.modules.batchnorm._BatchNorm, mean: Tensor, variance: Tensor, counted: Tensor | None
) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    if counted is not None and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.copy_(counted)

"""Finding the layers of a model that can be quantized, with their shapes and operation counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mpsearch.errors import DataError, ModelError
from mpsearch.models.dataset import Batch
from mpsearch.models.weights_file import check_finite

__all__ = ["Layer", "LayerSurvey", "evaluation_mode", "find_layers", "forward"]

QUANTIZABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Layer:
    """A module whose weight can be quantized.

    Attributes:
        name: Fully qualified name in the model.
        kind: Class of operation: `conv1d`, `conv2d`, `conv3d`, `linear`.
        weight_shape: Shape of the weight; axis 0 is the output channel.
        macs: Multiply-accumulates for one input (batch of one).
        input_shape: Shape of the layer's input for one input.
        output_shape: Shape of the layer's output for one input.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    macs: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    @property
    def weights(self) -> int:
        """Number of weights (without the bias)."""
        return math.prod(self.weight_shape)


@dataclass(frozen=True)
class LayerSurvey:
    """What a dry forward pass found.

    Attributes:
        layers: Quantizable layers in execution order.
        fixed_parameters: Parameters that are not allocated: biases, norms, unsupported modules.
        notes: What was left out, in words; never silently.
    """

    layers: tuple[Layer, ...]
    fixed_parameters: int
    notes: tuple[str, ...]


class evaluation_mode:  # noqa: N801 - reads as a keyword: `with evaluation_mode(model):`
    """Context that puts every module in evaluation mode and restores each one's own mode."""

    def __init__(self, model: nn.Module) -> None:
        """Remember the model.

        Args:
            model: Its modules' training flags are restored on leaving.
        """
        self._training = {module: module.training for module in model.modules()}
        self._model = model

    def __enter__(self) -> nn.Module:
        """Switch to evaluation mode."""
        return self._model.eval()

    def __exit__(self, *_: object) -> None:
        """Restore each module's mode."""
        for module, training in self._training.items():
            module.training = training


def forward(model: nn.Module, inputs: Tensor) -> Tensor:
    """Run the model and find the tensor that a loss is computed from.

    Args:
        model: The model.
        inputs: One batch.

    Returns:
        The output itself, its `logits`, or the first tensor of a tuple.

    Raises:
        ModelError: The output holds no tensor.
        DataError: The model refuses inputs of this shape.
    """
    try:
        output: Any = model(inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{type(model).__name__} does not accept inputs of shape {tuple(inputs.shape)} "
            f"({inputs.dtype}): {first_line}"
        ) from error
    found = getattr(output, "logits", output)
    if isinstance(found, (tuple, list)) and found:
        found = found[0]
    if not isinstance(found, Tensor):
        raise ModelError(f"the model returns {type(output).__name__}; a tensor is needed")
    return found


def find_layers(model: nn.Module, batch: Batch) -> LayerSurvey:
    """Find the quantizable layers by one forward pass of a single input.

    Args:
        model: The model; unchanged afterwards.
        batch: A batch that the model accepts; its first input is used.

    Returns:
        The layers that ran, in order of their first execution.

    Raises:
        ModelError: No quantizable layer ran, or a weight is NaN or infinite.
    """
    check_finite(dict(model.state_dict()), type(model).__name__)
    candidates: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QUANTIZABLE) and name
    }
    seen: dict[str, Layer] = {}
    handles = [
        module.register_forward_hook(_recorder(name, seen)) for name, module in candidates.items()
    ]
    try:
        with torch.no_grad(), evaluation_mode(model):
            forward(model, batch[0][:1])
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ModelError(
            f"{type(model).__name__} has no layer that can be quantized: looked for "
            + ", ".join(kind.__name__ for kind in QUANTIZABLE)
        )
    layers = tuple(seen.values())
    allocated = sum(layer.weights for layer in layers)
    total = sum(parameter.numel() for parameter in model.parameters())
    return LayerSurvey(layers, total - allocated, tuple(_notes(model, candidates, seen)))


def _recorder(
    name: str, seen: dict[str, Layer]
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, QUANTIZABLE)
        weight = module.weight
        # A convolution applies its whole kernel at every output position, a linear layer its
        # whole matrix to every row: in both each output value costs one weight row of MACs.
        macs = output.numel() * (weight.numel() // weight.shape[0])
        earlier = seen.get(name)
        seen[name] = Layer(
            name=name,
            kind=next(kind for kind in QUANTIZABLE if isinstance(module, kind)).__name__.lower(),
            weight_shape=tuple(weight.shape),
            macs=macs + (earlier.macs if earlier else 0),
            input_shape=tuple(inputs[0].shape),
            output_shape=tuple(output.shape),
        )

    return record


def _notes(model: nn.Module, candidates: dict[str, nn.Module], seen: dict[str, Layer]) -> list[str]:
    notes = [
        f"layer {name} did not run on the given data and is left in float"
        for name in candidates
        if name not in seen
    ]
    inside = set(candidates.values())
    for name, module in model.named_modules():
        own = sum(p.numel() for p in module.parameters(recurse=False) if p.ndim >= 2)
        if own and module not in inside:
            notes.append(
                f"module {name or type(model).__name__} ({type(module).__name__}) has {own:,} "
                "weights but is of no kind that can be quantized; it is left in float"
            )
    return notes

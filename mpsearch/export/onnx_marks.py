"""Marking where a model's weights and inputs are to be quantized, for the ONNX exporter to keep.

Each weight and each input goes through an operator of a domain of its own, which the exporter
copies into the graph and, not knowing it, neither folds nor fuses. `mpsearch.export.onnx_rewrite`
puts stored codes and QuantizeLinear/DequantizeLinear pairs in their place.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mpsearch.errors import DependencyError, InputError
from mpsearch.formats import Option
from mpsearch.models.inputs import intercept
from mpsearch.models.kinds import WeightSite, WeightSites

__all__ = ["DOMAIN", "INPUT", "WEIGHT", "mark"]

DOMAIN = "mpsearch"
WEIGHT = "Weight"
INPUT = "Input"


def mark(model: nn.Module, sites: WeightSites, choice: Mapping[str, Option]) -> ExitStack:
    """Mark the weights of all layers of an allocation, and the inputs that it quantizes.

    Args:
        model: The model; changed until the stack is closed.
        sites: Its weights.
        choice: Layer -> option.

    Returns:
        What takes the marks off; open until it is closed.

    Raises:
        DependencyError: This torch cannot put foreign operators into an ONNX graph.
        InputError: A layer keeps its weight, or receives its input, where no mark can be put.
    """
    if not hasattr(torch.onnx, "ops"):
        raise DependencyError(f"export to ONNX needs torch 2.8 or newer, not {torch.__version__}")
    with ExitStack() as undo:
        for layer, option in choice.items():
            site = sites.find(model, layer)
            for use in site.uses:
                if not option.activation.is_float and use.takes != "nothing":
                    if use.takes == "operand":
                        raise InputError(
                            f"layer {use.layer}: its input appears inside a call of {use.module}, "
                            "where ONNX export cannot quantize it; give it an option for weights "
                            f"alone, such as {option.weight.name}"
                        )
                    undo.callback(intercept(model, site, use, _Mark(INPUT, use.layer)))
            _mark_weight(model, site, undo)
        return undo.pop_all()


def _mark_weight(model: nn.Module, site: WeightSite, undo: ExitStack) -> None:
    if site.flattened:
        raise InputError(
            f"layer {site.name} keeps its weight in a buffer of several ({site.kind}), which "
            "ONNX export cannot quantize; leave it float"
        )
    for name in site.parameters:
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        # Not checked: outside an export the operator computes nothing.
        parametrize.register_parametrization(module, leaf, _Mark(WEIGHT, site.name), unsafe=True)
        undo.callback(parametrize.remove_parametrizations, module, leaf, leave_parametrized=False)


class _Mark(nn.Module):
    """Passes a tensor through an operator that says what it is."""

    def __init__(self, kind: str, layer: str) -> None:
        super().__init__()
        self._kind = kind
        self._layer = layer

    def forward(self, values: Tensor, axis: int = -1) -> Tensor:
        """Mark one tensor."""
        del axis
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::{self._kind}",
            (values,),
            {"layer": self._layer},
            dtype=values.dtype,
            shape=values.shape,
            version=1,
        )

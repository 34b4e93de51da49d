"""Rewriting a marked ONNX graph: stored weights, quantized inputs, batch norms folded away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from mpsearch.export.onnx_marks import DOMAIN, INPUT, WEIGHT
from mpsearch.export.onnx_tensors import StoredWeight
from mpsearch.onnx_nodes import constant, rounding

__all__ = ["InputGrid", "MarkedGraph", "WeightUse"]


@dataclass(frozen=True)
class InputGrid:
    """How a layer's input is rounded.

    Attributes:
        element: ONNX tensor type of the codes; FLOAT16 and BFLOAT16 are casts.
        scale: Step of the grid; unused by casts.
        zero_point: Code of zero.
    """

    element: int
    scale: float
    zero_point: int

    @property
    def is_cast(self) -> bool:
        """Whether values are converted without a scale."""
        return self.element in {TensorProto.FLOAT16, TensorProto.BFLOAT16}

    def unsigned(self) -> InputGrid:
        """Shift signed bytes to unsigned ones, which stand for the same values.

        Returns:
            The grid with codes from 0; itself where it is of another type.
        """
        if self.element != TensorProto.INT8:
            return self
        return InputGrid(TensorProto.UINT8, self.scale, self.zero_point + 128)


@dataclass
class WeightUse:
    """A marked weight and what the graph does with it.

    Attributes:
        layer: Name of the layer.
        mark: The marking node.
        transposed: Whether every reader wants the matrix the other way round.
        factor: Multiplier of each output channel from a batch norm that was folded; None for none.
    """

    layer: str
    mark: NodeProto
    transposed: bool = False
    factor: Tensor | None = None
    readers: list[NodeProto] = field(default_factory=list)


class MarkedGraph:
    """The graph of a marked model while it is rewritten."""

    def __init__(self, model: ModelProto) -> None:
        """Index the graph.

        Args:
            model: From the exporter, with marks; changed.
        """
        self.model = model
        self.graph = model.graph
        self.constants = {tensor.name: tensor for tensor in self.graph.initializer}
        self._inputs: dict[tuple[str, InputGrid], str] = {}

    def readers(self, name: str) -> list[NodeProto]:
        """Find the nodes that read a tensor.

        Args:
            name: Its name.

        Returns:
            The nodes, in order.
        """
        return [node for node in self.graph.node if name in node.input]

    def weights(self, foldable: Callable[[str], bool]) -> list[WeightUse]:
        """Find the marked weights, drop transposes of them, and fold batch norms that follow.

        Args:
            foldable: Whether a layer's stored weight can take a factor per output channel.

        Returns:
            The weights, one entry for each mark.
        """
        found = []
        marks = [n for n in self.graph.node if (n.domain, n.op_type) == (DOMAIN, WEIGHT)]
        for node in marks:
            use = WeightUse(_layer(node), node, readers=self.readers(node.output[0]))
            found.append(use)
            if sum(other.input[0] == node.input[0] for other in marks) > 1:
                continue  # stored once for several readers, so as it is
            if use.readers and all(_swaps_matrix(reader) for reader in use.readers):
                use.transposed = True
                for transpose in use.readers:
                    self._replace_tensor(transpose.output[0], node.output[0])
                    self.graph.node.remove(transpose)
                use.readers = self.readers(node.output[0])
            if foldable(use.layer) and len(use.readers) == 1:
                use.factor = self._fold(use.layer, use.readers[0])
        return found

    def put_weight(self, use: WeightUse, stored: StoredWeight) -> None:
        """Put a stored weight in the place of its mark.

        Args:
            use: The mark.
            stored: The weight; added once, however often it is used.
        """
        place = list(self.graph.node).index(use.mark)
        for offset, node in enumerate(stored.nodes):
            if all(node.name != known.name for known in self.graph.node):
                self.graph.node.insert(place + offset, node)
        for tensor in stored.initializers:
            self.constants.setdefault(tensor.name, tensor)
        self._replace_tensor(use.mark.output[0], stored.output)
        self.graph.node.remove(use.mark)
        for reader in use.readers:
            reader.name = self._free_name(use.layer)

    def put_inputs(self, grids: Mapping[str, InputGrid]) -> None:
        """Put QuantizeLinear and DequantizeLinear in the place of every marked input.

        Args:
            grids: Layer -> how its input is rounded.
        """
        for node in [n for n in self.graph.node if (n.domain, n.op_type) == (DOMAIN, INPUT)]:
            layer, grid = _layer(node), grids[_layer(node)]
            key = node.input[0], grid
            if key not in self._inputs:
                place = list(self.graph.node).index(node)
                nodes = self._rounding(node.input[0], layer, grid)
                for offset, each in enumerate(nodes):
                    self.graph.node.insert(place + offset, each)
                self._inputs[key] = nodes[-1].output[0]
            self._replace_tensor(node.output[0], self._inputs[key])
            self.graph.node.remove(node)

    def finish(self) -> ModelProto:
        """Drop what nothing uses: old weights, notes of the exporter, the domain of the marks.

        Returns:
            The model.
        """
        for node in self.graph.node:
            del node.metadata_props[:]
            node.ClearField("doc_string")
        read = {name for node in self.graph.node for name in node.input}
        read |= {output.name for output in self.graph.output}
        del self.graph.initializer[:]
        self.graph.initializer.extend(t for n, t in self.constants.items() if n in read)
        for tensor in self.graph.initializer:
            del tensor.metadata_props[:]
            tensor.ClearField("doc_string")
        del self.graph.value_info[:]
        del self.graph.metadata_props[:]
        del self.model.metadata_props[:]
        kept = [each for each in self.model.opset_import if each.domain != DOMAIN]
        del self.model.opset_import[:]
        self.model.opset_import.extend(kept)
        return self.model

    def _free_name(self, wanted: str) -> str:
        """Give a name to one more reader of a weight, the layer's own to the first."""
        taken = {node.name for node in self.graph.node}
        count = 1
        while (name := wanted if count == 1 else f"{wanted}:{count}") in taken:
            count += 1
        return name

    def _rounding(self, source: str, layer: str, grid: InputGrid) -> list[NodeProto]:
        rounded, back = f"{layer}.input_codes", f"{layer}.input"
        if grid.is_cast:
            return [
                helper.make_node("Cast", [source], [rounded], name=rounded, to=grid.element),
                helper.make_node("Cast", [rounded], [back], name=back, to=TensorProto.FLOAT),
            ]
        scale, zero = f"{layer}.input_scale", f"{layer}.input_zero_point"
        self.constants[scale] = constant(scale, np.float32(grid.scale))
        self.constants[zero] = helper.make_tensor(zero, grid.element, (), [grid.zero_point])
        return rounding(source, (scale, zero), rounded, back)

    def _fold(self, layer: str, reader: NodeProto) -> Tensor | None:
        """Fold the batch norm that alone reads a convolution's output into its bias, if any."""
        after = self.readers(reader.output[0]) if reader.op_type == "Conv" else []
        outputs = {output.name for output in self.graph.output}
        if len(after) != 1 or after[0].op_type != "BatchNormalization":
            return None
        norm = after[0]
        if reader.output[0] in outputs or any(n not in self.constants for n in norm.input[1:]):
            return None
        gain, shift, mean, variance = (self._values(name) for name in norm.input[1:])
        epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
        factor = gain / np.sqrt(variance + epsilon)
        own = len(reader.input) > 2 and reader.input[2]
        if own and own not in self.constants:
            return None
        bias = shift + ((self._values(own) if own else 0.0) - mean) * factor
        name = f"{layer}.folded_bias"
        self.constants[name] = constant(name, bias.astype(np.float32))
        inputs = [*reader.input[:2], name]
        del reader.input[:]
        reader.input.extend(inputs)
        self._replace_tensor(norm.output[0], reader.output[0])
        self.graph.node.remove(norm)
        return torch.from_numpy(factor).float()

    def _values(self, name: str) -> NDArray[np.float64]:
        return numpy_helper.to_array(self.constants[name]).astype(np.float64)

    def _replace_tensor(self, old: str, new: str) -> None:
        """Let everything that reads one tensor read another; a graph output keeps its name."""
        if any(output.name == old for output in self.graph.output):
            old, new = new, old
            for node in self.graph.node:
                for place, name in enumerate(node.output):
                    if name == old:
                        node.output[place] = new
        for node in self.graph.node:
            for place, name in enumerate(node.input):
                if name == old:
                    node.input[place] = new


def _layer(mark: NodeProto) -> str:
    return next(str(a.s, "utf-8") for a in mark.attribute if a.name == "layer")


def _swaps_matrix(node: NodeProto) -> bool:
    if node.op_type != "Transpose":
        return False
    permutation = next((list(a.ints) for a in node.attribute if a.name == "perm"), [1, 0])
    return permutation == [1, 0]

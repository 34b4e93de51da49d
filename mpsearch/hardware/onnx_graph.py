"""A model as the graph that ONNX Runtime runs: operations, who owns each, and the tensors between.

Batch norms are folded by the exporter, constants by ONNX Runtime. A clipping activation function
becomes part of the operation before it when nothing else reads that one: the runtime computes it
inside the kernel, or drops it where the range of the rounded output clips already. Every other
operation without weights belongs to the latest layer that its inputs come from, and is computed in
that layer's arithmetic.
"""

from __future__ import annotations

import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mpsearch.errors import DependencyError, ModelError
from mpsearch.models.kinds import weight_sites
from mpsearch.models.running import evaluation_mode

__all__ = ["Operation", "RuntimeGraph", "TensorFacts", "onnx_modules", "runtime_graph"]

OPSET = 17
MULTIPLY = {"Conv": "conv2d", "Gemm": "linear", "MatMul": "linear"}
"""Operations that can hold a layer's weight."""
FUSED = {"Relu", "Clip"}
"""Activation functions that ONNX Runtime computes inside the kernel before them."""
NARROW = {
    "Add",
    "AveragePool",
    "Concat",
    "Flatten",
    "GlobalAveragePool",
    "MaxPool",
    "Reshape",
    "Transpose",
    *FUSED,
}
"""Operations without weights that ONNX Runtime has int8 kernels for; others stay in float."""


@dataclass(frozen=True)
class TensorFacts:
    """An activation of the float model on the calibration input.

    Attributes:
        values: How many values it has.
        low: Smallest of them.
        high: Largest of them.
    """

    values: int
    low: float
    high: float


@dataclass(frozen=True)
class Operation:
    """One operation of the graph, with the activation function fused into it.

    Attributes:
        number: Position in execution order.
        kind: `conv2d`, `linear`, or the ONNX operator in small letters: `add`, `maxpool` …
        layer: The layer whose weight it holds; None for operations without weights.
        owner: The layer whose arithmetic it is computed in; None: always float.
        inputs: Numbers of the operations that make its inputs; -1 for the model's input.
        output: Name of the tensor it leaves.
        size: Facts of that tensor.
    """

    number: int
    kind: str
    layer: str | None
    owner: str | None
    inputs: tuple[int, ...]
    output: str
    size: TensorFacts


@dataclass(frozen=True)
class RuntimeGraph:
    """The float model in ONNX, with its operations.

    Attributes:
        proto: The `onnx.ModelProto`. Node and tensor names begin with `op<number>/`.
        operations: In execution order.
        input: Name of the model's input.
        entered: Facts of the model's input.
        example: The calibration input, float32.
    """

    proto: Any
    operations: tuple[Operation, ...]
    input: str
    entered: TensorFacts
    example: np.ndarray[Any, np.dtype[np.float32]]

    @property
    def layers(self) -> list[str]:
        """Layers in execution order."""
        return [operation.layer for operation in self.operations if operation.layer]

    def owner_of(self, number: int) -> str | None:
        """Name the layer in whose arithmetic an operation runs.

        Args:
            number: Number of the operation; -1 for the model's input.

        Returns:
            The layer; None: always in float.
        """
        return None if number < 0 else self.operations[number].owner

    def facts_of(self, number: int) -> TensorFacts:
        """Describe the tensor that an operation leaves.

        Args:
            number: Number of the operation; -1 for the model's input.

        Returns:
            Its facts.
        """
        return self.entered if number < 0 else self.operations[number].size


def onnx_modules() -> tuple[ModuleType, ModuleType]:
    """Import ONNX and ONNX Runtime.

    Returns:
        Both modules.

    Raises:
        DependencyError: One is missing.
    """
    try:
        import onnx
        import onnxruntime  # type: ignore[import-untyped]
    except ImportError as error:
        raise DependencyError(
            f"{error.name} is not installed; run: pip install 'mpsearch[onnx]' onnxruntime"
        ) from error
    onnxruntime.set_default_logger_severity(3)
    return onnx, onnxruntime


def runtime_graph(model: nn.Module, inputs: Tensor) -> RuntimeGraph:
    """Export a model and describe the graph that will be run.

    Args:
        model: The model; unchanged afterwards.
        inputs: One batch, float32; also calibrates the ranges of the activations.

    Returns:
        The graph.

    Raises:
        ModelError: The model cannot be exported, or a layer cannot be found in the graph.
        DependencyError: ONNX or ONNX Runtime is missing.
    """
    onnx, runtime = onnx_modules()
    proto = onnx.load_from_string(_exported(model, inputs))
    _name_layers(proto, _call_order(model, inputs))
    proto = _simplified(onnx, runtime, proto)
    return _described(onnx, runtime, proto, inputs)


def _exported(model: nn.Module, inputs: Tensor) -> bytes:
    with (
        tempfile.TemporaryDirectory() as folder,
        evaluation_mode(model),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        # The tracing exporter is announced to go. It alone folds batch norms and needs no further
        # package; when it goes, the export fails here and says so.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                model,
                (inputs,),
                str(path := Path(folder) / "model.onnx"),
                dynamo=False,
                opset_version=OPSET,
                input_names=["input"],
                output_names=["output"],
            )
        except Exception as error:  # whatever the exporter meets in a user's model
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ModelError(
                f"{type(model).__name__} cannot be exported to ONNX: {reason}"
            ) from error
        return path.read_bytes()


def _call_order(model: nn.Module, inputs: Tensor) -> list[str]:
    """Return layers in the order in which their weights multiply."""
    sites = weight_sites(model)
    by_module = {use.module: site.name for site in sites.by_name.values() for use in site.uses}
    called: list[str] = []

    def hook(name: str) -> Any:  # noqa: ANN401
        return lambda *_: called.append(name)

    modules = dict(model.named_modules())
    handles = [
        modules[path].register_forward_pre_hook(hook(layer))
        for path, layer in by_module.items()
        if isinstance(modules[path], (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))
    ]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    repeated = sorted({name for name in called if called.count(name) > 1})
    if repeated:
        raise ModelError(
            f"layer {repeated[0]} runs {called.count(repeated[0])} times in one forward pass; the "
            "graph's cost per layer is not defined then"
        )
    return called


def _name_layers(proto: Any, layers: list[str]) -> None:  # noqa: ANN401
    """Give the nodes that multiply by a weight the name of their layer: both are in trace order."""
    constants = {each.name for each in proto.graph.initializer}
    derived = set(constants)
    found = []
    for node in proto.graph.node:
        if node.input and all(name in derived or not name for name in node.input):
            derived.update(node.output)
        elif node.op_type in MULTIPLY and node.input[1] in derived:
            found.append(node)
    if len(found) != len(layers):
        raise ModelError(
            f"the exported graph multiplies by {len(found)} weights, the model runs "
            f"{len(layers)} convolutions and linear layers; they cannot be matched"
        )
    for node, layer in zip(found, layers, strict=True):
        node.name = f"layer:{layer}"


def _simplified(onnx: ModuleType, runtime: ModuleType, proto: Any) -> Any:  # noqa: ANN401
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "basic.onnx"
        options.optimized_model_filepath = str(path)
        runtime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        return onnx.load(path)


def _described(onnx: ModuleType, runtime: ModuleType, proto: Any, inputs: Tensor) -> RuntimeGraph:  # noqa: ANN401
    graph = proto.graph
    example = inputs.detach().cpu().numpy().astype(np.float32)
    facts = _facts(onnx, runtime, proto, example)
    operations: list[Operation] = []
    maker = {graph.input[0].name: -1}
    readers: dict[str, int] = {}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    renamed: dict[str, str] = {}
    for node in graph.node:
        entering = [name for name in node.input if name in maker]
        number = len(operations)
        before = operations[maker[entering[0]]] if entering and maker[entering[0]] >= 0 else None
        if (
            node.op_type in FUSED
            and before is not None
            and before.output == renamed[entering[0]]
            and readers[entering[0]] == 1
        ):
            number = before.number
            name = f"op{number}/fused"
            operations[number] = replace(before, output=name, size=facts[node.output[0]])
        else:
            name = f"op{number}/out"
            operations.append(
                _operation(node, number, [maker[x] for x in entering], operations, name, facts)
            )
        node.name = f"op{number}/{node.op_type}"
        maker[node.output[0]] = number
        renamed[node.output[0]] = name
    for node in graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                names[position] = renamed.get(name, name)
    outputs = [renamed[each.name] for each in graph.output]
    del graph.value_info[:]
    for each, name in zip(graph.output, outputs, strict=True):
        each.name = name
    entry = graph.input[0].name
    return RuntimeGraph(proto, tuple(operations), entry, facts[entry], example)


def _operation(
    node: Any,  # noqa: ANN401
    number: int,
    makers: list[int],
    before: list[Operation],
    output: str,
    facts: dict[str, TensorFacts],
) -> Operation:
    layer = node.name.removeprefix("layer:") if node.name.startswith("layer:") else None
    owner = layer
    if layer is None and node.op_type in NARROW:
        sources = [m for m in makers if m >= 0 and before[m].owner]
        # Layers are numbered in execution order, so the latest owner is the one numbered highest.
        latest = max(sources, key=lambda m: _position(before, before[m].owner), default=None)
        owner = None if latest is None else before[latest].owner
    return Operation(
        number=number,
        kind=MULTIPLY[node.op_type] if layer else node.op_type.lower(),
        layer=layer,
        owner=owner,
        inputs=tuple(makers),
        output=output,
        size=facts[node.output[0]],
    )


def _position(operations: list[Operation], layer: str | None) -> int:
    return next(each.number for each in operations if each.layer == layer)


def _facts(
    onnx: ModuleType,
    runtime: ModuleType,
    proto: Any,  # noqa: ANN401
    example: np.ndarray[Any, np.dtype[np.float32]],
) -> dict[str, TensorFacts]:
    """Run the float graph once with every tensor as an output."""
    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    names = [name for node in watched.graph.node for name in node.output if name]
    shown = {each.name for each in watched.graph.output}
    watched.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in names if name not in shown
    )
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(
        watched.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    entry = watched.graph.input[0].name
    values = session.run(names, {entry: example})
    return {
        name: TensorFacts(int(each.size), float(each.min()), float(each.max()))
        for name, each in zip([entry, *names], [example, *values], strict=True)
    }

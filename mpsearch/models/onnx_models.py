"""`FILE.onnx`: models in ONNX, converted by onnx2torch once they were checked."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mpsearch.errors import DependencyError, ModelError
from mpsearch.models.named import (
    MAX_INPUTS,
    InputForm,
    NamedModel,
    argument_name,
    fixed_batch_note,
)
from mpsearch.models.onnx_opset import lower_opset
from mpsearch.models.onnx_scan import scan_onnx
from mpsearch.models.specs import ModelSpec, SpecPolicy, file_type
from mpsearch.models.weights_file import check_finite

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["load_onnx"]


@file_type(".onnx")
def load_onnx(spec: ModelSpec, policy: SpecPolicy) -> NamedModel:
    """Load an ONNX file as a torch module; one of several inputs takes them by their names.

    Layers are called by the names of their nodes, with every character but letters, digits and
    underscores replaced. Products with a stored matrix become linear layers.

    Args:
        spec: The path.
        policy: Has to allow paths.

    Returns:
        The model.

    Raises:
        DependencyError: onnx or onnx2torch is not installed.
        ModelError: The file is refused, or has an operator that onnx2torch cannot convert.
    """
    path = policy.path(spec.body)
    try:
        import onnx

        convert = importlib.import_module("onnx2torch").convert
    except ImportError as error:
        raise DependencyError(
            f"{spec.text} needs onnx and onnx2torch, which are not installed; "
            "run: pip install 'mpsearch[onnx]'"
        ) from error
    if scan_onnx(path).has_functions:
        raise ModelError(f"{path} has functions of its own, which onnx2torch cannot convert")
    try:
        proto = onnx.load_model_from_string(path.read_bytes())
        form, notes = _input_form(spec.body, proto)
        lower_opset(proto)
        _refuse_unknown_operators(path, proto)
        _rename_nodes(proto)
        module: nn.Module = convert(proto)
        _name_inputs(module, [each.name for each in _entering(proto)])
        _products_as_linear(module)
    except ModelError:
        raise
    # Parser and converter raise every kind of error on a broken file.
    except Exception as error:
        first_line = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ModelError(
            f"{path} cannot be converted: {type(error).__name__}: {first_line[:300]}"
        ) from error
    check_finite(dict(module.state_dict()), str(path))
    return NamedModel(spec.text, module, form, notes, policy.limits)


def _entering(proto: ModelProto) -> list[Any]:
    stored = {each.name for each in proto.graph.initializer}
    return [each for each in proto.graph.input if each.name not in stored]


def _name_inputs(module: Any, names: list[str]) -> None:  # noqa: ANN401 - a GraphModule
    """Let the inputs of a model that has several be given by the names of the file."""
    if len(names) < 2:
        return
    entering = [node for node in module.graph.nodes if node.op == "placeholder"]
    arguments = [argument_name(name) for name in names]
    if len(set(arguments)) < len(arguments) or len(entering) != len(arguments):
        raise ModelError(f"the inputs {', '.join(names)[:200]} cannot be told apart by name")
    for node, argument in zip(entering, arguments, strict=True):
        node.target = argument
    module.recompile()


def _input_form(path: str, proto: ModelProto) -> tuple[InputForm | None, tuple[str, ...]]:
    entered = _entering(proto)
    if not 1 <= len(entered) <= MAX_INPUTS:
        raise ModelError(f"{path} has {len(entered)} inputs; 1 to {MAX_INPUTS} are taken")
    tensor = entered[0].type.tensor_type
    sizes = [each.dim_value if each.HasField("dim_value") else 0 for each in tensor.shape.dim]
    notes: tuple[str, ...] = ()
    if sizes and sizes[0] > 0:
        notes = (fixed_batch_note(path, sizes[0]),)
    # Integers may be token ids, but the file does not say below what.
    if len(entered) > 1 or len(sizes) < 2 or min(sizes[1:]) <= 0 or tensor.elem_type != 1:
        return None, notes
    return InputForm(tuple(sizes[1:])), notes


def _refuse_unknown_operators(path: Path, proto: ModelProto) -> None:
    get_converter = importlib.import_module("onnx2torch.node_converters").get_converter
    opsets = {each.domain: each.version for each in proto.opset_import}
    unknown = {}
    for node in proto.graph.node:
        version = opsets.get(node.domain, 0)
        try:
            get_converter(node.op_type, version, node.domain)
        except NotImplementedError:
            unknown[f"{node.domain}.{node.op_type}".lstrip(".")[:60]] = version
    if unknown:
        listed = ", ".join(f"{name} (opset {version})" for name, version in unknown.items())
        raise ModelError(
            f"{path} uses operators that onnx2torch cannot convert: {listed[:300]}; export the "
            "model without them or for opset 17 and less, or give it as torch module or .pt2"
        )


def _rename_nodes(proto: ModelProto) -> None:
    """Give every node a name of plain characters.

    torch.fx writes these names into Python code that it then runs, so a quote in one would run
    code of the file's author.
    """
    taken: set[str] = set()
    for number, node in enumerate(proto.graph.node):
        plain = re.sub(r"[^A-Za-z0-9_]+", "_", node.name[:200]).strip("_") or f"node_{number}"
        if not plain[0].isalpha():
            plain = f"node_{plain}"
        if plain in taken:
            plain = f"{plain}_node_{number}"
        taken.add(plain)
        node.name = plain


def _products_as_linear(module: Any) -> None:  # noqa: ANN401 - a GraphModule
    """Replace products of the input with a stored matrix by linear layers."""
    product_type = importlib.import_module("onnx2torch.node_converters.matmul").OnnxMatMul
    for node in module.graph.nodes:
        if node.op != "call_module" or len(node.args) != 2:
            continue
        product = module.get_submodule(node.target)
        values, stored = node.args
        if not isinstance(product, product_type) or stored.op != "get_attr":
            continue
        matrix = module.get_buffer(stored.target)
        if matrix.ndim != 2 or not matrix.is_floating_point():
            continue
        rows, columns = matrix.shape
        linear = nn.Linear(rows, columns, bias=False, dtype=matrix.dtype)
        with torch.no_grad():
            linear.weight.copy_(matrix.T)
        module.set_submodule(node.target, linear)
        node.args = (values,)
        if not stored.users:
            module.graph.erase_node(stored)
            parent, _, name = stored.target.rpartition(".")
            delattr(module.get_submodule(parent), name)
    module.recompile()

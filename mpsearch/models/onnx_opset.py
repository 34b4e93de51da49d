"""Writing operators of newer ONNX versions as older ones that onnx2torch knows and mean the same.

Current exporters write opset 18 and up; onnx2torch 1.5 converts up to 17. Most operators changed in
the types that they allow alone. The reductions got their axes as an input where they had an
attribute (https://onnx.ai/onnx/operators, "Differences with previous version").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

__all__ = ["lower_opset"]

KNOWN = 17
_ONLY_MORE_TYPES = {
    "Abs",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Dropout",
    "Equal",
    "Flatten",
    "GlobalAveragePool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "MaxPool",
    "Reshape",
    "Shape",
    "Squeeze",
    "Transpose",
    "Unsqueeze",
}
_REDUCTIONS = {
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
}


def lower_opset(proto: ModelProto) -> None:
    """Declare a model as opset 17, in place, if all of its operators can be written in that.

    Args:
        proto: The model; unchanged where an operator has no such form.
    """
    import onnx

    declared = [each for each in proto.opset_import if each.domain in {"", "ai.onnx"}]
    if len(declared) != 1 or declared[0].version <= KNOWN:
        return
    if declared[0].version > onnx.defs.onnx_opset_version():
        return
    constants = _constants(proto)
    changed = {}
    for number, node in enumerate(proto.graph.node):
        found = _lowered(node, declared[0].version, constants)
        if found is None:
            return
        changed[number] = found
    for number, node in changed.items():
        proto.graph.node[number].CopyFrom(node)
    declared[0].version = KNOWN


def _constants(proto: ModelProto) -> dict[str, Any]:
    """Tensors by name, as stored or made by constant operators."""
    found = {each.name: each for each in proto.graph.initializer}
    for node in proto.graph.node:
        if (
            node.op_type == "Constant"
            and len(node.attribute) == 1
            and node.attribute[0].HasField("t")
        ):
            found[node.output[0]] = node.attribute[0].t
    return found


def _lowered(node: NodeProto, version: int, constants: dict[str, Any]) -> NodeProto | None:
    """Give an operator as opset 17 has it.

    Returns:
        A copy of it, or None where there is none that means the same.
    """
    import onnx
    from onnx import helper, numpy_helper

    made = onnx.NodeProto()
    made.CopyFrom(node)
    if node.domain not in {"", "ai.onnx"}:
        return made
    try:
        onnx.defs.get_schema(node.op_type, KNOWN)
        current = onnx.defs.get_schema(node.op_type, version).since_version
    except onnx.defs.SchemaError:
        return None
    attributes = {each.name: each for each in node.attribute}
    if node.op_type == "Reshape" and len(node.input) > 1:
        shape = constants.get(node.input[1])
        if shape is not None and 0 not in numpy_helper.to_array(shape):
            del made.attribute[:]  # allowzero says what a zero means, and there is none
    if current <= KNOWN:
        return made
    if node.op_type in _ONLY_MORE_TYPES:
        dilations = attributes.get("dilations")
        dilated = dilations is not None and any(n != 1 for n in dilations.ints)
        return None if node.op_type == "AveragePool" and dilated else made
    if node.op_type not in _REDUCTIONS:
        return None
    noop = attributes.get("noop_with_empty_axes")
    if noop is not None and noop.i != 0:
        return None
    del made.attribute[:]
    made.attribute.extend(a for name, a in attributes.items() if name != "noop_with_empty_axes")
    if len(node.input) > 1 and node.input[1]:
        axes = constants.get(node.input[1])
        if axes is None:
            return None
        made.attribute.append(helper.make_attribute("axes", numpy_helper.to_array(axes).tolist()))
        del made.input[1:]
    return made

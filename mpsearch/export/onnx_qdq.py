"""A model as an ONNX file with its weights stored in their formats and its inputs quantized.

The form is that of QDQ models: codes in initializers behind DequantizeLinear, activations through
QuantizeLinear and DequantizeLinear with fixed scales (ONNX Runtime documentation, "Quantize ONNX
models"; Jacob et al. 2018, arXiv 1712.05877). A runtime fuses these into its integer kernels where
it has them, and computes in float where it has none; the values agree with the fake-quantized
model either way.
"""

from __future__ import annotations

import copy
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mpsearch.engine.activations import MINMAX, settled
from mpsearch.engine.marking import refuse_quantized
from mpsearch.engine.quantizer import Ranges
from mpsearch.errors import DependencyError, InputError, ModelError
from mpsearch.export.onnx_marks import mark
from mpsearch.formats import Format, Half, Option, Scaled, parse_option
from mpsearch.models.fields import FieldTensor, unpack_fields
from mpsearch.models.kinds import WeightSites, weight_sites
from mpsearch.models.running import evaluation_mode
from mpsearch.process_wide import SILENT_ERRORS, ProcessWide
from mpsearch.ranges import saved_ranges
from mpsearch.schemas import Allocation
from mpsearch.schemas.document import write_atomically

if TYPE_CHECKING:
    from onnx import ModelProto

    from mpsearch.export.onnx_rewrite import InputGrid

__all__ = ["OnnxExport", "export_onnx_qdq", "onnx_qdq_model"]

INSTALL = "pip install 'mpsearch[onnx]'"
PROTOBUF_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class OnnxExport:
    """What was written.

    Attributes:
        path: The file.
        size: Bytes of the file.
        weights: Bytes in it that hold the weights of layers, scales and zero points included.
        fixed: The rest: biases, norms, scales of activations, and the graph itself.
        opset: Version of the operator set.
        batch: Whether the first axis of the input may have any length.
    """

    path: Path
    size: int
    weights: int
    opset: int
    batch: bool

    @property
    def fixed(self) -> int:
        """Bytes that no option changes: biases, norms, scales of activations, the graph."""
        return self.size - self.weights


def export_onnx_qdq(
    module: nn.Module,
    example_input: Tensor,
    allocation: Allocation | Mapping[str, str],
    ranges: Ranges | None,
    path: str | Path,
    *,
    signed_inputs: bool = False,
) -> OnnxExport:
    """Write a model with an allocation as an executable ONNX QDQ file.

    Args:
        module: The float model; not changed.
        example_input: Inputs that it accepts; two or more along the first axis let the file take
            any number of them.
        allocation: An allocation, or layer -> option. Layers that it does not name stay float.
        ranges: Calibrated input ranges by layer; None: those that the allocation carries.
        path: Where to write; missing folders are made.
        signed_inputs: As in `onnx_qdq_model`.

    Returns:
        The path with the sizes of what is in the file.
    """
    model = onnx_qdq_model(module, example_input, allocation, ranges, signed_inputs=signed_inputs)
    content = model.SerializeToString()
    written = write_atomically(path, content)
    shape = model.graph.input[0].type.tensor_type.shape
    return OnnxExport(
        written,
        len(content),
        weight_bytes(model),
        model.opset_import[0].version,
        bool(shape.dim) and not shape.dim[0].HasField("dim_value"),
    )


def onnx_qdq_model(
    module: nn.Module,
    example_input: Tensor,
    allocation: Allocation | Mapping[str, str],
    ranges: Ranges | None = None,
    *,
    signed_inputs: bool = False,
) -> ModelProto:
    """Build the ONNX model that `export_onnx_qdq` writes.

    Args:
        module: The float model; not changed.
        example_input: Inputs that it accepts.
        allocation: An allocation, or layer -> option.
        ranges: Calibrated input ranges by layer; None: those that the allocation carries.
        signed_inputs: Store symmetric bytes of activations as INT8, which TensorRT asks for. They
            are UINT8 with the zero point 128 otherwise, the same values: ONNX Runtime 1.31 turns
            them into that anyway on x86, and fails to load a model where one stands behind a
            transpose.

    Returns:
        The model, checked by onnx.

    Raises:
        DependencyError: onnx or onnxscript is missing.
        ModelError: torch cannot export the model, or it is larger than one ONNX file may be.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401 - torch.onnx works with it

        from mpsearch.export.onnx_rewrite import MarkedGraph
        from mpsearch.export.onnx_tensors import least_opset, store_weight
    except ImportError as error:
        raise DependencyError(
            f"export to ONNX needs {error.name}, which is not installed; run: {INSTALL}"
        ) from error
    refuse_quantized(module)
    layers = allocation.layers if isinstance(allocation, Allocation) else allocation
    if ranges is None:
        ranges = saved_ranges(allocation) if isinstance(allocation, Allocation) else {}
    marked = copy.deepcopy(module).cpu()
    sites = weight_sites(marked)
    choice = _complete(marked, sites, layers)
    weights = {name: marked.get_parameter(s.parameters[0]) for name, s in sites.by_name.items()}
    grids = _input_grids(marked, sites, choice, ranges)
    if not signed_inputs:
        grids = {layer: grid.unsigned() for layer, grid in grids.items()}
    opset = max(least_opset(each) for o in choice.values() for each in (o.weight, o.activation))
    with mark(marked, sites, choice):
        graph = MarkedGraph(_exported(marked, example_input.cpu(), opset))
    for use in graph.weights(lambda layer: _takes_factor(choice[layer].weight)):
        site = sites.by_name[use.layer]
        graph.put_weight(
            use,
            store_weight(
                use.layer,
                weights[use.layer],
                choice[use.layer].weight,
                site.layout,
                use.factor,
                transposed=use.transposed,
            ),
        )
    graph.put_inputs(grids)
    model = graph.finish()
    if model.ByteSize() > PROTOBUF_LIMIT:
        raise ModelError(f"the ONNX file would have {model.ByteSize():,} B; 2 GiB is the limit")
    onnx.checker.check_model(model)
    return model


def weight_bytes(model: ModelProto) -> int:
    """Count the bytes that store the weights of layers.

    Args:
        model: What `onnx_qdq_model` made.

    Returns:
        Bytes of their codes, scales and zero points, or of their floats.
    """
    suffixes = (".weight", ".weight_scale", ".weight_zero_point")
    named = {node.name for node in model.graph.node}
    return sum(
        len(tensor.raw_data)
        for tensor in model.graph.initializer
        for suffix in suffixes
        if tensor.name.endswith(suffix) and tensor.name.removesuffix(suffix) in named
    )


def _complete(model: nn.Module, sites: WeightSites, layers: Mapping[str, str]) -> dict[str, Option]:
    """Give every weight its option by its first name; those that are not named stay float."""
    asked = {sites.find(model, layer).name: parse_option(text) for layer, text in layers.items()}
    left = parse_option("float")
    return {
        name: asked.get(name, left)
        for name, site in sites.by_name.items()
        if name in asked or not site.flattened
    }


def _input_grids(
    model: nn.Module, sites: WeightSites, choice: Mapping[str, Option], ranges: Ranges
) -> dict[str, InputGrid]:
    from mpsearch.export.onnx_rewrite import InputGrid
    from mpsearch.export.onnx_tensors import activation_type, tensor_type

    grids = {}
    for layer, option in choice.items():
        asked = option.activation
        for use in sites.find(model, layer).uses:
            if asked.is_float or use.takes == "nothing":
                continue
            if isinstance(asked, Half):
                grids[use.layer] = InputGrid(tensor_type(asked)[0], 1.0, 0)
                continue
            if asked.dynamic:
                raise InputError(
                    f"layer {use.layer}: {asked.name} takes its scales from blocks of values at "
                    "run time, which QuantizeLinear does not"
                )
            if use.layer not in ranges:
                raise InputError(
                    f"layer {use.layer} has no calibrated input range for {asked.name}; give the "
                    "data to calibrate on, or an allocation that carries ranges"
                )
            grids[use.layer] = InputGrid(
                *activation_type(*settled(asked, ranges[use.layer], MINMAX))
            )
    return grids


def _takes_factor(spec: Format) -> bool:
    """Say whether a batch norm can be folded into a stored weight without rounding it anew."""
    return spec.is_float or (isinstance(spec, Scaled) and not spec.per_tensor)


def _exported(model: nn.Module, example: Tensor, opset: int) -> ModelProto:
    axes = {0: torch.export.Dim.AUTO} if example.ndim and len(example) > 1 else {}
    named = isinstance(example, FieldTensor)
    fields = unpack_fields(example) if isinstance(example, FieldTensor) else {}
    try:
        with torch.no_grad(), evaluation_mode(model), _QUIET:
            program = torch.onnx.export(
                model,
                () if named else (example,),
                kwargs=fields or None,
                dynamo=True,
                optimize=True,
                opset_version=opset,
                dynamic_shapes=dict.fromkeys(fields, axes) if named else (axes,),
                verbose=False,
            )
    # The exporter raises every kind of error on a model that it cannot follow.
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = error.__cause__ or error
        raise ModelError(
            f"torch cannot export {type(model).__name__} to ONNX: {type(cause).__name__}: "
            f"{(str(cause).strip().splitlines() or lines or ['no reason given'])[0][:300]}"
        ) from error
    assert program is not None
    proto: ModelProto = program.model_proto
    return proto


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and its advice to other users off the terminal."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            SILENT_ERRORS,
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


_QUIET = ProcessWide(_quiet)

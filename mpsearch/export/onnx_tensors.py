"""Weights in ONNX: which tensor type stores a format, and the initializers and nodes of a weight.

Tensor types and the operators that read them: ONNX operator schemas, DequantizeLinear-21 (4-bit
integers, float8, blocks along an axis) and -25 (2-bit integers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper
from torch import Tensor

from mpsearch.errors import InputError
from mpsearch.export.codes import Codes, encode
from mpsearch.formats import Format, Half, Integer, Minifloat
from mpsearch.models.channels import ChannelLayout
from mpsearch.onnx_nodes import constant, restoring

__all__ = ["StoredWeight", "activation_type", "least_opset", "store_weight", "tensor_type"]

_Arrange = Callable[[NDArray[Any]], NDArray[Any]]

_INTEGERS: dict[tuple[int, bool], tuple[int, type]] = {
    (2, False): (TensorProto.INT2, ml_dtypes.int2),
    (2, True): (TensorProto.UINT2, ml_dtypes.uint2),
    (4, False): (TensorProto.INT4, ml_dtypes.int4),
    (4, True): (TensorProto.UINT4, ml_dtypes.uint4),
    (8, False): (TensorProto.INT8, np.int8),
    (8, True): (TensorProto.UINT8, np.uint8),
    (16, False): (TensorProto.INT16, np.int16),
    (16, True): (TensorProto.UINT16, np.uint16),
}
_FLOATS: dict[tuple[int, int, str], tuple[int, type]] = {
    (4, 3, "fn"): (TensorProto.FLOAT8E4M3FN, ml_dtypes.float8_e4m3fn),
    (5, 2, "ieee"): (TensorProto.FLOAT8E5M2, ml_dtypes.float8_e5m2),
}


def tensor_type(spec: Format) -> tuple[int, type]:
    """Find the ONNX tensor type whose codes are those of a format.

    Args:
        spec: The format.

    Returns:
        The type's number, and numpy's type for it.

    Raises:
        InputError: ONNX has none.
    """
    if isinstance(spec, Half):
        if spec.brain:
            return TensorProto.BFLOAT16, ml_dtypes.bfloat16
        return TensorProto.FLOAT16, np.float16
    found = None
    if isinstance(spec, Integer):
        found = _INTEGERS.get((spec.width, spec.asymmetric))
    elif isinstance(spec, Minifloat):
        grid = spec.grid
        usual = grid.bias == 2 ** (grid.exponent - 1) - 1
        found = _FLOATS.get((grid.exponent, grid.mantissa, grid.specials)) if usual else None
    if found is None:
        raise InputError(f"ONNX has no tensor type for {spec.name}")
    return found


def least_opset(spec: Format) -> int:
    """Name the oldest operator set that has a format's tensor type.

    Args:
        spec: A format of ONNX.

    Returns:
        The version of the default domain.
    """
    return 25 if isinstance(spec, Integer) and spec.width == 2 else 21


def activation_type(spec: Format, low: float, high: float) -> tuple[int, float, int]:
    """Fix scale and zero point of an input from its calibrated range.

    Args:
        spec: An integer or an 8-bit minifloat.
        low: Smallest value to represent.
        high: Largest value to represent.

    Returns:
        The tensor type, the scale, and the zero point.
    """
    number, _ = tensor_type(spec)
    if low == high == 0:
        # Nothing but zeros was seen: the smallest normal scale leaves nothing else representable.
        return number, float(np.finfo(np.float32).tiny), 0
    ends = torch.tensor([[low, high]], dtype=torch.float32)
    params = spec.kernel().from_range(ends[:, :1], ends[:, 1:])
    zero = -float(params[1]) if isinstance(spec, Integer) and spec.asymmetric else 0.0
    return number, float(params[0]), round(zero)


@dataclass
class StoredWeight:
    """What stands in the graph for a weight.

    Attributes:
        output: Name of the float tensor.
        initializers: Codes, scales, zero points.
        nodes: From the codes to the float tensor, in order.
    """

    output: str
    initializers: list[TensorProto] = field(default_factory=list)
    nodes: list[NodeProto] = field(default_factory=list)

    def add(self, values: NDArray[Any], name: str) -> str:
        """Add an initializer.

        Args:
            values: Its values.
            name: Its name.

        Returns:
            The name.
        """
        self.initializers.append(constant(name, values))
        return name

    def restore(self, stored: list[str], **attributes: int) -> None:
        """Add the node that restores the weight from its codes.

        Args:
            stored: Names of codes, scales and zero points.
            **attributes: Where the scales lie.
        """
        self.output = f"{self.output}.float"
        self.nodes.append(restoring(stored, self.output, **attributes))

    def then(self, operator: str, inputs: list[str], label: str, **attributes: object) -> None:
        """Add a node that makes the next form of the weight.

        Args:
            operator: Its type.
            inputs: Names of its inputs.
            label: What it does; part of its name.
            **attributes: Its attributes.
        """
        output = f"{self.output}.{label}"
        self.nodes.append(
            helper.make_node(operator, inputs, [output], name=output, **attributes)  # type: ignore[arg-type]
        )
        self.output = output


def store_weight(
    layer: str,
    weight: Tensor,
    spec: Format,
    layout: ChannelLayout,
    factor: Tensor | None,
    *,
    transposed: bool,
) -> StoredWeight:
    """Put a layer's weight into the graph, rounded to its format and stored in it.

    Args:
        layer: Name of the layer.
        weight: The float weight in its stored shape.
        spec: Its format.
        layout: Where its output channels are.
        factor: Multiplier of each output channel that a batch norm after the layer adds, applied
            to scales, so that the codes stay as they are; None for none.
        transposed: Whether a matrix is wanted the other way round.

    Returns:
        The initializers and nodes.
    """
    stored = StoredWeight(f"{layer}.weight")
    rows = layout.rows(weight.detach().float())
    if spec.is_float or isinstance(spec, Half):
        _store_float(stored, rows, spec, layout, factor, transposed=transposed)
        return stored
    codes = encode(spec, rows)
    if factor is not None:
        codes = _scaled(codes, spec, factor)
    codes = _with_usual_scales(codes)
    _, kind = tensor_type(spec)
    length = codes.values.shape[1]
    if codes.block < length:
        _store_blocks(stored, codes, kind, layout, transposed=transposed)
    else:
        _store_channels(stored, codes, kind, layout, transposed=transposed)
    return stored


def _store_float(
    stored: StoredWeight,
    rows: Tensor,
    spec: Format,
    layout: ChannelLayout,
    factor: Tensor | None,
    *,
    transposed: bool,
) -> None:
    if factor is not None:
        rows = rows * factor.reshape(-1, *[1] * (rows.ndim - 1))
    values = layout.restore(rows if spec.is_float else spec.fake_quantize(rows)).numpy()
    values = values.T if transposed else values
    if spec.is_float:
        stored.add(values, stored.output)
        return
    name = stored.add(values.astype(tensor_type(spec)[1]), stored.output)
    stored.then("Cast", [name], "float", to=TensorProto.FLOAT)


def _store_channels(
    stored: StoredWeight, codes: Codes, kind: type, layout: ChannelLayout, *, transposed: bool
) -> None:
    """One scale per output channel or tensor: codes lie as the weight does, where one axis counts.

    Elsewhere (grouped transposed convolutions) they lie as rows and are rearranged afterwards.
    """
    direct = len(layout.split) == len(layout.stored) and layout.channels == 1
    axis = layout.order[0] if direct else 0
    values = codes.values.reshape(layout.shape)
    array = (layout.restore(values) if direct else values).numpy()
    if transposed:
        array, axis = array.T, 1 - axis
    whole = codes.scales.numel() == 1 and codes.values.shape[0] > 1
    shape = () if whole else (codes.scales.numel(),)
    names = [stored.add(array.astype(kind), stored.output)]
    names += _tables(stored, codes, kind, lambda table: table.reshape(shape))
    stored.restore(names, **({} if whole else {"axis": axis}))
    if not direct:
        _rearrange(stored, layout)


def _store_blocks(
    stored: StoredWeight, codes: Codes, kind: type, layout: ChannelLayout, *, transposed: bool
) -> None:
    """One scale per block along a row: codes lie as rows, unless the weight is a matrix anyway."""
    array = codes.values.numpy()
    names = [stored.add((array.T if transposed else array).astype(kind), stored.output)]
    names += _tables(stored, codes, kind, lambda table: table.T if transposed else table)
    axis = 0 if transposed else 1
    stored.restore(names, axis=axis, block_size=codes.block)
    if not transposed and tuple(array.shape) != layout.stored:
        _rearrange(stored, layout)


def _rearrange(stored: StoredWeight, layout: ChannelLayout) -> None:
    """Bring rows of output channels into the stored shape."""
    back = [layout.order.index(axis) for axis in range(len(layout.order))]
    if back != list(range(len(back))):
        moved = [layout.split[axis] for axis in layout.order]
        shape = stored.add(np.array(moved, np.int64), f"{stored.output}.split")
        stored.then("Reshape", [stored.output, shape], "rows")
        stored.then("Transpose", [stored.output], "order", perm=back)
    shape = stored.add(np.array(layout.stored, np.int64), f"{stored.output}.shape")
    stored.then("Reshape", [stored.output, shape], "stored")


def _tables(stored: StoredWeight, codes: Codes, kind: type, arrange: _Arrange) -> list[str]:
    """Add scales and zero points.

    Signed bytes have their zeros written out, for each weight apart: where ONNX Runtime turns them
    into unsigned ones (session.x64quantprecision) it expects to find them, and refuses shared ones.

    Returns:
        Their names.
    """
    scales = arrange(codes.scales.numpy().astype(np.float32))
    names = [stored.add(scales, f"{stored.output}_scale")]
    zeros = codes.zero_points
    if zeros is None and kind is np.int8:
        zeros = torch.zeros_like(codes.scales)
    if zeros is not None:
        table = arrange(zeros.numpy().astype(kind))
        names.append(stored.add(table, f"{stored.output}_zero_point"))
    return names


def _with_usual_scales(codes: Codes) -> Codes:
    """Give blocks of nothing but zeros the median scale of the others: theirs means nothing.

    Runtimes round a layer's bias to the scale of the input times that of the channel (ONNX Runtime:
    WeightBiasQuantization), which destroys the bias of a channel whose scale is arbitrary.

    Returns:
        The codes with other scales where that changes no value.
    """
    blocks = codes.values != 0
    if codes.zero_points is not None:
        spread = codes.zero_points.repeat_interleave(codes.block, dim=1)[:, : blocks.shape[1]]
        blocks = codes.values != spread
    width = codes.block if codes.scales.shape[0] == blocks.shape[0] else blocks.numel()
    padded = torch.zeros(codes.scales.shape[0], codes.scales.shape[1] * width, dtype=torch.bool)
    flat = blocks.reshape(codes.scales.shape[0], -1)
    padded[:, : flat.shape[1]] = flat
    used = padded.view(*codes.scales.shape, width).any(2)
    if bool(used.all()) or not bool(used.any()):
        return codes
    scales = torch.where(used, codes.scales, codes.scales[used].median())
    return replace(codes, scales=scales)


def _scaled(codes: Codes, spec: Format, factor: Tensor) -> Codes:
    """Multiply output channels by factors of either sign, all codes staying codes."""
    factor = factor.reshape(-1, 1)
    sign = factor.sign()
    if codes.scales.shape[0] != factor.shape[0]:
        raise InputError("a scale per tensor cannot take a factor per channel")
    scales = codes.scales * factor.abs()
    # A channel of factor zero is zero: its codes are, and its scale may be anything but zero.
    scales = torch.where(scales > 0, scales, torch.ones_like(scales))
    if isinstance(spec, Integer) and spec.asymmetric:
        assert codes.zero_points is not None
        top = spec.levels[1]
        zeros = torch.where(sign < 0, top - codes.zero_points, codes.zero_points)
        values = torch.where(sign < 0, top - codes.values, codes.values)
        values = torch.where(sign == 0, zeros[:, :1].expand_as(values), values)
        zeros = torch.where(sign == 0, zeros[:, :1], zeros)
        return replace(codes, values=values, scales=scales, zero_points=zeros)
    return replace(codes, values=codes.values * sign.to(codes.values.dtype), scales=scales)

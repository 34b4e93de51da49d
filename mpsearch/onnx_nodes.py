"""The ONNX nodes that round tensors and restore them: QuantizeLinear and DequantizeLinear.

One scale, or one for every index of an axis; zero points have the type of the codes (ONNX operator
schemas, QuantizeLinear-13 and -21).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["constant", "restoring", "rounding"]


def constant(name: str, values: NDArray[Any] | np.generic) -> TensorProto:
    """Make an initializer.

    Args:
        name: Its name.
        values: Its values; numpy's type decides about its own.

    Returns:
        The initializer.
    """
    return numpy_helper.from_array(np.array(values, order="C"), name)


def rounding(source: str, grid: tuple[str, str], codes: str, restored: str) -> list[NodeProto]:
    """Make the nodes that round a tensor to codes and back.

    Args:
        source: Name of the tensor.
        grid: Names of the scale and of the zero point.
        codes: What to call the codes, and the node that makes them.
        restored: What to call the restored tensor, and its node.

    Returns:
        The two nodes, in order.
    """
    return [
        helper.make_node("QuantizeLinear", [source, *grid], [codes], name=codes),
        restoring([codes, *grid], restored),
    ]


def restoring(stored: list[str], restored: str, **attributes: int) -> NodeProto:
    """Make the node that restores a tensor from codes.

    Args:
        stored: Names of the codes, of the scale, and of the zero point where there is one.
        restored: What to call the restored tensor, and the node.
        **attributes: `axis` and `block_size` where scales lie along an axis.

    Returns:
        The node.
    """
    node = helper.make_node("DequantizeLinear", stored, [restored], name=restored)
    node.attribute.extend(helper.make_attribute(key, each) for key, each in attributes.items())
    return node

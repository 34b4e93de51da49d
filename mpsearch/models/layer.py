"""What is known of a layer after the model was run once."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Layer"]


@dataclass(frozen=True)
class Layer:
    """A weight that can be quantized, with the operation it belongs to.

    Attributes:
        name: The module's qualified name where the module has one weight, such as `layer1.0.conv1`;
            the parameter's where it has several, such as `attention.in_proj_weight`.
        kind: Class of operation: `conv1d`, `conv2d`, `conv3d`, `convtranspose1d` to `3d`, `linear`,
            `embedding`, `attention`, `lstm`, `gru`, `rnn` and their cells, `expert_bank`.
        weight_shape: Shape of the weight with the output channels on axis 0, as formats see it:
            transposed convolutions and banks of experts are rearranged.
        macs: Multiply-accumulates for one input (batch of one); 0 for look-ups.
        input_shape: Shape of the layer's input for one input.
        output_shape: Shape of the layer's output for one input.
        tied: Other layers that use the same stored weight and therefore the same format; their
            operations are counted here.
        quantizes_input: Whether an activation format has an effect: not on integer inputs, and not
            on inputs that stay inside a fused kernel.
        stride: Strides of a convolution, one for each spatial axis; empty where there are none or
            they are not known.
    """

    name: str
    kind: str
    weight_shape: tuple[int, ...]
    macs: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    tied: tuple[str, ...] = ()
    quantizes_input: bool = True
    stride: tuple[int, ...] = ()

    @property
    def weights(self) -> int:
        """Number of weights (without the bias)."""
        return math.prod(self.weight_shape)

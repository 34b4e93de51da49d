"""Real CPU kernels for a layer at an option: what this machine can run, and why not the rest."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpsearch.formats import Option
from mpsearch.hardware.device import arithmetic_of

__all__ = ["Kernel", "Unsupported", "int8_accumulation", "kernel_for"]

Kernel = Callable[[], Tensor]


@dataclass(frozen=True)
class Unsupported:
    """There is no kernel; `reason` says why."""

    reason: str


def kernel_for(module: nn.Module, inputs: Tensor, option: Option) -> Kernel | Unsupported:
    """Prepare the kernel that runs a layer at an option; weights are packed beforehand.

    Args:
        module: The layer; not changed.
        inputs: What enters it, float32.
        option: `float`, `w:bf16/a:bf16`, or `w8a8`.

    Returns:
        A function that runs the operation once and nothing else, or why there is none.
    """
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return Unsupported(f"{type(module).__name__} is not measured, only Conv2d and Linear are")
    if option.is_float:
        return _run(copy.deepcopy(module).float(), inputs.float())
    pair = arithmetic_of(option.weight), arithmetic_of(option.activation)
    if pair == ("bf16", "bf16"):
        return _run(copy.deepcopy(module).bfloat16(), inputs.bfloat16())
    if pair == ("int8", "int8"):
        return _int8(module, inputs)
    return Unsupported(
        f"no CPU kernel of torch is used for {pair[0]} weights with {pair[1]} activations; "
        "measured are float, w:bf16/a:bf16 and w8a8"
    )


def _run(module: nn.Module, inputs: Tensor) -> Kernel:
    module.eval()

    def kernel() -> Tensor:
        result: Tensor = module(inputs)
        return result

    return kernel


def _int8(module: nn.Conv2d | nn.Linear, inputs: Tensor) -> Kernel | Unsupported:
    """Weights symmetric per output channel, activations with a zero point per tensor."""
    if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
        return Unsupported(f"torch's int8 convolution has no {module.padding_mode} padding")
    if isinstance(module, nn.Conv2d) and isinstance(module.padding, str):
        return Unsupported("torch's int8 convolution takes no padding by name")
    bias = None if module.bias is None else module.bias.detach().float()
    weight = module.weight.detach().float()
    scales = weight.flatten(1).abs().amax(1).clamp_min(1e-8) / 127
    with torch.no_grad():
        left = copy.deepcopy(module).float()(inputs.float())
    (scale, zero), (out_scale, out_zero) = _affine(inputs), _affine(left)
    ops = torch.ops.quantized
    with warnings.catch_warnings():
        # These tensors are announced to go; when they do, this function says so by failing.
        warnings.simplefilter("ignore", UserWarning)
        packed_weight = torch.quantize_per_channel(
            weight, scales, torch.zeros(len(scales), dtype=torch.long), 0, torch.qint8
        )
        entering = torch.quantize_per_tensor(inputs.float(), scale, zero, torch.quint8)
    try:
        if isinstance(module, nn.Linear):
            packed = ops.linear_prepack(packed_weight, bias)
        else:
            packed = ops.conv2d_prepack(
                packed_weight,
                bias,
                list(module.stride),
                list(module.padding),
                list(module.dilation),
                module.groups,
            )
    except RuntimeError as error:
        return Unsupported(f"torch's int8 kernel refuses: {str(error).splitlines()[0]}")
    call = ops.linear if isinstance(module, nn.Linear) else ops.conv2d

    def kernel() -> Tensor:
        result: Tensor = call(entering, packed, out_scale, out_zero)
        return result

    return kernel


def _affine(values: Tensor) -> tuple[float, int]:
    """Return scale and zero point of unsigned 8 bits over the range of the values."""
    low, high = float(values.min().clamp_max(0)), float(values.max().clamp_min(0))
    scale = max((high - low) / 255, 1e-8)
    return scale, round(-low / scale)


def int8_accumulation() -> str:
    """Find out whether torch's int8 kernels add up exactly on this machine.

    Returns:
        `exact`, or that sums of two products saturate at 16 bits, as they do on x86 processors
        without VNNI; the kernels are as fast then, but their results are only right for
        activations of 7 bits.
    """
    layer = nn.Linear(64, 64, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    rows = torch.ones(4, 64)
    kernel = _int8(layer, rows)
    if isinstance(kernel, Unsupported):
        return kernel.reason
    with torch.inference_mode():
        found = kernel().dequantize()
    if torch.allclose(found, torch.full_like(found, 64.0), rtol=0.01):
        return "exact"
    return "saturates at 16 bits; right for activations of 7 bits"

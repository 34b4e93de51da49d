"""Real CPU kernels for a layer at an option: what this machine can run, and why not the rest."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mpsearch.formats import Option
from mpsearch.formats.integer import Integer
from mpsearch.hardware.device import arithmetic_of

__all__ = ["Kernel", "Unsupported", "int4_codes", "int8_accumulation", "kernel_for"]

Kernel = Callable[[], Tensor]

FLOATS = {"fp32": torch.float32, "bf16": torch.bfloat16}
INT4_GROUPS = (32, 64, 128, 256)
INT4_ROWS = 16


@dataclass(frozen=True)
class Unsupported:
    """There is no kernel; `reason` says why."""

    reason: str


def kernel_for(module: nn.Module, inputs: Tensor, option: Option) -> Kernel | Unsupported:
    """Prepare the kernel that runs a layer at an option; weights are packed beforehand.

    Args:
        module: The layer; not changed.
        inputs: What enters it, float32.
        option: `float`, `w:bf16/a:bf16`, `w8a8`, or for linear layers int4 weights in groups with
            float or bf16 activations, such as `int4_g32`.

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
    if isinstance(option.weight, Integer) and option.weight.width == 4 and pair[1] in FLOATS:
        return _int4(module, inputs.to(FLOATS[pair[1]]), option.weight)
    return Unsupported(
        f"no CPU kernel of torch is used for {pair[0]} weights with {pair[1]} activations; "
        "measured are float, w:bf16/a:bf16, w8a8, and int4_g32 to int4_g256 of linear layers"
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


def _int4(module: nn.Module, inputs: Tensor, weight: Integer) -> Kernel | Unsupported:
    """Weights in groups along the input, restored inside the product; activations stay float."""
    if not isinstance(module, nn.Linear):
        return Unsupported("torch multiplies by int4 weights in linear layers alone")
    group = weight.block
    if group not in INT4_GROUPS or weight.asymmetric or module.in_features % group:
        return Unsupported(
            f"torch's int4 product takes symmetric groups of {', '.join(map(str, INT4_GROUPS))} "
            f"that divide the inputs ({module.in_features}), not {weight.name}"
        )
    if module.out_features % INT4_ROWS:
        return Unsupported(
            f"torch's int4 product takes a multiple of {INT4_ROWS} outputs, not "
            f"{module.out_features}"
        )
    codes, scales = int4_codes(module.weight.detach().float(), group)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    factors = torch.stack([scales.t(), torch.zeros_like(scales.t())], dim=-1)
    factors = factors.contiguous().to(inputs.dtype)
    bias = None if module.bias is None else module.bias.detach().to(inputs.dtype)
    rows = inputs.reshape(-1, module.in_features).contiguous()

    def kernel() -> Tensor:
        result: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed, group, factors)
        return result if bias is None else result + bias

    return kernel


def int4_codes(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Round a weight to 4 bits in groups along the input, as torch's int4 products store it.

    Args:
        weight: Float32, outputs x inputs.
        group: Inputs that share a scale.

    Returns:
        Codes 0 to 15, int32, outputs x inputs, which stand for code - 8 times the scale; and the
        scales, float32, outputs x groups.
    """
    parts = weight.reshape(weight.shape[0], -1, group)
    scales = parts.abs().amax(-1).clamp_min(1e-8) / 7
    codes = (parts / scales[..., None]).round().clamp(-7, 7) + 8
    return codes.to(torch.int32).reshape(weight.shape), scales


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

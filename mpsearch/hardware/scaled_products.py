"""Products of 8-bit and 4-bit floats with scales: what torch hands to cuBLASLt on newer GPUs.

What each takes is checked by torch as follows (ATen/native/cuda/ScaledBlas.cpp of PyTorch): the
first operand by rows, the second by columns, inputs and outputs in multiples of 16 bytes, scales of
blocks swizzled, no product of two E5M2 operands, MXFP4 on compute capability 10 alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mpsearch.formats import Format, Microscaling, Minifloat, NvFloat4, Option
from mpsearch.hardware.block_operands import BlockOperand, block_operand
from mpsearch.hardware.cpu_kernels import Kernel, Unsupported

__all__ = ["BLOCK_PRODUCTS", "block_kernel", "block_product", "fp8_kernel"]

FP8_CAPABILITY = (8, 9)
BLOCK_CAPABILITY = (10, 0)
BLOCK_PRODUCTS = {"nvfp4", "mxfp4", "mxfp8"}
ALIGNED = 16
BLOCK_ALIGNED = 32
"""16 bytes of packed 4-bit values, and a whole block of the microscaling formats."""
NV_BLOCK = 16
E5M2 = 2
"""Bits of its mantissa."""

Capability = tuple[int, int]


def fp8_kernel(
    module: nn.Linear, rows: Tensor, option: Option, capability: Capability
) -> Kernel | Unsupported:
    """Prepare a product of FP8 operands, one scale for each, output in bf16.

    Sums are kept with less than full precision inside the tensor cores (`use_fast_accum`), as
    inference engines do.

    Args:
        module: The layer.
        rows: What enters it, by rows, on the device.
        option: FP8 formats, E4M3 or E5M2.
        capability: Of the GPU.

    Returns:
        The kernel, or why there is none.
    """
    if capability < FP8_CAPABILITY:
        return Unsupported(f"fp8 products need compute capability 8.9, not {_text(capability)}")
    if (unfit := _unfit(module, option, ALIGNED)) is not None:
        return unfit
    codes, scale_w = _fp8(module.weight.detach().to(rows), option.weight)
    entering, scale_a = _fp8(rows, option.activation)
    bias = _bias(module, rows.device)
    columns = codes.t()

    def kernel() -> Tensor:
        result: Tensor = torch._scaled_mm(
            entering,
            columns,
            scale_a=scale_a,
            scale_b=scale_w,
            bias=bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=rows.is_cuda,
        )
        return result

    return kernel


def block_kernel(
    module: nn.Linear, rows: Tensor, option: Option, capability: Capability
) -> Kernel | Unsupported:
    """Prepare a product of operands with a scale per block: NVFP4, MXFP4 or MXFP8.

    Args:
        module: The layer.
        rows: What enters it, by rows, on the device.
        option: The same block format for both operands.
        capability: Of the GPU.

    Returns:
        The kernel, or why there is none.
    """
    if (lacking := _lacking(option, capability)) is not None:
        return Unsupported(lacking)
    if (unfit := _unfit(module, option, BLOCK_ALIGNED)) is not None:
        return unfit
    first, second = option.activation, option.weight
    assert isinstance(first, (Microscaling, NvFloat4))
    assert isinstance(second, (Microscaling, NvFloat4))
    entering = block_operand(first, rows.cpu()).on(rows.device)
    weight = block_operand(second, module.weight.detach().cpu()).on(rows.device)
    return block_product(entering, weight, _bias(module, rows.device))


def block_product(first: BlockOperand, second: BlockOperand, bias: Tensor | None) -> Kernel:
    """Multiply a matrix by another one's transpose, output in bf16.

    Args:
        first: Rows x inputs.
        second: Outputs x inputs, of the same format.
        bias: One bf16 value for every output.

    Returns:
        The kernel.
    """
    kinds, swizzles = nn.functional.ScalingType, nn.functional.SwizzleType
    packed = first.codes.dtype == torch.float4_e2m1fn_x2
    recipe, swizzle = [kinds.BlockWise1x32], [swizzles.SWIZZLE_32_4_4]
    scales_a, scales_b = [first.scales], [second.scales]
    if first.whole is not None and second.whole is not None:
        recipe = [kinds.BlockWise1x16, kinds.TensorWise]
        swizzle = [swizzles.SWIZZLE_32_4_4, swizzles.NO_SWIZZLE]
        scales_a, scales_b = [*scales_a, first.whole], [*scales_b, second.whole]
    # The product of MXFP4 operands leaves a bias out without a word.
    apart = packed and first.whole is None
    columns = second.codes.t()

    def kernel() -> Tensor:
        result = nn.functional.scaled_mm(
            first.codes,
            columns,
            scales_a,
            recipe,
            scales_b,
            recipe,
            swizzle,
            swizzle,
            bias=None if apart else bias,
            output_dtype=torch.bfloat16,
        )
        return result + bias if apart and bias is not None else result

    return kernel


def _lacking(option: Option, capability: Capability) -> str | None:
    name = option.weight.name
    for each in (option.weight, option.activation):
        if isinstance(each, NvFloat4) and each.size != NV_BLOCK:
            return f"nvfp4 products have blocks of {NV_BLOCK}, not {each.size}"
    if not hasattr(nn.functional, "scaled_mm"):
        return f"torch {torch.__version__} has no scaled_mm for {name}; newer ones do"
    if capability < BLOCK_CAPABILITY:
        return f"{name} products need compute capability 10.0, not {_text(capability)}"
    packed_mx = isinstance(option.weight, Microscaling) and option.weight.bits == 4
    if packed_mx and capability[0] != BLOCK_CAPABILITY[0]:
        return f"torch multiplies {name} on compute capability 10 alone, not {_text(capability)}"
    return None


def _unfit(module: nn.Linear, option: Option, aligned: int) -> Unsupported | None:
    if all(_is_e5m2(each) for each in (option.weight, option.activation)):
        return Unsupported("cuBLASLt does not multiply two E5M2 operands; make one of them E4M3")
    if module.in_features % aligned or module.out_features % ALIGNED:
        return Unsupported(
            f"{option.weight.name} products need multiples of {aligned} inputs and {ALIGNED} "
            f"outputs, not {module.in_features} and {module.out_features}"
        )
    return None


def _is_e5m2(spec: Format) -> bool:
    return isinstance(spec, (Minifloat, Microscaling)) and spec.grid.mantissa == E5M2


def _fp8(values: Tensor, spec: Format) -> tuple[Tensor, Tensor]:
    kind = torch.float8_e5m2 if _is_e5m2(spec) else torch.float8_e4m3fn
    scale = (values.abs().max().clamp_min(1e-8) / torch.finfo(kind).max).float()
    return (values / scale).to(kind), scale


def _bias(module: nn.Linear, device: torch.device) -> Tensor | None:
    return None if module.bias is None else module.bias.detach().to(device, torch.bfloat16)


def _text(capability: Capability) -> str:
    return ".".join(map(str, capability))

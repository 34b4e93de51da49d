"""Real CUDA kernels for a layer at an option: what this GPU can run, and why not the rest.

Conditions on shapes are those that torch 2.14 checks before it launches anything. Where a library
below refuses nevertheless, its message is the reason.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mpsearch.formats import Option
from mpsearch.formats.integer import Integer
from mpsearch.hardware.cpu_kernels import FLOATS, INT4_GROUPS, Kernel, Unsupported, int4_codes
from mpsearch.hardware.device import arithmetic_of
from mpsearch.hardware.scaled_products import BLOCK_PRODUCTS, Capability, block_kernel, fp8_kernel

__all__ = ["cuda_conditions", "cuda_kernel_for", "product_kernel", "why_no_cuda"]

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
INT8_CAPABILITY = (7, 5)
INT4_CAPABILITY = (8, 0)
ALIGNED = 8
"""Inputs and outputs that torch's int8 product takes a multiple of."""
SMALLEST_ROWS = 17
"""torch's int8 product takes more than 16 rows."""
FATAL = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))
"""Errors that say nothing about one option; after the second the GPU cannot be used any more."""


def why_no_cuda() -> str | None:
    """Say why kernels cannot be timed on a GPU.

    Returns:
        The reason; None where they can.
    """
    if torch.cuda.is_available():
        return None
    return (
        "torch finds no CUDA device"
        if torch.version.cuda is not None
        else ("this torch is built without CUDA")
    )


def cuda_conditions() -> dict[str, str]:
    """Describe the GPU.

    Returns:
        Condition -> value.
    """
    major, minor = torch.cuda.get_device_capability()
    return {
        "processor": torch.cuda.get_device_name(),
        "compute capability": f"{major}.{minor}",
        "cuda": str(torch.version.cuda),
        "torch": torch.__version__,
        "float products": "TF32" if torch.backends.cuda.matmul.allow_tf32 else "float32",
        "float convolutions": "TF32" if torch.backends.cudnn.allow_tf32 else "float32",
    }


def cuda_kernel_for(module: nn.Module, inputs: Tensor, option: Option) -> Kernel | Unsupported:
    """Prepare the kernel that runs a layer at an option; weights are packed beforehand.

    Args:
        module: The layer; not changed.
        inputs: What enters it, float32.
        option: `float`, fp16 or bf16 for both operands, and for linear layers `w8a8`, FP8, NVFP4,
            MXFP4 or MXFP8 for both, or int4 weights in groups with bf16 activations.

    Returns:
        A function that launches the operation once and nothing else, or why there is none.
    """
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return Unsupported(f"{type(module).__name__} is not measured, only Conv2d and Linear are")
    pair = arithmetic_of(option.weight), arithmetic_of(option.activation)
    plain = option.is_float or (pair[0] == pair[1] and pair[0] in HALVES)
    if not plain and not isinstance(module, nn.Linear):
        return Unsupported(
            f"torch has CUDA convolutions in float alone, not for {pair[0]} weights with {pair[1]} "
            "activations"
        )
    capability = torch.cuda.get_device_capability()
    if plain:
        return _tried(_float(module, inputs.cuda(), HALVES.get(pair[0], torch.float32)))
    assert isinstance(module, nn.Linear)
    rows = inputs.reshape(-1, module.in_features).cuda().float().contiguous()
    return _tried(product_kernel(module, rows, option, capability))


def product_kernel(
    module: nn.Linear, rows: Tensor, option: Option, capability: Capability
) -> Kernel | Unsupported:
    """Prepare a product with rounded weights.

    Args:
        module: The layer.
        rows: What enters it, by rows, float32, on the device.
        option: As in `cuda_kernel_for`.
        capability: Of the GPU.

    Returns:
        The kernel, or why there is none.
    """
    pair = arithmetic_of(option.weight), arithmetic_of(option.activation)
    if pair == ("int8", "int8"):
        return _int8(module, rows, capability)
    if pair == ("fp8", "fp8"):
        return fp8_kernel(module, rows, option, capability)
    if pair[0] == pair[1] and pair[0] in BLOCK_PRODUCTS:
        return block_kernel(module, rows, option, capability)
    if isinstance(option.weight, Integer) and option.weight.width == 4 and pair[1] == "bf16":
        return _int4(module, rows.to(FLOATS["bf16"]), option.weight, capability)
    return Unsupported(f"no CUDA kernel is used for {pair[0]} weights with {pair[1]} activations")


def _tried(kernel: Kernel | Unsupported) -> Kernel | Unsupported:
    """Run a kernel once: libraries have conditions of their own."""
    if isinstance(kernel, Unsupported):
        return kernel
    try:
        with torch.inference_mode():
            kernel()
        torch.cuda.synchronize()
    except FATAL:
        raise
    except (RuntimeError, ValueError) as error:
        return Unsupported(f"the GPU's libraries refuse: {str(error).splitlines()[0]}")
    return kernel


def _float(module: nn.Conv2d | nn.Linear, inputs: Tensor, kind: torch.dtype) -> Kernel:
    ready = copy.deepcopy(module).to(inputs.device, kind).eval()
    entering = inputs.to(kind)
    if isinstance(module, nn.Conv2d) and kind in HALVES.values():
        # Tensor cores read channels last; in another layout every run would include a change of it.
        ready = ready.to(memory_format=torch.channels_last)
        entering = entering.contiguous(memory_format=torch.channels_last)

    def kernel() -> Tensor:
        result: Tensor = ready(entering)
        return result

    return kernel


def _int8(module: nn.Linear, rows: Tensor, capability: Capability) -> Kernel | Unsupported:
    """Weights per output channel, activations per tensor, exact 32-bit sums, output in bf16."""
    if capability < INT8_CAPABILITY:
        return Unsupported("int8 products need compute capability 7.5; this GPU is older")
    if module.in_features % ALIGNED or module.out_features % ALIGNED:
        return Unsupported(
            f"torch's int8 product needs multiples of {ALIGNED} inputs and outputs, not "
            f"{module.in_features} and {module.out_features}"
        )
    if rows.shape[0] < SMALLEST_ROWS:
        return Unsupported(
            f"torch's int8 product takes at least {SMALLEST_ROWS} rows, not {rows.shape[0]}; "
            "raise the batch"
        )
    weight = module.weight.detach().to(rows)
    scales = weight.abs().amax(1).clamp_min(1e-8) / 127
    codes = (weight / scales[:, None]).round().to(torch.int8).t()
    step = rows.abs().max().clamp_min(1e-8) / 127
    entering = (rows / step).round().to(torch.int8).contiguous()
    factors = (scales * step).to(torch.bfloat16)
    bias = None if module.bias is None else module.bias.detach().to(factors)

    def kernel() -> Tensor:
        result = torch._int_mm(entering, codes).to(torch.bfloat16) * factors
        return result if bias is None else result + bias

    return kernel


def _int4(
    module: nn.Linear, rows: Tensor, weight: Integer, capability: Capability
) -> Kernel | Unsupported:
    """Weights in groups along the input, restored inside the product; activations in bf16."""
    if capability < INT4_CAPABILITY:
        return Unsupported("int4 products need compute capability 8.0; this GPU is older")
    group = weight.block
    if group not in INT4_GROUPS or weight.asymmetric or module.in_features % group:
        return Unsupported(
            f"torch's int4 product takes symmetric groups of {', '.join(map(str, INT4_GROUPS))} "
            f"that divide the inputs ({module.in_features}), not {weight.name}"
        )
    codes, scales = int4_codes(module.weight.detach().to(rows.device).float(), group)
    pairs = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    tiles = next((t for t in (8, 4, 2) if module.in_features % (t * 16) == 0), None)
    if tiles is None or module.out_features % 8:
        return Unsupported(
            "torch's int4 product needs multiples of 32 inputs and 8 outputs, not "
            f"{module.in_features} and {module.out_features}"
        )
    packed = torch.ops.aten._convert_weight_to_int4pack(pairs, tiles)
    factors = torch.stack([scales.t(), torch.zeros_like(scales.t())], dim=-1)
    factors = factors.contiguous().to(torch.bfloat16)
    bias = None if module.bias is None else module.bias.detach().to(rows)

    def kernel() -> Tensor:
        result: Tensor = torch.ops.aten._weight_int4pack_mm(rows, packed, group, factors)
        return result if bias is None else result + bias

    return kernel

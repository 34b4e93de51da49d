"""Real CUDA kernels for a layer at an option: what this GPU can run, and why not the rest."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mpsearch.formats import Option
from mpsearch.formats.integer import Integer
from mpsearch.hardware.cpu_kernels import FLOATS, INT4_GROUPS, Kernel, Unsupported, int4_codes
from mpsearch.hardware.device import arithmetic_of

__all__ = ["cuda_conditions", "cuda_kernel_for", "why_no_cuda"]

HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
FP8_CAPABILITY = (8, 9)
FP4_CAPABILITY = (10, 0)
ALIGNED = 16
"""Rows and columns that tensor-core products of 8 bits need a multiple of."""
SMALLEST_ROWS = 17
"""torch's int8 product takes more than 16 rows."""


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
    }


def cuda_kernel_for(module: nn.Module, inputs: Tensor, option: Option) -> Kernel | Unsupported:
    """Prepare the kernel that runs a layer at an option; weights are packed beforehand.

    Args:
        module: The layer; not changed.
        inputs: What enters it, float32.
        option: `float`, fp16 or bf16 for both operands, and for linear layers `w8a8`,
            `w:fp8_e4m3/a:fp8_e4m3`, or int4 weights in groups with bf16 activations.

    Returns:
        A function that launches the operation once and nothing else, or why there is none.
    """
    if not isinstance(module, (nn.Conv2d, nn.Linear)):
        return Unsupported(f"{type(module).__name__} is not measured, only Conv2d and Linear are")
    pair = arithmetic_of(option.weight), arithmetic_of(option.activation)
    if option.is_float or (pair[0] == pair[1] and pair[0] in HALVES):
        return _float(module, inputs, HALVES.get(pair[0], torch.float32))
    if not isinstance(module, nn.Linear):
        return Unsupported(
            f"torch has CUDA convolutions in float alone, not for {pair[0]} weights with {pair[1]} "
            "activations"
        )
    rows = inputs.reshape(-1, module.in_features).cuda().float().contiguous()
    if pair == ("int8", "int8"):
        return _int8(module, rows)
    if pair == ("fp8", "fp8"):
        return _fp8(module, rows)
    if isinstance(option.weight, Integer) and option.weight.width == 4 and pair[1] == "bf16":
        return _int4(module, rows.to(FLOATS["bf16"]), option.weight)
    if pair in {("nvfp4", "nvfp4"), ("mxfp4", "mxfp4")}:
        return Unsupported(
            f"{pair[0]} products are not measured yet"
            + ("" if _capability() >= FP4_CAPABILITY else "; this GPU has no units for them either")
        )
    return Unsupported(f"no CUDA kernel is used for {pair[0]} weights with {pair[1]} activations")


def _capability() -> tuple[int, int]:
    return torch.cuda.get_device_capability()


def _float(module: nn.Module, inputs: Tensor, kind: torch.dtype) -> Kernel:
    ready = copy.deepcopy(module).to("cuda", kind).eval()
    entering = inputs.to("cuda", kind)

    def kernel() -> Tensor:
        result: Tensor = ready(entering)
        return result

    return kernel


def _unaligned(module: nn.Linear) -> Unsupported | None:
    if module.in_features % ALIGNED or module.out_features % ALIGNED:
        return Unsupported(
            f"8-bit products need multiples of {ALIGNED} inputs and outputs, not "
            f"{module.in_features} and {module.out_features}"
        )
    return None


def _int8(module: nn.Linear, rows: Tensor) -> Kernel | Unsupported:
    """Weights per output channel, activations per tensor, exact 32-bit sums, output in bf16."""
    if (unfit := _unaligned(module)) is not None:
        return unfit
    if rows.shape[0] < SMALLEST_ROWS:
        return Unsupported(
            f"torch's int8 product takes at least {SMALLEST_ROWS} rows, not {rows.shape[0]}; "
            "raise the batch"
        )
    weight = module.weight.detach().cuda().float()
    scales = weight.abs().amax(1).clamp_min(1e-8) / 127
    codes = (weight / scales[:, None]).round().to(torch.int8).t()
    step = rows.abs().max().clamp_min(1e-8) / 127
    entering = (rows / step).round().to(torch.int8).contiguous()
    factors = (scales * step).to(torch.bfloat16)
    bias = None if module.bias is None else module.bias.detach().cuda().to(torch.bfloat16)

    def kernel() -> Tensor:
        result = torch._int_mm(entering, codes).to(torch.bfloat16) * factors
        return result if bias is None else result + bias

    return kernel


def _fp8(module: nn.Linear, rows: Tensor) -> Kernel | Unsupported:
    if _capability() < FP8_CAPABILITY:
        return Unsupported("fp8 products need compute capability 8.9; this GPU is older")
    if (unfit := _unaligned(module)) is not None:
        return unfit
    kind = torch.float8_e4m3fn
    largest = torch.finfo(kind).max
    weight = module.weight.detach().cuda().float()
    scale_w = (weight.abs().max().clamp_min(1e-8) / largest).float()
    scale_a = (rows.abs().max().clamp_min(1e-8) / largest).float()
    codes = (weight / scale_w).to(kind).t()
    entering = (rows / scale_a).to(kind)
    bias = None if module.bias is None else module.bias.detach().cuda().to(torch.bfloat16)

    def kernel() -> Tensor:
        result: Tensor = torch._scaled_mm(
            entering,
            codes,
            scale_a=scale_a,
            scale_b=scale_w,
            bias=bias,
            out_dtype=torch.bfloat16,
        )
        return result

    return kernel


def _int4(module: nn.Linear, rows: Tensor, weight: Integer) -> Kernel | Unsupported:
    group = weight.block
    if group not in INT4_GROUPS or weight.asymmetric or module.in_features % group:
        return Unsupported(
            f"torch's int4 product takes symmetric groups of {', '.join(map(str, INT4_GROUPS))} "
            f"that divide the inputs ({module.in_features}), not {weight.name}"
        )
    codes, scales = int4_codes(module.weight.detach().cuda().float(), group)
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
    bias = None if module.bias is None else module.bias.detach().cuda().to(torch.bfloat16)

    def kernel() -> Tensor:
        result: Tensor = torch.ops.aten._weight_int4pack_mm(rows, packed, group, factors)
        return result if bias is None else result + bias

    return kernel

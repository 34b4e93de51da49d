"""Products of small floats: numbers where a CPU can compute them, and what torch demands of shapes.

The fake CUDA tensors below are what torch.compile traces with: torch checks shapes, strides, types
and sizes of scales, and computes nothing.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mpsearch.formats import parse_option
from mpsearch.hardware import cuda_kernels, scaled_products
from mpsearch.hardware.block_operands import BlockOperand, block_operand
from mpsearch.hardware.cpu_kernels import Unsupported
from mpsearch.hardware.cuda_kernels import cuda_kernel_for, product_kernel, why_no_cuda
from mpsearch.hardware.scaled_products import block_product

T4, A100, H100, B200, RTX_5090 = (7, 5), (8, 0), (9, 0), (10, 0), (12, 0)
BLOCKS = ["nvfp4", "mxfp4", "mxfp8_e4m3"]
FP8 = "w:fp8_e4m3/a:fp8_e4m3"


def _both(name: str) -> str:
    return f"w:{name}/a:{name}"


@pytest.fixture
def layer() -> tuple[nn.Linear, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(64, 48), torch.randn(20, 64)


@pytest.mark.parametrize("option", ["w8a8", FP8, "w:fp8_e5m2/a:fp8_e4m3", "w:fp8_e4m3/a:fp8_e5m2"])
def test_products_of_eight_bits_compute_the_layer(layer, option: str) -> None:
    """The same calls on the CPU, where torch has them, too."""
    module, rows = layer
    found = product_kernel(module, rows, parse_option(option), H100)()
    exact = module(rows)
    assert found.dtype == torch.bfloat16
    # Two bits of mantissa leave a tenth of a value uncertain; a wrong scale or side all of it.
    error = (found.float() - exact).norm() / exact.norm()
    assert error < (0.12 if "e5m2" in option else 0.05)


@pytest.mark.parametrize(
    ("capability", "option", "reason"),
    [
        (T4, FP8, "need compute capability 8.9, not 7.5"),
        (T4, "w:int4_g32/a:bf16", "need compute capability 8.0"),
        ((7, 0), "w8a8", "need compute capability 7.5"),
        (A100, FP8, "not 8.0"),
        (H100, _both("nvfp4"), "nvfp4 products need compute capability 10.0, not 9.0"),
        (H100, _both("mxfp4"), "mxfp4 products need compute capability 10.0"),
        (H100, _both("mxfp8_e4m3"), "need compute capability 10.0"),
        (RTX_5090, _both("mxfp4"), "on compute capability 10 alone, not 12.0"),
        (B200, _both("nvfp4_b32"), "blocks of 16, not 32"),
        (B200, _both("fp8_e5m2"), "two E5M2 operands"),
        (B200, _both("mxfp8_e5m2"), "two E5M2 operands"),
        (B200, "w:mxfp4/a:mxfp8_e4m3", "no CUDA kernel is used for mxfp4 weights with mxfp8"),
        (B200, "w4a4", "no CUDA kernel is used for int4 weights with int4"),
    ],
)
def test_what_a_gpu_cannot_multiply_is_refused_with_the_reason(
    layer, capability: tuple[int, int], option: str, reason: str
) -> None:
    module, rows = layer
    found = product_kernel(module, rows, parse_option(option), capability)
    assert isinstance(found, Unsupported)
    assert reason in found.reason


@pytest.mark.parametrize(
    ("inputs", "outputs", "rows", "option", "reason"),
    [
        (36, 48, 20, "w8a8", "multiples of 8 inputs"),
        (40, 44, 20, "w8a8", "multiples of 8 inputs"),
        (64, 48, 16, "w8a8", "at least 17 rows, not 16"),
        (40, 48, 20, FP8, "multiples of 16 inputs"),
        (48, 48, 20, _both("nvfp4"), "multiples of 32 inputs and 16 outputs, not 48"),
        (64, 40, 20, _both("mxfp4"), "not 64 and 40"),
        (48, 48, 20, "w:int4_g32/a:bf16", "groups of 32"),
        (64, 44, 20, "w:int4_g32/a:bf16", "multiples of 32 inputs and 8 outputs"),
    ],
)
def test_shapes_that_kernels_do_not_take_are_refused(
    inputs: int, outputs: int, rows: int, option: str, reason: str
) -> None:
    module = nn.Linear(inputs, outputs)
    found = product_kernel(module, torch.randn(rows, inputs), parse_option(option), B200)
    assert isinstance(found, Unsupported)
    assert reason in found.reason


def test_an_older_torch_is_refused(layer, monkeypatch) -> None:
    monkeypatch.setattr(scaled_products, "nn", SimpleNamespace(functional=SimpleNamespace()))
    found = product_kernel(*layer, parse_option(_both("nvfp4")), B200)
    assert isinstance(found, Unsupported)
    assert "no scaled_mm" in found.reason


def _on_fake_gpu(operand: BlockOperand, mode: FakeTensorMode) -> BlockOperand:
    whole = None if operand.whole is None else mode.from_tensor(operand.whole)
    codes, scales = mode.from_tensor(operand.codes), mode.from_tensor(operand.scales)
    return BlockOperand(codes, scales, whole).on("cuda")


@pytest.mark.parametrize("rows", [1, 20, 300])
@pytest.mark.parametrize("name", BLOCKS)
def test_operands_of_blocks_are_what_torch_asks_for(name: str, rows: int) -> None:
    torch.manual_seed(0)
    spec = parse_option(_both(name)).weight
    operands = [block_operand(spec, torch.randn(count, 160)) for count in (rows, 48)]
    with FakeTensorMode() as mode:
        first, second = (_on_fake_gpu(each, mode) for each in operands)
        result = block_product(
            first, second, torch.zeros(48, dtype=torch.bfloat16, device="cuda")
        )()
        # The older entry point checks strides and how many scales there are.
        older = torch._scaled_mm(
            first.codes, second.codes.t(), first.scales, second.scales, out_dtype=torch.bfloat16
        )
    assert result.shape == older.shape == (rows, 48)
    assert result.dtype == torch.bfloat16
    assert result.device.type == "cuda"


@pytest.mark.parametrize("group", [32, 64])
def test_int4_weights_are_packed_as_torch_asks_for(group: int) -> None:
    with FakeTensorMode():
        module = nn.Linear(128, 48, device="cuda")
        rows = torch.randn(3, 128, device="cuda")
        option = parse_option(f"w:int4_g{group}/a:bf16")
        result = product_kernel(module, rows, option, A100)()
    assert result.shape == (3, 48)
    assert result.dtype == torch.bfloat16


@pytest.mark.parametrize("option", ["w8a8", FP8])
def test_operands_of_eight_bits_are_what_torch_asks_for(option: str) -> None:
    with FakeTensorMode():
        module = nn.Linear(64, 48, device="cuda")
        result = product_kernel(
            module, torch.randn(20, 64, device="cuda"), parse_option(option), H100
        )()
    assert result.shape == (20, 48)
    assert result.dtype == torch.bfloat16


def test_what_a_library_refuses_is_no_kernel(monkeypatch) -> None:
    """No GPU: torch itself refuses, as libraries do for reasons of their own."""
    if why_no_cuda() is None:
        pytest.skip("this test needs a machine without a GPU")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def refusing() -> torch.Tensor:
        return torch.zeros(2, 3) @ torch.zeros(2, 3)

    found = cuda_kernels._tried(refusing)
    assert isinstance(found, Unsupported)
    assert "libraries refuse: mat1 and mat2" in found.reason

    def exhausted() -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        cuda_kernels._tried(exhausted)


@pytest.mark.parametrize(
    "option",
    [
        "float",
        "w:fp16/a:fp16",
        "w:bf16/a:bf16",
        "w8a8",
        FP8,
        "w:int4_g32/a:bf16",
        *map(_both, BLOCKS),
    ],
)
def test_kernels_of_a_gpu_compute_the_layer(option: str) -> None:
    if (reason := why_no_cuda()) is not None:
        pytest.skip(reason)
    torch.manual_seed(0)
    module, rows = nn.Linear(256, 64), torch.randn(32, 256)
    found = cuda_kernel_for(module, rows, parse_option(option))
    if isinstance(found, Unsupported):
        pytest.skip(found.reason)
    exact = module(rows)
    error = (found().float().cpu() - exact).norm() / exact.norm()
    assert error < (0.25 if "4" in option.replace("e4m3", "").replace("a:bf16", "") else 0.06)


@pytest.mark.parametrize("option", ["w8a8", FP8, "w:int4_g32/a:bf16"])
def test_a_linear_layer_is_run_once_before_it_is_timed(monkeypatch, option: str) -> None:
    """The whole way to a kernel, with fake tensors on a GPU that is not there."""
    waited: list[bool] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: H100)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    with FakeTensorMode():
        module = nn.Linear(64, 48, device="cuda")
        kernel = cuda_kernel_for(module, torch.randn(2, 10, 64), parse_option(option))
        assert not isinstance(kernel, Unsupported)
        assert kernel().shape == (20, 48)
    assert waited == [True]


@pytest.mark.parametrize("kind", [torch.float32, torch.float16, torch.bfloat16])
def test_float_kernels_compute_the_layer_in_the_layout_of_their_type(kind: torch.dtype) -> None:
    torch.manual_seed(0)
    module, image = nn.Conv2d(4, 6, 3, padding=1).eval(), torch.randn(2, 4, 9, 9)
    found = cuda_kernels._float(module, image, kind)()
    assert found.dtype == kind
    torch.testing.assert_close(found.float(), module(image), atol=0.03, rtol=0.03)
    if kind != torch.float32:
        assert found.is_contiguous(memory_format=torch.channels_last)
    assert module.weight.dtype == torch.float32  # the caller's module is left alone


@pytest.mark.parametrize("name", BLOCKS)
def test_without_a_gpu_it_is_torch_that_refuses_products_of_blocks(layer, name: str) -> None:
    """Recipes and types are accepted; what the CPU lacks is the swizzled layout of scales."""
    kernel = product_kernel(*layer, parse_option(_both(name)), B200)
    assert not isinstance(kernel, Unsupported)
    with pytest.raises((RuntimeError, ValueError), match=r"(?i)swizzle"):
        kernel()

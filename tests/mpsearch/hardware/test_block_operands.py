"""Operands of scaled products against plain re-statements of their layout, and torchao's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mpsearch.formats import get
from mpsearch.hardware.block_operands import BlockOperand, block_operand, packed_fp4, swizzled

ao_kernels = pytest.importorskip("torchao.prototype.mx_formats.kernels")
ao_layout = pytest.importorskip("torchao.prototype.mx_formats.utils")

E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def _unpacked(codes: Tensor) -> Tensor:
    """Read packed E2M1 by the bits of a code: sign, two of exponent (bias 1), one of mantissa."""
    values = []
    for row in codes.view(torch.uint8).tolist():
        found = []
        for byte in row:
            for code in (byte & 15, byte >> 4):
                exponent, mantissa = code >> 1 & 3, code & 1
                size = mantissa * 0.5 if exponent == 0 else (1 + mantissa / 2) * 2 ** (exponent - 1)
                found.append(-size if code & 8 else size)
        values.append(found)
    return torch.tensor(values)


def _scale(stored: Tensor, row: int, column: int, columns: int) -> float:
    """Look a scale up where cuBLAS documents it to be."""
    tiles_across = -(-columns // 4)
    tile = row // 128 * tiles_across + column // 4
    offset = row % 32 * 16 + row % 128 // 32 * 4 + column % 4
    return float(stored[tile * 512 + offset].float())


def _value_of(operand: BlockOperand, block: int) -> Tensor:
    packed = operand.codes.dtype == torch.float4_e2m1fn_x2
    codes = _unpacked(operand.codes) if packed else operand.codes.float()
    rows, width = codes.shape
    scales = [
        [_scale(operand.scales, r, c, width // block) for c in range(width // block)]
        for r in range(rows)
    ]
    whole = 1.0 if operand.whole is None else float(operand.whole)
    return codes * torch.tensor(scales).repeat_interleave(block, 1) * whole


@given(codes=st.lists(st.integers(0, 15), min_size=2, max_size=32).filter(lambda c: not len(c) % 2))
def test_every_e2m1_value_is_packed_as_its_bits_say(codes: list[int]) -> None:
    values = torch.tensor([[-E2M1[c & 7] if c & 8 else E2M1[c & 7] for c in codes]])
    packed = packed_fp4(values)
    assert packed.dtype == torch.float4_e2m1fn_x2
    low_first = [codes[i] | codes[i + 1] << 4 for i in range(0, len(codes), 2)]
    assert packed.view(torch.uint8).tolist() == [low_first]
    assert torch.equal(_unpacked(packed), values)


def test_packing_agrees_with_torchaos_own_and_forgives_a_rounding_error() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor(E2M1)[torch.randint(0, 8, (6, 64), generator=generator)]
    values *= torch.randint(0, 2, values.shape, generator=generator) * 2 - 1
    theirs = ao_kernels.pack_uint4(ao_kernels.f32_to_f4_unpacked(values))
    assert torch.equal(packed_fp4(values).view(torch.uint8), theirs)
    assert torch.equal(packed_fp4(values * (1 + 1e-6)).view(torch.uint8), theirs)


@given(rows=st.integers(1, 300), columns=st.integers(1, 11))
def test_scales_lie_where_cublas_looks_for_them(rows: int, columns: int) -> None:
    table = torch.arange(rows * columns).remainder(251).to(torch.uint8).reshape(rows, columns)
    stored = swizzled(table.view(torch.float8_e8m0fnu))
    assert stored.numel() == -(-rows // 128) * 128 * -(-columns // 4) * 4
    assert torch.equal(stored.view(torch.uint8), ao_layout.to_blocked(table))
    for row, column in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)):
        tile = row // 128 * -(-columns // 4) + column // 4
        place = tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4
        assert stored.view(torch.uint8)[place] == table[row, column]


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "mxfp8_e4m3", "mxfp8_e5m2"])
def test_what_is_stored_are_the_values_of_the_format(name: str) -> None:
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(130, 96, generator=generator) * torch.logspace(-3, 3, 130)[:, None]
    values[3] = 0
    spec = get(name)
    found = _value_of(block_operand(spec, values), spec.size)
    exact = spec.fake_quantize(values, channel_axis=0)
    torch.testing.assert_close(found, exact, rtol=1e-6, atol=0)

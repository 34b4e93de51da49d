"""Codes stand for exactly what fake quantization gives, for every format and shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch.errors import InputError
from mpsearch.export.codes import decode, encode
from mpsearch.formats import get

INTEGERS = st.builds(
    "int{}{}{}{}".format,
    st.sampled_from([2, 3, 4, 5, 8, 16]),
    st.sampled_from(["", "_asym"]),
    st.sampled_from(["", "_tensor", "_g1", "_g4", "_g32"]),
    st.sampled_from(["", "_mse", "_p90"]),
)
FLOATS = st.sampled_from(["fp8_e4m3", "fp8_e5m2_g16", "fp4_e2m1", "e3m4_tensor"])


@settings(max_examples=60, deadline=None)
@given(
    name=st.one_of(INTEGERS, FLOATS),
    shape=st.sampled_from([(3, 7), (1, 1), (4, 2, 3, 3), (5, 33), (2, 1, 5)]),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-6, 1.0, 1e4]),
    zeros=st.booleans(),
)
def test_decoded_codes_are_the_fake_quantized_weight(name, shape, seed, scale, zeros):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    if zeros:
        weight[0] = 0
    spec = get(name)
    codes = encode(spec, weight)
    assert torch.equal(decode(codes), spec.fake_quantize(weight).reshape(shape[0], -1))
    if not codes.values.is_floating_point():
        low, high = spec.levels
        assert int(codes.values.min()) >= low
        assert int(codes.values.max()) <= high


@pytest.mark.parametrize("name", ["float", "fp16", "mxfp4", "nf4"])
def test_formats_without_codes_and_scales_are_refused(name):
    with pytest.raises(InputError, match=name):
        encode(get(name), torch.ones(2, 4))

"""Shapes, types, axes and errors, for every format alike."""

from __future__ import annotations

import pytest
import torch

from mpsearch import formats
from mpsearch.errors import InputError, ModelError
from mpsearch.formats.kernels import engine

LAYER_FORMATS = [n for n in formats.known() if formats.get(n).role != "scales"]
ACTIVATION_FORMATS = [
    n for n in LAYER_FORMATS if formats.get(n).role == "any" and not formats.get(n).adaptive
]


def _values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", LAYER_FORMATS)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (3, 37), (4, 2, 3, 3), (2, 1, 1, 1), (0, 4)])
def test_shape_and_type_are_kept_and_the_input_is_not_touched(name, shape):
    values = _values(*shape)
    before = values.clone()
    rounded = formats.get(name).fake_quantize(values)
    assert rounded.shape == values.shape
    assert rounded.dtype == values.dtype
    assert torch.isfinite(rounded).all()
    assert torch.equal(values, before)
    assert rounded.numel() == 0 or rounded.data_ptr() != values.data_ptr()


@pytest.mark.parametrize("name", LAYER_FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights_are_rounded_in_float32_and_kept_in_their_type(name, dtype):
    values = _values(6, 70).to(dtype)
    rounded = formats.get(name).fake_quantize(values)
    assert rounded.dtype == dtype
    assert torch.equal(rounded, formats.get(name).fake_quantize(values.float()).to(dtype))


@pytest.mark.parametrize("name", LAYER_FORMATS)
def test_float64_weights_agree_with_float32_weights(name):
    values = _values(6, 70)
    wide = formats.get(name).fake_quantize(values.double())
    assert wide.dtype == torch.float64
    narrow = formats.get(name).fake_quantize(values).double()
    assert (wide - narrow).abs().le(1e-5).float().mean() > 0.98


@pytest.mark.parametrize("name", LAYER_FORMATS)
@pytest.mark.parametrize(
    ("bad", "counts"),
    [
        ([float("nan")], "1 NaN and 0 infinite values of 70"),
        ([float("inf"), float("-inf")], "0 NaN and 2 infinite values of 70"),
        ([float("nan"), float("nan"), float("inf")], "2 NaN and 1 infinite values of 70"),
    ],
)
def test_values_that_are_not_finite_are_refused_and_counted(name, bad, counts):
    values = _values(2, 35)
    values[1, : len(bad)] = torch.tensor(bad)
    with pytest.raises(ModelError, match=counts):
        formats.get(name).fake_quantize(values)
    with pytest.raises(ModelError, match=counts):
        formats.get(name).fake_quantize(values, channel_axis=None)


@pytest.mark.parametrize("name", LAYER_FORMATS)
def test_all_zero_tensor_stays_zero(name):
    values = torch.zeros(3, 40)
    assert torch.equal(formats.get(name).fake_quantize(values), values)


@pytest.mark.parametrize("name", LAYER_FORMATS)
def test_channel_axis_means_the_same_as_moving_it_to_the_front(name):
    values = _values(5, 6, 7)
    spec = formats.get(name)
    for axis in (1, 2, -1):
        moved = spec.fake_quantize(values.movedim(axis, 0).contiguous(), channel_axis=0)
        assert torch.equal(spec.fake_quantize(values, channel_axis=axis), moved.movedim(0, axis))


@pytest.mark.parametrize("name", LAYER_FORMATS)
def test_memory_order_does_not_matter(name):
    values = _values(4, 8, 3, 3)
    spec = formats.get(name)
    expected = spec.fake_quantize(values)
    last = values.contiguous(memory_format=torch.channels_last)
    assert torch.equal(spec.fake_quantize(last), expected)
    sliced = torch.cat([values, values], 1)[:, :8]
    assert torch.equal(spec.fake_quantize(sliced), expected)


@pytest.mark.parametrize("name", LAYER_FORMATS)
@pytest.mark.parametrize("shape", [(3, 500), (1, 1500), (60, 25)])
def test_result_does_not_depend_on_the_size_of_chunks(name, shape, monkeypatch):
    values = _values(*shape)
    whole = formats.get(name).fake_quantize(values)
    monkeypatch.setattr(engine, "_chunk_size", lambda tensor: 64)
    assert torch.equal(formats.get(name).fake_quantize(values), whole)


def test_one_scale_without_a_channel_axis():
    values = _values(4, 9)
    values[0] *= 100
    rounded = formats.get("int4").fake_quantize(values, channel_axis=None)
    step = values.abs().max() / 7
    assert torch.allclose(rounded, (values / step).round() * step)
    assert torch.equal(formats.get("int4_tensor").fake_quantize(values), rounded)


def test_group_larger_than_a_row_is_the_row():
    values = _values(4, 9)
    grouped = formats.get("int4_g128").fake_quantize(values)
    assert torch.equal(grouped, formats.get("int4").fake_quantize(values))


@pytest.mark.parametrize("name", ["int4_g4", "binary_g4", "ternary_g4", "nf4_b4", "int4_g4_p80"])
def test_short_last_group_is_fitted_to_its_own_values_alone(name):
    values = _values(3, 10) + 2
    rounded = formats.get(name).fake_quantize(values)
    spec = formats.get(name.replace("_g4", "_g2").replace("_b4", "_b2"))
    assert torch.equal(rounded[:, 8:], spec.fake_quantize(values[:, 8:].contiguous()))


def test_learned_tables_ignore_padding():
    values = _values(3, 130) + 4
    rounded = formats.get("any2").fake_quantize(values)
    assert (rounded > 0).all()


def test_integer_tensors_are_refused():
    with pytest.raises(InputError, match="int64"):
        formats.get("float").fake_quantize(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="int64"):
        formats.get("int4").fake_quantize(torch.ones(3, 3, dtype=torch.int64))
    with pytest.raises(InputError, match="int64"):
        formats.get("int4").quantizer(-1, 1)(torch.ones(3, dtype=torch.int64))


def test_missing_axis_is_refused():
    with pytest.raises(InputError, match="channel_axis=2"):
        formats.get("int4").fake_quantize(torch.ones(3, 3), channel_axis=2)


def test_result_is_outside_the_autograd_graph():
    weight = torch.nn.Parameter(_values(3, 4))
    assert not formats.get("int4").fake_quantize(weight).requires_grad
    assert not formats.get("mxfp4").quantizer(-1, 1)(weight).requires_grad
    with torch.inference_mode():
        formats.get("int4").fake_quantize(weight)


@pytest.mark.parametrize("name", ACTIVATION_FORMATS)
def test_fixed_range_quantizers_keep_shape_and_type(name):
    for shape in [(), (3,), (2, 5, 8), (0, 4)]:
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            values = _values(*shape).to(dtype)
            rounded = formats.get(name).quantizer(-1.0, 2.0)(values)
            assert rounded.shape == values.shape
            assert rounded.dtype == dtype


@pytest.mark.parametrize("name", ACTIVATION_FORMATS)
def test_range_of_only_zero_gives_zero_where_the_range_is_fixed(name):
    spec = formats.get(name)
    rounded = spec.quantizer(0.0, 0.0)(_values(4, 64))
    fixed = spec.ranged and not spec.dynamic
    assert bool((rounded == 0).all()) == fixed
    assert torch.isfinite(rounded).all()


@pytest.mark.parametrize("name", ["int8", "int8_asym", "fp8_e4m3", "int4_tensor", "e3m4"])
def test_fixed_range_saturates_and_uses_nothing_of_the_batch(name):
    quantize = formats.get(name).quantizer(-2.0, 2.0)
    values = torch.tensor([0.5, 1000.0, -1000.0, float("inf"), float("-inf")])
    rounded = quantize(values)
    assert rounded[1] == rounded[3] == pytest.approx(2.0, rel=0.01)
    assert rounded[2] == rounded[4] == pytest.approx(-2.0, rel=0.01)
    assert rounded[0] == quantize(values[:1])[0]
    assert torch.isnan(quantize(torch.tensor([float("nan")]))).all()


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "int4_g8", "bfp4", "nf4"])
def test_block_formats_scale_activations_by_their_own_values_along_the_axis(name):
    values = _values(3, 4, 64)
    values[..., 0] = 4.0 * values.abs().max()
    reach = float(values.abs().max())
    quantize = formats.get(name).quantizer(-reach, reach)
    expected = formats.get(name).fake_quantize(values.reshape(-1, 64)).view(3, 4, 64)
    assert torch.equal(quantize(values), expected)
    across = formats.get(name).quantizer(-reach, reach, block_axis=1)
    assert torch.equal(across(values.movedim(-1, 1)), expected.movedim(-1, 1))
    with pytest.raises(ModelError, match="1 NaN"):
        quantize(torch.full((1, 1), float("nan")))


@pytest.mark.parametrize(("low", "high"), [(1.0, -1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_impossible_ranges_are_refused(low, high):
    with pytest.raises(InputError, match="finite range"):
        formats.get("int8").quantizer(low, high)


@pytest.mark.parametrize(("name", "why"), [("any4", "weights only"), ("fp4_auto", "resolve")])
def test_formats_that_need_values_refuse_a_bare_range(name, why):
    with pytest.raises(InputError, match=why):
        formats.get(name).quantizer(-1.0, 1.0)


def test_fixed_ranges_of_float64_tensors_are_not_rounded_to_float32():
    third = torch.tensor([1 / 3, -1 / 3], dtype=torch.float64)
    assert torch.equal(formats.get("int8").quantizer(-1 / 3, 1 / 3)(third), third)
    huge = torch.tensor([[1e300, 1e299, -1e300]], dtype=torch.float64)
    for name in ("int8", "int8_asym", "fp8_e4m3", "nvfp4"):
        moved = formats.get(name).quantizer(-1e300, 1e300)(huge) - huge
        assert (moved.abs() <= 1e299 / 4).all(), name
    within = torch.tensor([1.0, -3e38])  # what a float32 model may still hold of such a range
    assert torch.isfinite(formats.get("int8").quantizer(-1e300, 1e300)(within)).all()

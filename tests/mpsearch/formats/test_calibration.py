"""Observed ranges: independent of batches, and best by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpsearch import formats
from mpsearch.errors import DataError, InputError, UnknownNameError
from mpsearch.formats.calibration import (
    Observer,
    Statistics,
    calibrated_quantizer,
    calibrated_range,
    expected_error,
    resolve,
)


def _observe(*batches: torch.Tensor) -> Statistics:
    observer = Observer()
    for batch in batches:
        observer.observe(batch)
    return observer.statistics()


def _relu_with_outlier() -> torch.Tensor:
    values = torch.relu(torch.randn(100_000, generator=torch.Generator().manual_seed(0)))
    values[17] = 40.0
    return values


FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=100, deadline=None)
@given(
    values=st.lists(FINITE, min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_statistics_do_not_depend_on_batches_or_order(values, cuts, order):
    whole = _observe(torch.tensor(values))
    order.shuffle(values)
    shuffled = torch.tensor(values)
    parts = torch.tensor_split(shuffled, sorted(min(c, len(values)) for c in cuts))
    assert _observe(*parts) == whole


@settings(max_examples=100, deadline=None)
@given(values=st.lists(FINITE, min_size=1, max_size=60))
def test_every_value_is_counted_in_its_bin(values):
    seen = _observe(torch.tensor(values, dtype=torch.float32))
    assert seen.count == sum(seen.counts) == len(values)
    assert seen.low == min(values)
    assert seen.high == max(values)
    assert seen.zeros == sum(value == 0 for value in values)
    assert len(seen.counts) <= 2048
    assert math.frexp(seen.bin_width)[0] == 0.5  # a power of two
    for index, number in enumerate(seen.counts):
        start = (seen.first_bin + index) * seen.bin_width
        assert number == sum(start <= value < start + seen.bin_width for value in values)


def test_quantiles_are_those_of_numpy_within_a_bin():
    values = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    seen = _observe(values)
    for share in (0.0, 0.001, 0.1, 0.5, 0.9, 0.999, 1.0):
        wanted = np.quantile(values.numpy(), share)
        assert abs(seen.quantile(share) - wanted) <= 2 * seen.bin_width


def test_nan_and_infinity_in_the_data_are_refused_and_counted():
    observer = Observer()
    with pytest.raises(DataError, match="1 NaN and 2 infinite"):
        observer.observe(torch.tensor([1.0, float("nan"), float("inf"), float("-inf")]))
    with pytest.raises(DataError, match="no values"):
        observer.statistics()


def test_empty_batches_add_nothing_and_a_histogram_needs_bins():
    assert _observe(torch.ones(0, 3), torch.ones(2)).count == 2
    with pytest.raises(InputError, match="2 bins"):
        Observer(bins=1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_are_observed_exactly_and_not_touched(dtype):
    values = torch.tensor([0.5, -1.25, 3.0], dtype=dtype)
    assert _observe(values) == _observe(values.float())
    assert values.tolist() == [0.5, -1.25, 3.0]


def test_minmax_covers_all_and_percentile_leaves_outliers_out():
    seen = _observe(_relu_with_outlier())
    spec = formats.get("int8")
    assert calibrated_range(spec, seen) == (0.0, 40.0)
    low, high = calibrated_range(spec, seen, "percentile", 99.9)
    assert low == pytest.approx(0.0, abs=0.01)
    assert 3.0 < high < 3.7


@pytest.mark.parametrize("name", ["int2", "int4", "int8", "int4_asym", "fp4_e2m1", "fp8_e4m3"])
def test_least_error_range_is_nearly_the_best_of_a_fine_search(name):
    values = _relu_with_outlier()
    spec = formats.get(name)

    def error(high: float) -> float:
        return float((spec.quantizer(0.0, high)(values) - values).double().square().mean())

    low, high = calibrated_range(spec, _observe(values), "mse")
    assert low == 0.0
    assert error(high) <= 1.05 * min(error(h) for h in np.geomspace(0.5, 40.0, 300))


def test_expected_error_is_the_measured_one():
    values = _relu_with_outlier()
    seen = _observe(values)
    for name in ("int4", "int8", "fp4_e2m1", "ternary"):
        spec = formats.get(name)
        measured = float((spec.quantizer(0.0, 10.0)(values) - values).square().mean())
        assert expected_error(spec, seen, 0.0, 10.0) == pytest.approx(measured, rel=0.02)
    with pytest.raises(InputError, match="no blocks"):
        expected_error(formats.get("mxfp4"), seen, 0.0, 10.0)


def test_format_that_names_its_clipping_keeps_to_it():
    seen = _observe(_relu_with_outlier())
    best = calibrated_range(formats.get("int8"), seen, "mse")
    assert calibrated_range(formats.get("int8_mse"), seen, "minmax") == best
    share = calibrated_range(formats.get("int8"), seen, "percentile", 99)
    assert calibrated_range(formats.get("int8_p99"), seen, "minmax") == share


@pytest.mark.parametrize("name", ["mxfp4", "nvfp4", "fp16", "float", "int4_g32", "int16"])
def test_ranges_that_do_not_matter_or_gain_nothing_are_the_extremes(name):
    seen = _observe(_relu_with_outlier())
    assert calibrated_range(formats.get(name), seen, "mse") == (0.0, 40.0)


def test_dead_activation_keeps_its_zeros():
    seen = _observe(torch.zeros(10))
    for method in ("minmax", "percentile", "mse"):
        assert calibrated_range(formats.get("int8"), seen, method) == (0.0, 0.0)
        quantize = calibrated_quantizer(formats.get("int8"), seen, method)
        assert quantize(torch.ones(3)).tolist() == [0, 0, 0]


def test_exponent_bits_of_activations_are_those_of_least_error():
    values = _relu_with_outlier()
    seen = _observe(values)
    for width in (4, 8):
        settled = resolve(formats.get(f"fp{width}_auto"), seen)
        candidates = [formats.get(f"e{x}m{width - 1 - x}") for x in range(1, width)]
        errors = [float((c.quantizer(0, 40)(values) - values).square().mean()) for c in candidates]
        assert settled == candidates[errors.index(min(errors))]
    quantize = formats.get("fp8_auto").calibrated_quantizer(seen)
    assert torch.equal(quantize(values), settled.quantizer(0.0, 40.0)(values))
    assert resolve(formats.get("int8"), seen) is formats.get("int8")
    with pytest.raises(InputError, match="no _g"):
        resolve(formats.get("fp8_auto_g32"), seen)


def test_unknown_methods_and_impossible_percentiles_are_refused():
    seen = _observe(torch.ones(3))
    with pytest.raises(UnknownNameError, match="percentile"):
        calibrated_range(formats.get("int8"), seen, "percentil")
    with pytest.raises(InputError, match="above 50"):
        formats.get("int8").calibrated_range(seen, "percentile", 40.0)

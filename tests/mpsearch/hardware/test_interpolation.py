from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.interpolate import interp1d

from mpsearch.errors import InputError
from mpsearch.hardware.interpolation import interpolate

SIZES = st.lists(st.integers(1, 512), min_size=2, max_size=8, unique=True)
FLOAT64_EXPONENTS = 700.0  # natural logarithms of what float64 holds


def test_a_law_that_no_number_can_hold_is_refused() -> None:
    with pytest.raises(InputError, match=r"62 to 63.*asked for 1"):
        interpolate(np.array([[62.0], [63.0]]), np.array([16.0, 1.0]), np.array([1.0]))


@given(SIZES, st.integers(1, 512), st.data())
@settings(max_examples=60, deadline=None)
def test_one_size_is_interpolated_linearly_in_logarithms(sizes, wanted, data) -> None:
    costs = np.array(
        data.draw(st.lists(st.floats(1e-6, 1e3), min_size=len(sizes), max_size=len(sizes)))
    )
    reference = interp1d(np.log(sizes), np.log(costs), fill_value="extrapolate")
    assume(abs(float(reference(np.log(wanted)))) < FLOAT64_EXPONENTS)
    found = interpolate(np.array(sizes, float)[:, None], costs, np.array([float(wanted)]))
    assert np.log(found.value) == pytest.approx(float(reference(np.log(wanted))), abs=1e-6)
    inside = min(sizes) <= wanted <= max(sizes)
    expected = "measured" if wanted in sizes else "interpolated" if inside else "extrapolated"
    assert found.origin == expected


@given(
    st.integers(1, 3).flatmap(
        lambda keys: st.tuples(
            st.lists(
                st.tuples(*[st.integers(1, 256)] * keys),
                min_size=keys + 3,
                max_size=12,
                unique=True,
            ),
            st.tuples(*[st.floats(-2.0, 2.0)] * keys),
            st.tuples(*[st.integers(1, 256)] * keys),
        )
    )
)
@settings(max_examples=80, deadline=None)
def test_a_power_law_is_reproduced_wherever_the_sizes_determine_it(case) -> None:
    points, exponents, wanted = case
    sizes = np.array(points, dtype=float)
    spread = np.linalg.svd(np.log(sizes) - np.log(sizes).mean(axis=0), compute_uv=False)
    assume(spread[-1] > 0.1)
    law = lambda shape: 3e-4 * np.prod(np.asarray(shape, float) ** exponents, axis=-1)  # noqa: E731
    found = interpolate(sizes, law(sizes), np.array(wanted, float))
    assert found.value == pytest.approx(float(law(wanted)), rel=1e-5)


def test_every_measured_cost_is_given_back() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 300, size=(20, 3)).astype(float)
    costs = rng.lognormal(size=20)
    for size, cost in zip(sizes, costs, strict=True):
        found = interpolate(sizes, costs, size)
        assert (found.value, found.origin) == (pytest.approx(cost), "measured")


def test_one_measured_shape_grows_with_the_work_and_is_flagged() -> None:
    found = interpolate(np.array([[8.0, 8.0]]), np.array([2.0]), np.array([16.0, 8.0]))
    assert (found.value, found.origin) == (pytest.approx(4.0), "extrapolated")


def test_a_shape_off_the_measured_line_is_flagged_though_its_sizes_are_in_range() -> None:
    sizes = np.array([[64.0, 64.0], [128.0, 128.0], [256.0, 256.0]])
    costs = np.array([1.0, 4.0, 16.0])
    assert interpolate(sizes, costs, np.array([90.0, 90.0])).origin == "interpolated"
    assert interpolate(sizes, costs, np.array([64.0, 256.0])).origin == "extrapolated"

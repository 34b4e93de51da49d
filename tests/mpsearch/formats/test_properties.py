"""What every rounding must do, on inputs that hypothesis looks for."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mpsearch import formats

EXACTLY_IDEMPOTENT = [
    *("mxfp8", "mxfp8_e5m2", "mxfp6", "mxfp6_e2m3", "mxfp4", "mxint8", "bfp4", "bfp8", "nf4"),
    *("binary", "ternary", "ternary_g8", "fp16", "bf16", "mxfp4_b1", "float"),
]
IDEMPOTENT = [
    *("int2", "int3", "int4", "int8", "int4_g8", "int8_tensor", "fp8_e4m3", "fp8_e5m2"),
    *("fp6_e3m2", "fp4_e2m1", "e3m4", "e1m2", "e4m3_fnuz", "e3m0_g8", "int5_tensor"),
]
ASYMMETRIC = ["int1_asym", "int4_asym", "int8_asym", "int4_asym_g8", "int4_asym_tensor"]
ALL = [*EXACTLY_IDEMPOTENT, *IDEMPOTENT, *ASYMMETRIC, "nvfp4"]
SYMMETRIC = [n for n in [*EXACTLY_IDEMPOTENT, *IDEMPOTENT] if n not in {"nf4", "binary"}]

# normal float32 numbers far from both ends: subnormal inputs have tests of their own
NUMBERS = st.floats(-(2.0**60), 2.0**60, width=32).map(lambda v: 0.0 if abs(v) < 2.0**-60 else v)
MATRICES = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=20), elements=NUMBERS
).map(torch.from_numpy)
FAST = settings(max_examples=200, deadline=None)


@FAST
@given(name=st.sampled_from(EXACTLY_IDEMPOTENT), values=MATRICES)
def test_rounding_twice_is_rounding_once(name, values):
    spec = formats.get(name)
    once = spec.fake_quantize(values)
    assert torch.equal(spec.fake_quantize(once), once)


@FAST
@given(name=st.sampled_from(IDEMPOTENT), values=MATRICES)
def test_rounding_twice_moves_a_value_by_no_more_than_the_scale_was_rounded(name, values):
    spec = formats.get(name)
    once = spec.fake_quantize(values)
    again = spec.fake_quantize(once)
    assert ((again - once).abs() <= 4e-7 * once.abs()).all()


@FAST
@given(name=st.sampled_from([*IDEMPOTENT, *ASYMMETRIC]), values=MATRICES)
def test_rounding_twice_to_one_range_is_rounding_once(name, values):
    if formats.get(name).dynamic:
        name = name.replace("_g8", "")
    # fitted anew, a zero point that was rounded would move the range
    quantize = formats.get(name).quantizer(float(values.min()), float(values.max()))
    once = quantize(values)
    assert torch.equal(quantize(once), once)


@FAST
@given(name=st.sampled_from(ALL), row=hnp.arrays(np.float32, st.integers(1, 8), elements=NUMBERS))
def test_order_is_kept_within_a_block(name, row):
    values = torch.from_numpy(np.sort(row)).view(1, -1)
    rounded = formats.get(name).fake_quantize(values)
    assert (rounded.diff(dim=1) >= 0).all()


@FAST
@given(name=st.sampled_from([*SYMMETRIC, "nvfp4"]), values=MATRICES)
def test_negated_values_round_to_negated_results(name, values):
    spec = formats.get(name)
    assert torch.equal(spec.fake_quantize(-values), -spec.fake_quantize(values))


@FAST
@given(
    name=st.sampled_from(
        [
            *("int2", "int4", "int8", "int4_asym", "ternary", "binary", "nf4", "mxint8", "bfp6"),
            *("fp8_e4m3", "fp8_e5m2", "fp6_e3m2", "fp6_e2m3", "fp4_e2m1", "mxfp8", "nvfp4"),
            *("e1m2", "e2m5", "e3m4", "e3m4_ieee", "e4m3_fnuz", "e4m3b11_fnuz", "e5m0", "e6m1"),
        ]
    ),
    share=st.floats(-1.5, 1.5, width=32),
)
def test_cast_gives_the_nearest_value_of_the_grid(name, share):
    spec = formats.get(name)
    grid = np.array(spec.value_grid())
    value = np.float32(share) * np.float32(np.abs(grid).max())
    got = spec.cast(torch.tensor([value])).item()
    inside = float(np.clip(value, grid[0], grid[-1]))
    distance = np.abs(np.float32(grid) - inside)
    assert abs(got - inside) <= distance.min() * (1 + 1e-6)
    assert got in np.float32(grid)


@FAST
@given(
    name=st.sampled_from(
        [n for n in formats.known() if formats.get(n).role != "scales"]
        + [*(f"int{k}{kind}" for k in range(2, 17) for kind in ("", "_asym")), "e5m10", "int8_p90"]
    ),
    share=st.floats(0.999, 1.0),
    low=st.floats(-1.0, 1.0),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_values_next_to_the_largest_number_stay_finite(name, share, low, dtype):
    spec = formats.get(name)
    linear = isinstance(spec, formats.Integer | formats.Minifloat)
    # means, k-means and the shared powers of two of other families have no room beyond float32
    limit = torch.finfo(dtype if linear or dtype != torch.float64 else torch.float32).max
    values = torch.tensor([[share, low, 0.5, 0.0]], dtype=torch.float64).mul(limit).to(dtype)
    assert torch.isfinite(spec.fake_quantize(values)).all()
    if spec.role == "any" and not spec.adaptive and dtype != torch.float64:
        rounded = spec.quantizer(float(values.min()), float(values.max()))(values)
        assert torch.isfinite(rounded).all()


@FAST
@given(width=st.sampled_from(range(2, 17)), values=MATRICES)
def test_symmetric_integers_are_within_half_a_step(width, values):
    rounded = formats.get(f"int{width}").fake_quantize(values)
    step = values.abs().amax(1, keepdim=True).double() / (2 ** (width - 1) - 1)
    slack = 4e-7 * values.abs().double()  # rounding of value / scale * scale in float32
    assert ((rounded.double() - values.double()).abs() <= step / 2 + slack).all()


@FAST
@given(width=st.sampled_from(range(1, 17)), values=MATRICES)
def test_asymmetric_integers_are_within_a_step_and_keep_zero(width, values):
    rounded = formats.get(f"int{width}_asym").fake_quantize(values)
    low = values.amin(1, keepdim=True).clamp(max=0).double()
    high = values.amax(1, keepdim=True).clamp(min=0).double()
    step = (high - low) / (2**width - 1)
    slack = 1e-6 * torch.maximum(high, -low)
    assert ((rounded.double() - values.double()).abs() <= step + slack).all()
    assert (rounded[values == 0] == 0).all()


@FAST
@given(
    name=st.sampled_from([n for n in ALL if n != "nvfp4" and "tensor" not in n]), values=MATRICES
)
def test_a_row_rounds_alike_whatever_stands_beside_it(name, values):
    spec = formats.get(name)
    whole = spec.fake_quantize(values)
    for index, row in enumerate(values):
        assert torch.equal(whole[index], spec.fake_quantize(row.view(1, -1)).view(-1))

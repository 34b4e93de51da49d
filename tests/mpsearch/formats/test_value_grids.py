"""Value sets against the enumeration of ml_dtypes and published tables."""

from __future__ import annotations

import itertools
import json

import ml_dtypes
import numpy as np
import pytest

from mpsearch import formats

NAMES = {
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
    "float6_e2m3fn": "fp6_e2m3",
    "float6_e3m2fn": "fp6_e3m2",
    "float4_e2m1fn": "fp4_e2m1",
    "float8_e8m0fnu": "e8m0",
    "float8_e3m4": "e3m4_ieee",
    "float8_e4m3": "e4m3_ieee",
}


@pytest.mark.parametrize("theirs", NAMES)
def test_grid_agrees_with_the_published_enumeration(theirs, shared_data):
    figures = json.loads((shared_data / "enumerated_ml_dtypes.json").read_text())["formats"][theirs]
    grid = formats.get(NAMES[theirs]).value_grid()
    positives = [value for value in grid if value > 0]
    assert len(grid) == figures["n_distinct"]
    assert positives[-1] == figures["max"]
    assert positives[0] == figures["min_pos"]
    if figures["positives"] is not None:
        assert positives == figures["positives"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("fp8_e4m3", ml_dtypes.float8_e4m3fn),
        ("fp8_e5m2", ml_dtypes.float8_e5m2),
        ("fp6_e3m2", ml_dtypes.float6_e3m2fn),
        ("fp6_e2m3", ml_dtypes.float6_e2m3fn),
        ("fp4_e2m1", ml_dtypes.float4_e2m1fn),
        ("e4m3_ieee", ml_dtypes.float8_e4m3),
        ("e3m4_ieee", ml_dtypes.float8_e3m4),
        ("e4m3_fnuz", ml_dtypes.float8_e4m3fnuz),
        ("e5m2_fnuz", ml_dtypes.float8_e5m2fnuz),
        ("e4m3b11_fnuz", ml_dtypes.float8_e4m3b11fnuz),
        ("e8m0", ml_dtypes.float8_e8m0fnu),
    ],
)
def test_grid_is_every_finite_code_of_ml_dtypes(name, dtype):
    bits = int(formats.get(name).bits)
    codes = np.arange(2**bits, dtype=np.uint8).view(dtype).astype(np.float64)
    finite = sorted(set(codes[np.isfinite(codes)].tolist()))
    assert list(formats.get(name).value_grid()) == finite


@pytest.mark.parametrize(
    ("name", "size"),
    [("int4", 15), ("int4_asym", 16), ("mxfp4", 15), ("nvfp4", 15), ("mxint8", 255), ("nf4", 16)],
)
def test_grid_is_ascending_and_distinct(name, size):
    grid = formats.get(name).value_grid()
    assert len(grid) == size
    assert all(low < high for low, high in itertools.pairwise(grid))


@pytest.mark.parametrize("name", ["int16", "e5m10", "fp16", "bfp12", "any4", "float", "fp8_auto"])
def test_large_and_learned_grids_are_not_listed(name):
    assert formats.get(name).value_grid() is None

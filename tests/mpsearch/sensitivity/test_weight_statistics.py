from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

import mpsearch as mp
from mpsearch.formats import get


def entropy(values):
    counts, _ = np.histogram(values.astype(np.float32), 256)
    return stats.entropy(counts, base=2)


REFERENCES = {
    "kurtosis": lambda w: stats.kurtosis(w.ravel(), fisher=False),
    "variance": lambda w: w.var(),
    "max_to_mean": lambda w: np.abs(w).max() / np.abs(w).mean(),
    "frobenius_norm": lambda w: np.linalg.norm(w.ravel()),
    "spectral_norm": lambda w: np.linalg.norm(w.reshape(len(w), -1), 2),
    "entropy_weight": lambda w: entropy(w.ravel()),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_statistic_agrees_with_numpy_and_scipy_and_multiplies_the_relative_error(
    net, exact, data, name
):
    found = mp.profile(net, data, ["w4"], name)
    for row, layer in enumerate(found.groups):
        weight = exact.weight(layer)
        truth = REFERENCES[name](weight.numpy())
        assert found.statistics[name][layer] == pytest.approx(truth, rel=1e-6)
        moved = (get("int4").fake_quantize(weight) - weight).square().sum()
        relative = (moved / weight.square().sum()).item()
        assert found.loss[row, 0] == pytest.approx(truth * relative, rel=1e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_constant_and_all_zero_weights_score_finite(net, data, name):
    net.point.weight.data.zero_()
    net.grouped.weight.data.fill_(0.5)
    assert np.isfinite(mp.profile(net, data, ["w4"], name).loss).all()

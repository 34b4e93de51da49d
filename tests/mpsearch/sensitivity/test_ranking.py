from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mpsearch.sensitivity.ranking import kendall, spearman, unsettled_share

small = st.integers(-3, 3)


@given(st.lists(st.tuples(small, small), min_size=3, max_size=20))
def test_rank_correlations_agree_with_scipy_ties_included(pairs):
    x, y = np.array(pairs, dtype=float).T
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert math.isnan(spearman(x, y))
        assert math.isnan(kendall(x, y))
    else:
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
        assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)


def test_scores_without_noise_are_settled():
    assert unsettled_share(np.array([[1.0], [1.0]]), np.zeros((2, 1))) == 0
    assert unsettled_share(np.ones((1, 3)), np.ones((1, 3))) == 0


def test_share_in_the_wrong_order_is_what_redrawing_the_noise_gives():
    rng = np.random.default_rng(0)
    truth = np.array([[0.0], [1.0], [1.5], [4.0]])
    noise = np.array([[0.5], [0.5], [1.0], [0.1]])
    first, second = np.triu_indices(4, 1)
    drawn = truth + noise * rng.standard_normal((40000, 4, 1))
    flipped = np.sign(drawn[:, first] - drawn[:, second]) != np.sign(truth[first] - truth[second])
    assert unsettled_share(truth, noise) == pytest.approx(flipped.mean(), abs=0.005)

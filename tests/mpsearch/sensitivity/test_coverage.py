"""Whether the reported standard errors are what they claim to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import mpsearch as mp
from mpsearch.sensitivity.catalog import build
from mpsearch.sensitivity.protocol import Estimator

RUNS = 400


class Several(Estimator):
    """Scores one prepared task with many seeds."""

    name = "several"
    scores_activations = True

    def __init__(self, name, settings):
        self.scorer, self.found = build(name, settings), []

    def score(self, task):
        from dataclasses import replace

        for seed in range(RUNS):
            self.found.append(self.scorer.score(replace(task, seed=seed)))
        return self.found[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings", "count", "matrix"),
    [
        ("hessian_trace", {"probes": 8}, 8, "hessian"),
        ("ggn_trace", {"draws": 8}, 8, "ggn"),
        ("ggn_trace", {"draws": 8, "draw": "labels"}, 8, "ggn"),
    ],
)
def test_t_intervals_cover_the_exact_value_in_95_percent_of_runs(
    net, exact, name, settings, count, matrix
):
    several = Several(name, settings)
    data = mp.DataSet("d", exact.inputs, exact.targets, batch_size=12)
    profile = mp.profile(net, data, ["w4"], several)
    width = stats.t.ppf(0.975, count - 1)
    hits = []
    for row, layer in enumerate(profile.groups):
        block = getattr(exact, matrix)(layer)
        weight = exact.weight(layer)
        moved = (mp.formats.get("int4").fake_quantize(weight) - weight).square().mean()
        truth = (block.trace() * moved).item()
        hits += [abs(s.loss[row, 0] - truth) <= width * s.stderr[row, 0] for s in several.found]
    assert np.mean(hits) == pytest.approx(0.95, abs=0.03)
    means = np.mean([scores.loss[:, 0] for scores in several.found], axis=0)
    spread = np.std([scores.loss[:, 0] for scores in several.found], axis=0) / np.sqrt(RUNS)
    truths = [(getattr(exact, matrix)(layer).trace()).item() for layer in profile.groups]
    scale = [
        (mp.formats.get("int4").fake_quantize(exact.weight(g)) - exact.weight(g)).square().mean()
        for g in profile.groups
    ]
    assert (np.abs(means - np.array(truths) * np.array(scale)) < 4 * spread).all()


@pytest.mark.parametrize(
    "name",
    [
        "gradient_deviation",
        "empirical_fisher",
        "fisher_output",
        "measured_loss",
        "measured_kl",
        "sqnr",
        "entropy",
        "orthogonality",
        "kurtosis",
        "hessian_top_eigenvalue",
        "pairwise",
    ],
)
def test_estimators_without_randomness_report_no_error(net, data, name):
    assert not mp.profile(net, data, ["w4"], name).stderr.any()


def test_a_dead_output_gives_zero_traces_without_error():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    net[2].weight.data.zero_()
    data = mp.DataSet("d", torch.randn(6, 4).double(), torch.zeros(6, dtype=torch.int64))
    ggn = mp.profile(net, data, ["w4"], "ggn_trace")
    assert ggn.loss[0, 0] == ggn.stderr[0, 0] == 0
    # A probe of the whole Hessian meets the block between the two layers, which is not zero.
    found = mp.profile(net, data, ["w4"], "hessian_trace", probes=64)
    assert abs(found.loss[0, 0]) < 4 * found.stderr[0, 0]

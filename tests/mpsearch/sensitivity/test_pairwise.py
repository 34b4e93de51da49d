from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.menu import Wishes
from mpsearch.sensitivity.pairwise import projected

OPTIONS = ["w3", "w6"]


def divergence(net, inputs, choice):
    with torch.no_grad():
        log_p = net(inputs).log_softmax(1)
        with mp.quantized(net, choice):
            log_q = net(inputs).log_softmax(1)
    return nn.functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean").item()


def test_measured_pairs_are_what_both_cost_beyond_each_alone(net, exact):
    found = mp.profile(net, exact.inputs, OPTIONS, "pairwise", terms="measured", project=False)
    for a, b in itertools.combinations(range(4), 2):
        for p, q in itertools.product(range(2), range(2)):
            one, two = {found.groups[a]: OPTIONS[p]}, {found.groups[b]: OPTIONS[q]}
            both = divergence(net, exact.inputs, one | two)
            alone = divergence(net, exact.inputs, one) + divergence(net, exact.inputs, two)
            pair = found.interactions[2 * a + p, 2 * b + q]
            assert pair == pytest.approx(both - alone, abs=1e-12)
            assert found.interactions[2 * b + q, 2 * a + p] == pair
    assert not found.interactions[0, 1]


def test_projection_is_the_nearest_semidefinite_matrix(net, exact):
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((6, 6))
    matrix += matrix.T
    found = projected(matrix)
    assert np.linalg.eigvalsh(found)[0] > -1e-12
    values = np.linalg.eigvalsh(matrix)
    assert np.linalg.norm(found - matrix) == pytest.approx(np.linalg.norm(np.minimum(values, 0)))


def test_outputs_predict_whole_allocations_of_fine_formats_better_than_sums(net, exact):
    options = ["w9", "w10", "w12"]
    found = mp.profile(net, exact.inputs, options, "pairwise")
    summed, paired, truth = [], [], []
    for columns in itertools.product(range(3), repeat=4):
        choice = {g: options[c] for g, c in zip(found.groups, columns, strict=True)}
        truth.append(divergence(net, exact.inputs, choice))
        paired.append(found.predicted(columns))
        summed.append(found.loss[np.arange(4), columns].sum())
    truth, paired, summed = map(np.array, (truth, paired, summed))
    assert np.allclose(paired, truth, rtol=0.15)
    assert np.abs(paired - truth).max() < np.abs(summed - truth).max() / 3


def test_the_solver_finds_the_best_allocation_with_interactions(net, exact):
    profile = mp.profile(net, exact.inputs, OPTIONS, "pairwise")
    costs = mp.price(net, exact.inputs, OPTIONS)
    answer = mp.allocate(profile, costs, {"weight_memory": "50%"})
    table = costs.values["weight_memory"]
    limit = answer.budgets["weight_memory"].limit
    best = min(
        profile.predicted(columns)
        for columns in itertools.product(range(2), repeat=4)
        if table[np.arange(4), list(columns)].sum() <= limit
    )
    assert answer.status == "optimal"
    assert answer.predicted_loss == pytest.approx(best, rel=1e-9)
    assert answer.objective == pytest.approx(best, rel=1e-6)


def test_groups_add_up_the_interactions_of_their_layers(net, exact):
    apart = mp.profile(net, exact.inputs, OPTIONS, "pairwise")
    tied = mp.profile(
        net, exact.inputs, OPTIONS, "pairwise", wishes=Wishes(group=["re:grouped|point"])
    )
    for a, b, c in itertools.product(range(2), repeat=3):
        assert tied.predicted([a, b, c]) == pytest.approx(apart.predicted([a, b, b, c]))


def test_interactions_survive_saving(net, exact, tmp_path):
    found = mp.profile(net, exact.inputs, OPTIONS, "pairwise")
    again = mp.Profile.load(found.save(tmp_path / "profile.json"))
    assert np.array_equal(found.interactions, again.interactions)

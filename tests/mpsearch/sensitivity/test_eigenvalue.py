from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.formats import get


def test_eigenvalues_equal_those_of_the_exact_blocks(net, exact, data):
    found = mp.profile(net, data, ["w4"], "hessian_top_eigenvalue", iterations=400, tolerance=1e-7)
    for row, layer in enumerate(found.groups):
        largest = torch.linalg.eigvalsh(exact.hessian(layer))[-1].item()
        assert found.statistics["hessian_top_eigenvalue"][layer] == pytest.approx(largest, rel=1e-3)
        weight = exact.weight(layer)
        moved = (get("int4").fake_quantize(weight) - weight).square().sum().item()
        assert found.loss[row, 0] == pytest.approx(largest / 2 * moved, rel=1e-3)


def test_a_block_whose_dominant_eigenvalue_is_negative_gives_its_largest_one():
    def saddle(output, target):
        return (-4 * output[:, 0] ** 2 + output[:, 1] ** 2).mean()

    layer = nn.Linear(1, 2, bias=False).double()
    data = mp.DataSet("one", torch.ones(3, 1).double(), torch.zeros(3))
    found = mp.profile(
        nn.Sequential(layer),
        data,
        ["w4"],
        "hessian_top_eigenvalue",
        loss=saddle,
        iterations=100,
        tolerance=1e-9,
    )
    assert found.statistics["hessian_top_eigenvalue"]["0"] == pytest.approx(2.0, rel=1e-4)


def test_order_for_precisions_divides_by_the_number_of_weights(net, data):
    by_loss = mp.profile(net, data, ["w4"], "hessian_top_eigenvalue").loss
    by_precision = mp.profile(net, data, ["w4"], "hessian_top_eigenvalue", order="precision").loss
    sizes = [net.get_submodule(g).weight.numel() for g in ("conv", "grouped", "point", "head")]
    for row, size in enumerate(sizes):
        assert by_precision[row, 0] == pytest.approx(2 * by_loss[row, 0] / size)


def test_an_iteration_that_did_not_converge_is_said(net, data):
    found = mp.profile(net, data, ["w4"], "hessian_top_eigenvalue", iterations=1)
    assert any("raise iterations" in text for text in found.warnings)


def test_pyhessian_multiplies_to_the_same_eigenvalues(net, exact, data):
    settings = {"iterations": 200, "tolerance": 1e-7}
    ours = mp.profile(net, data, ["w4"], "hessian_top_eigenvalue", **settings)
    theirs = mp.profile(net, data, ["w4"], "hessian_top_eigenvalue", engine="pyhessian", **settings)
    assert np.allclose(ours.loss, theirs.loss, rtol=1e-5)
    for layer, value in theirs.statistics["hessian_top_eigenvalue"].items():
        truth = torch.linalg.eigvalsh(exact.hessian(layer))[-1].item()
        assert value == pytest.approx(truth, rel=1e-3)


def test_another_engine_is_refused(net, data):
    with pytest.raises(mp.errors.InputError, match="pyhessian"):
        mp.profile(net, data, ["w4"], "hessian_top_eigenvalue", engine="other")

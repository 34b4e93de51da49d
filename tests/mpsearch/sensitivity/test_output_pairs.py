from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.sensitivity.output_pairs import reliability

OPTIONS = ["w3", "w6"]


def sampled(inputs, spread, seed=0, layers=30):
    """Pairs with true terms ±1 between layers, seen through noise of single inputs."""
    rng = np.random.default_rng(seed)
    truth = np.sign(rng.standard_normal((layers, layers)))
    each = truth + spread * rng.standard_normal((inputs, layers, layers))
    rows, columns = np.arange(layers), np.zeros(layers, dtype=int)
    return reliability(each.mean(0), (each**2).mean(0), inputs, rows, columns)[0, 1]


def test_reliability_is_the_share_of_the_square_that_is_no_sampling_error():
    assert sampled(20, 0.0) == 1.0
    # Σ mean² is 1 + spread²/n a pair, of which spread²/n is error.
    for spread in (1.0, 4.0, 10.0):
        assert sampled(20, spread) == pytest.approx(1 / (1 + spread**2 / 20), abs=0.05)


def test_pairs_of_pure_noise_have_no_reliability():
    rng = np.random.default_rng(1)
    each = rng.standard_normal((20, 40, 40))
    rows, columns = np.arange(40), np.zeros(40, dtype=int)
    found = reliability(each.mean(0), (each**2).mean(0), 20, rows, columns)
    assert found.max() < 0.1


def test_options_are_shrunk_by_what_their_own_pairs_show():
    rng = np.random.default_rng(2)
    columns = np.tile([0, 1], 20)
    rows = np.repeat(np.arange(20), 2)
    noisy = 10.0 * np.add.outer(columns, columns)  # only pairs of two first options are exact
    each = 1 + noisy * rng.standard_normal((20, 40, 40))
    found = reliability(each.mean(0), (each**2).mean(0), 20, rows, columns)
    assert found[0, 2] == 1.0
    assert found[1, 3] < found[0, 3] < 0.6


def test_no_pairs_leave_the_measured_losses(net, exact):
    found = mp.profile(net, exact.inputs, OPTIONS, "pairwise", shrink=0)
    measured = mp.profile(net, exact.inputs, OPTIONS, "measured_kl")
    assert not found.interactions.any()
    assert np.allclose(found.loss, measured.loss, rtol=1e-12)


def test_whole_pairs_are_semidefinite_and_shrunk_ones_smaller(net, exact):
    whole = mp.profile(net, exact.inputs, OPTIONS, "pairwise", shrink=1)
    shrunk = mp.profile(net, exact.inputs, OPTIONS, "pairwise")
    matrix = whole.interactions + np.diag(2 * whole.loss.ravel())
    own = np.kron(np.eye(4), np.ones((2, 2))) > 0
    # Two options of one layer never meet; what stands there is not reported.
    assert np.linalg.eigvalsh(np.where(own & (matrix == 0), 0, matrix))[0] > -0.1 * matrix.max()
    assert (np.abs(shrunk.interactions) <= np.abs(whole.interactions)).all()
    assert np.abs(shrunk.interactions).sum() < np.abs(whole.interactions).sum()


def test_a_factor_halves_every_pair(net, exact):
    whole = mp.profile(net, exact.inputs, OPTIONS, "pairwise", shrink=1)
    half = mp.profile(net, exact.inputs, OPTIONS, "pairwise", shrink=0.5)
    assert np.allclose(half.interactions, whole.interactions / 2)
    assert np.array_equal(half.loss, whole.loss)


def test_every_choice_is_run_once(net, exact):
    runs = []
    net.head.register_forward_hook(lambda *_: runs.append(1))
    mp.profile(net, exact.inputs, OPTIONS, "measured_kl")
    measured = len(runs)
    runs.clear()
    mp.profile(net, exact.inputs, OPTIONS, "pairwise")
    assert len(runs) <= measured + 1  # one more to see the output's size


def test_outputs_that_do_not_fit_leave_pairs_of_fewer_inputs(net, exact):
    roomy = mp.profile(net, exact.inputs, OPTIONS, "pairwise", shrink=1)
    tight = mp.profile(
        net, exact.inputs, OPTIONS, "pairwise", shrink=1, memory_limit=2 * 4 * 3 * 9 * 5
    )
    first = mp.profile(net, exact.inputs[:5], OPTIONS, "pairwise", shrink=1)
    assert any("first 5 of 12" in text for text in tight.warnings)
    assert np.allclose(tight.loss, roomy.loss, rtol=1e-12)
    scale = np.sqrt(np.outer(tight.loss.ravel(), tight.loss.ravel()))
    alone = np.sqrt(np.outer(first.loss.ravel(), first.loss.ravel()))
    assert np.allclose(tight.interactions / scale, first.interactions / alone, atol=1e-6)


def test_a_single_input_is_said_to_show_no_sampling_error(net, exact):
    found = mp.profile(net, exact.inputs[:1], OPTIONS, "pairwise")
    assert any("no sampling error" in text for text in found.warnings)


@pytest.mark.parametrize("shrink", [-0.1, 1.5, "photos"])
def test_other_factors_are_refused(net, exact, shrink):
    with pytest.raises(mp.errors.InputError, match="shrink"):
        mp.profile(net, exact.inputs, OPTIONS, "pairwise", shrink=shrink)


def test_workers_and_resumed_runs_give_the_same_bits(net, exact, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    alone = mp.profile(net, exact.inputs, OPTIONS, "pairwise")
    with ThreadPoolExecutor(2) as pool:
        shared = mp.profile(net, exact.inputs, OPTIONS, "pairwise", executor=pool)
    first = mp.profile(net, exact.inputs, OPTIONS, "pairwise", cache_dir=tmp_path)
    again = mp.profile(net, exact.inputs, OPTIONS, "pairwise", cache_dir=tmp_path)
    for other in (shared, first, again):
        assert np.array_equal(alone.loss, other.loss)
        assert np.array_equal(alone.interactions, other.interactions)


def test_cross_entropy_pairs_predict_both_layers_together(net, exact, data):
    options = ["w8", "w9"]
    found = mp.profile(net, data, options, "pairwise", shrink=1)
    choice = dict.fromkeys(found.groups, "w8")
    with torch.no_grad():
        before = nn.functional.cross_entropy(net(exact.inputs), exact.targets).item()
        with mp.quantized(net, choice):
            after = nn.functional.cross_entropy(net(exact.inputs), exact.targets).item()
    assert found.float_loss == pytest.approx(before)
    assert found.predicted([0, 0, 0, 0]) == pytest.approx(after - before, abs=5e-4)

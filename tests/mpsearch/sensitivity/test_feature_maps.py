from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import mpsearch as mp
from mpsearch.formats import get


def entropy(values, low, high):
    counts, _ = np.histogram(
        np.clip(values.numpy().astype(np.float32), low, high), 256, (low, high)
    )
    return stats.entropy(counts, base=2)


def test_entropy_lost_is_that_of_the_histograms_before_and_after(net, exact, data):
    found = mp.profile(net, data, ["w:float/a:int3"], "entropy")
    low, high = found.activation_ranges["conv"]
    rounded = get("int3").quantizer(low, high)(exact.inputs)
    before, after = entropy(exact.inputs, low, high), entropy(rounded, low, high)
    assert found.statistics["input_entropy"]["conv"] == pytest.approx(before, rel=2e-3)
    assert found.loss[found.groups.index("conv"), 0] == pytest.approx(before - after, rel=5e-3)


def test_fewer_bits_lose_more_entropy(net, data):
    found = mp.profile(net, data, ["w2a2", "w4a4", "w8a8"], "entropy").loss
    assert (np.diff(found, axis=1) < 0).all()


def test_balance_takes_off_the_share_of_operations_saved(net, data):
    whole = mp.profile(net, data, ["w4a4"], "entropy").loss[:, 0]
    half = mp.profile(net, data, ["w4a4"], "entropy", balance=0.5).loss[:, 0]
    macs = np.array([9 * 4 * 9, 9 * 4 * 2 * 9, 9 * 3 * 4, 9], dtype=float)
    saved = macs / macs.sum() * (1 - 16 / 1024)
    assert half == pytest.approx(0.5 * whole - 0.5 * saved)


def test_likeness_is_the_sum_of_normalised_gram_products(net, exact, data):
    found = mp.profile(net, data, ["w4", "w8"], "orthogonality", beta=2.0)
    outputs = {}
    hooks = [
        net.get_submodule(name).register_forward_hook(
            lambda _, __, y, name=name: outputs.update({name: y.detach().flatten(1)})
        )
        for name in found.groups
    ]
    net(exact.inputs)
    for hook in hooks:
        hook.remove()
    for row, name in enumerate(found.groups):
        total = 0.0
        for other in found.groups:
            if other != name:
                f, g = outputs[name], outputs[other]
                cross = (g.T @ f).square().sum()
                own = torch.linalg.matrix_norm(f.T @ f) * torch.linalg.matrix_norm(g.T @ g)
                total += (cross / own).item()
        assert found.statistics["likeness"][name] == pytest.approx(total)
        theta = np.exp(-2.0 * total)
        assert found.loss[row] == pytest.approx([theta * 28, theta * 24])


def test_layers_that_repeat_others_are_the_first_to_lose_bits():
    class Copies(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one, self.two, self.other = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(4, 6)
            self.two.load_state_dict(self.one.state_dict())

        def forward(self, x):
            return self.one(x) + self.two(x) + self.other(x.flip(1).sin() * 3)

    found = mp.profile(Copies(), torch.randn(20, 4), ["w4"], "orthogonality")
    scores = dict(zip(found.groups, found.loss[:, 0], strict=True))
    assert scores["one"] == pytest.approx(scores["two"])
    assert scores["other"] > scores["one"]


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("entropy", {"balance": 2.0}),
        ("orthogonality", {"inputs": 1}),
        ("orthogonality", {"beta": 0}),
    ],
)
def test_wrong_settings_are_refused(net, data, name, wrong):
    with pytest.raises(mp.errors.InputError, match=str(next(iter(wrong.values())))):
        mp.profile(net, data, ["w4"], name, **wrong)

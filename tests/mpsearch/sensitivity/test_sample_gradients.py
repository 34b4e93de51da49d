from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import mpsearch as mp
from mpsearch.sensitivity import sample_gradients
from mpsearch.sensitivity.sample_gradients import squared_norms


def brute_force(module, calls):
    norms = []
    for n in range(len(calls[0][0])):
        total = sum((module(x[n : n + 1]) * g[n : n + 1]).sum() for x, g in calls)
        (gradient,) = torch.autograd.grad(total, [module.weight])
        norms.append(gradient.square().sum())
    return torch.stack(norms)


def calls_of(module, shape, times):
    found = []
    for _ in range(times):
        x = torch.randn(shape).double()
        found.append((x, torch.randn_like(module(x)).detach()))
    return found


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(4, 7),
)
def test_convolutions_of_any_geometry_agree_with_one_gradient_per_input(
    batch, per_group, outputs, kernel, stride, padding, groups, times, size
):
    torch.manual_seed(0)
    module = nn.Conv2d(
        groups * per_group, groups * outputs, (kernel, 1), stride, padding, groups=groups
    ).double()
    calls = calls_of(module, (batch, groups * per_group, size, size), times)
    assert torch.allclose(squared_norms(module, calls), brute_force(module, calls))


@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5), (3, 2, 40, 5)])
def test_linear_layers_on_any_number_of_positions(shape):
    module = nn.Linear(5, 4).double()
    calls = calls_of(module, shape, 1)
    assert torch.allclose(squared_norms(module, calls), brute_force(module, calls))


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(4, 6, 3, dilation=2, groups=2),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.Conv3d(4, 2, 2),
    ],
)
def test_other_layers_agree_whichever_form_is_taken(module):
    module = module.double()
    calls = calls_of(module, (3, 4, *[7] * (module.weight.ndim - 2)), 2)
    assert torch.allclose(squared_norms(module, calls), brute_force(module, calls))


def test_a_subclass_that_pads_in_its_own_forward_is_differentiated_through_it():
    class Padded(nn.Conv2d):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (0, 1, 0, 1)))

    module = Padded(2, 3, 2).double()
    calls = calls_of(module, (4, 2, 5, 5), 1)
    assert torch.allclose(squared_norms(module, calls), brute_force(module, calls))


def test_chunks_change_nothing(monkeypatch):
    module = nn.Conv2d(2, 3, 3).double()
    calls = calls_of(module, (7, 2, 6, 6), 1)
    whole = squared_norms(module, calls)
    monkeypatch.setattr(sample_gradients, "CHUNK_ELEMENTS", 1)
    assert torch.allclose(squared_norms(module, calls), whole)


def test_a_layer_that_runs_twice_counts_as_one_weight():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(torch.tanh(self.inner(x)))

    torch.manual_seed(0)
    net, x, y = Twice().double(), torch.randn(6, 4).double(), torch.randint(0, 4, (6,))
    found = mp.profile(net, mp.DataSet("d", x, y, batch_size=4), ["w4"], "empirical_fisher")
    total = 0.0
    for n in range(6):
        loss = nn.functional.cross_entropy(net(x[n : n + 1]), y[n : n + 1])
        (gradient,) = torch.autograd.grad(loss, [net.inner.weight])
        total += gradient.square().sum().item() / 6
    assert found.statistics["fisher_trace"]["inner"] == pytest.approx(total)


def test_a_layer_whose_first_axis_is_not_the_batch_is_refused():
    class Folded(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 3)

        def forward(self, x):
            return self.inner(x.reshape(-1, 2)).reshape(len(x), -1, 3).mean(dim=1)

    data = mp.DataSet("d", torch.randn(6, 4), torch.zeros(6, dtype=torch.int64))
    with pytest.raises(mp.errors.InputError, match=r"inner.*cannot be told apart"):
        mp.profile(Folded(), data, ["w4"], "empirical_fisher")


def test_an_input_that_is_overwritten_after_use_is_refused():
    class Overwriting(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            hidden = torch.tanh(self.first(x))
            out = self.second(hidden)
            hidden.mul_(0)
            return out + hidden

    data = mp.DataSet("d", torch.randn(6, 3), torch.zeros(6, dtype=torch.int64))
    with pytest.raises((mp.errors.ModelError, mp.errors.DataError), match=r"in ?place"):
        mp.profile(Overwriting(), data, ["w4"], "empirical_fisher")


def test_an_activation_that_works_in_place_on_the_first_layers_output_is_no_obstacle():
    torch.manual_seed(0)
    tables = []
    for inplace in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 5), nn.ReLU(inplace=inplace), nn.Linear(5, 4))
        data = mp.DataSet("d", torch.randn(6, 3), torch.zeros(6, dtype=torch.int64))
        tables.append(mp.profile(net, data, ["w4a4"], "empirical_fisher").loss)
    assert (tables[0] == tables[1]).all()

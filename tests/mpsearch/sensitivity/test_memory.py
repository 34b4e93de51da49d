from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.sensitivity import build
from mpsearch.sensitivity.memory import bytes_per_input


def test_saved_tensors_of_a_known_net_are_counted():
    net = nn.Sequential(nn.Linear(10, 20), nn.Tanh(), nn.Linear(20, 5)).double()
    data = mp.DataSet("d", torch.randn(3, 10).double())
    # Saved: the first input (10), tanh's output (20, which is the last layer's input too); and
    # the output (5).
    assert bytes_per_input(net, data) == 8 * (10 + 20 + 5)


@pytest.mark.parametrize(
    "estimator",
    ["gradient_deviation", "empirical_fisher", "hessian_trace", "fisher_output", "measured_loss"],
)
def test_smaller_batches_give_the_same_scores(net, exact, estimator):
    data = mp.DataSet("d", exact.inputs, exact.targets, batch_size=12)
    sizes = []
    net.register_forward_hook(lambda _, args, __: sizes.append(len(args[0])))
    free = mp.profile(net, data, ["w3"], estimator)
    assert max(sizes) == 12
    sizes.clear()
    held = build(estimator, {}).held
    limit = int(4.5 * bytes_per_input(net, data) * held)
    tight = mp.profile(net, data, ["w3"], estimator, memory_limit=limit)
    assert max(sizes) == 4
    assert np.allclose(free.loss, tight.loss, rtol=1e-9)


def test_a_limit_below_a_single_input_is_said(net, data):
    found = mp.profile(net, data, ["w3"], "gradient_deviation", memory_limit=10)
    assert any("one input at a time" in text for text in found.warnings)


def test_a_limit_of_nothing_is_refused(net, data):
    with pytest.raises(mp.errors.InputError, match="memory limit"):
        mp.profile(net, data, ["w3"], "gradient_deviation", memory_limit=0)


@pytest.mark.slow
def test_the_limit_is_seen_in_the_memory_of_the_process():
    program = """
    import sys
    from pathlib import Path
    import torch, torchvision
    import mpsearch as mp

    def peak():
        # Of this program alone: getrusage's ru_maxrss begins with that of the process before exec.
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torchvision.models.resnet18(weights=None).eval()
    data = mp.DataSet("noise", torch.randn(96, 3, 64, 64), torch.randint(0, 1000, (96,)))
    mp.profile(model, mp.DataSet("one", data.inputs[:1], data.targets[:1]), ["w4"],
               "hessian_trace", probes=2)
    before = peak()
    limit = int(sys.argv[1]) or None
    mp.profile(model, data, ["w4"], "hessian_trace", probes=2, memory_limit=limit)
    print(peak() - before)
    """
    grown = []
    for limit in (0, 100 * 2**20):
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(program), str(limit)],
            check=True,
            capture_output=True,
            text=True,
        )
        grown.append(int(run.stdout))
    assert grown[1] < 200 * 2**20
    assert grown[1] < 0.6 * grown[0]

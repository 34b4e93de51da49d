from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.sensitivity import build, output_terms
from mpsearch.sensitivity.protocol import Estimator
from mpsearch.sensitivity.shard_plan import batches_of

ESTIMATORS = {
    "fisher_output": {"labels": "model"},
    "taylor2": {"first_order": "signed"},
}


class Grabbed(Estimator):
    name = "grabbed"
    scores_activations = True

    def score(self, task):
        self.task = task
        return build("kurtosis", {}).score(task)


def task_of(net, data):
    grabbed = Grabbed()
    mp.profile(net, data, ["w4"], grabbed)
    return grabbed.task


@pytest.fixture
def many_shards(monkeypatch):
    """Every batch a shard of its own, however small the net."""
    monkeypatch.setattr("mpsearch.sensitivity.shard_plan.SMALLEST", 1.0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_any_number_of_workers_gives_the_same_bits(net, exact, estimator, many_shards):
    data = mp.DataSet("d", exact.inputs, exact.targets, batch_size=2)
    settings = ESTIMATORS[estimator] | {"seed": 3}
    alone = mp.profile(net, data, ["w3", "w4a4"], estimator, **settings)
    with ThreadPoolExecutor(3) as pool:
        shared = mp.profile(net, data, ["w3", "w4a4"], estimator, executor=pool, **settings)
    assert np.array_equal(alone.loss, shared.loss)
    assert np.array_equal(alone.stderr, shared.stderr)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_run_that_stopped_goes_on_from_its_last_batch(
    net, exact, estimator, many_shards, tmp_path
):
    data = mp.DataSet("d", exact.inputs, exact.targets, batch_size=2)
    settings = ESTIMATORS[estimator] | {"seed": 3}
    whole = mp.profile(net, data, ["w3"], estimator, **settings)
    runs = []

    def stopping(module, args):
        runs.append(len(args[0]))
        if sum(runs) > 8:
            raise KeyboardInterrupt

    # The first run is of one input, to see the layers; four of six batches follow.
    hook = net.register_forward_pre_hook(stopping)
    with pytest.raises(KeyboardInterrupt):
        mp.profile(net, data, ["w3"], estimator, cache_dir=tmp_path, **settings)
    hook.remove()
    finished = len(list((tmp_path / "shards").iterdir()))
    assert finished == 3
    runs.clear()
    hook = net.register_forward_pre_hook(lambda _, args: runs.append(len(args[0])))
    resumed = mp.profile(net, data, ["w3"], estimator, cache_dir=tmp_path, **settings)
    hook.remove()
    assert runs == [1, 2, 2, 2]
    assert np.array_equal(whole.loss, resumed.loss)


@pytest.mark.parametrize(("inputs", "batch_size"), [(20, 20), (20, 7), (3, 256), (1, 1)])
def test_batches_are_cut_until_no_layer_fills_a_block_that_is_not_kept(inputs, batch_size):
    # The convolution makes 4 x 512 x 512 float32 of an input: 4 MiB.
    net = nn.Sequential(
        nn.Conv2d(1, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    ).eval()
    data = mp.DataSet("d", torch.randn(inputs, 1, 512, 512), batch_size=batch_size)
    task = task_of(net, data)
    cut = output_terms.small_batches(task)
    sizes = [len(batch[0]) for batch in cut.data.batches()]
    assert sum(sizes) == inputs
    assert max(sizes) * 4 * 2**20 <= output_terms.MAPPED
    assert max(sizes) <= batch_size
    # No smaller than that needs, and not a large batch and a small rest.
    assert batches_of(cut) <= batches_of(task) * math.ceil(batch_size / 8)
    assert len(sizes) == 1 or sizes[0] - sizes[-1] < len(sizes)


def test_batches_that_malloc_keeps_stay_as_they_are(net, data):
    task = task_of(net, data)
    assert output_terms.small_batches(task).data.batch_size == min(data.batch_size, len(data))


def test_a_loss_that_reads_nothing_of_the_output_has_no_slope(net, exact):
    def constant(output, target):
        return torch.zeros((), dtype=output.dtype)

    data = mp.DataSet("d", exact.inputs, exact.targets)
    found = mp.profile(net, data, ["w3"], "fisher_output", loss=constant, labels="given")
    assert not found.loss.any()
    assert any("say nothing" in text for text in found.warnings)


def test_squares_are_summed_as_precisely_as_float64_does(net, exact):
    # Errors of 16 million elements: one float32 norm over all of them is off by 1e-4.
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Flatten()).eval()
    data = mp.DataSet("d", torch.rand(1, 1, 1024, 1024))
    task = task_of(net, data)
    weight = net[0].weight.detach()
    moved = task.quantizer.weight("0", task.options[0].weight) - weight
    # The gradient of the mean square is twice the output over its size.
    output = net(data.inputs).detach().double()
    error = nn.functional.conv2d(data.inputs.double(), moved.double()).flatten(1)
    truth = float(((2 * output / output.shape[1]) * error).square().sum())
    data = replace(data, targets=torch.zeros_like(output).float())
    found = mp.profile(net, data, ["w4"], "fisher_output", loss="mse", labels="given")
    assert found.loss[0, 0] == pytest.approx(truth, rel=1e-6)

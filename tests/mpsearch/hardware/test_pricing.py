from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.errors import DataError
from mpsearch.hardware.schedule import record_schedule
from mpsearch.models.digits import DigitsResNet


class OneByOne(nn.Module):
    """Refuses more than one input at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        if len(x) != 1:
            raise ValueError("one input at a time")
        return self.fc(x)


def test_a_schedule_that_cannot_be_recorded_is_left_out_with_a_warning() -> None:
    costs = mp.price(OneByOne(), torch.zeros(1, 3), ["w8a8"], batch=2)
    assert "activation_memory" not in costs.resources
    assert "one input at a time" in costs.warnings[0]
    with pytest.raises(DataError, match="one input at a time"):
        mp.price(OneByOne(), torch.zeros(1, 3), ["w8a8"], batch=2, resources=["activation_memory"])


def test_weights_computed_on_the_way_are_no_activations() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    plain = record_schedule(model, torch.zeros(2, 4))

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = model

        def forward(self, x):
            for layer in self.layers:
                x = nn.functional.linear(x, layer.weight * 2.0, layer.bias)
            return x

    scaled = record_schedule(Scaled(), torch.zeros(2, 4))
    assert scaled.peak() == plain.peak()
    assert [t.producer for t in scaled.tensors] == [None, "layers.0", "layers.1"]


def test_attention_and_integer_inputs_are_recorded() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(10, 8)
            self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

        def forward(self, tokens):
            return self.layer(self.words(tokens))

    tokens = torch.tensor([[1, 2, 3]])
    costs = mp.price(Encoder(), tokens, ["w8a8", "float"])
    steps = costs.peaks["activation_memory"]
    assert costs.baseline["activation_memory"] > 0
    assert {group for step in steps for group in step.cost} <= set(costs.groups)


def test_memory_of_the_running_model_is_priced_when_asked_for_by_name() -> None:
    model, image = DigitsResNet(), torch.randn(2, 1, 8, 8)
    name = "eager_activation_memory"
    assert name not in mp.price(model, image, ["float", "w8a8"]).resources
    costs = mp.price(model, image, ["float", "w8a8"], resources=[name, "activation_memory"])
    everything_float = np.zeros(len(costs.groups), int)
    schedule = record_schedule(model, image[:1].clone())
    assert costs.usage(name, everything_float) == schedule.peak(as_run=True)
    assert costs.usage("activation_memory", everything_float) == schedule.peak()
    answer = mp.search(
        model,
        (image, torch.zeros(2, dtype=torch.long)),
        ["float", "w8a8"],
        {name: "0.6x"},
        estimator="sqnr",
        verified=False,
    )
    assert answer.budgets[name].usage <= answer.budgets[name].limit

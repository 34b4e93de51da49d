"""Re-using a prefix gives the same bits as running in full, on every shape of model."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from mpsearch.engine.calibration import calibrate
from mpsearch.engine.meter import AllocationMeter
from mpsearch.engine.quantizer import Quantizer
from mpsearch.errors import DataError, InputError
from mpsearch.formats import Option, parse_option
from mpsearch.losses import Loss, as_loss, measure
from mpsearch.models.dataset import Batch
from mpsearch.models.layers import find_layers
from mpsearch.models.running import evaluation_mode, forward
from tests.mpsearch.engine.architectures import ARCHITECTURES, build

OPTIONS = [parse_option(name) for name in ("w2a4", "w4", "w:float/a:int3")]


class Outputs:
    """A loss that keeps every output it is shown."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        self.seen.append(output.clone())
        return output.square().mean()

    def loss(self) -> Loss:
        return Loss("seen", self)


def prepared(name: str, batches: int = 2) -> tuple[Quantizer, list[str], list[Batch]]:
    model, first = build(name)
    data = [(first, torch.zeros(len(first)))]
    for number in range(1, batches):
        inputs = build(name, seed=number)[1]
        data.append((inputs, torch.zeros(len(inputs))))
    layers = [layer.name for layer in find_layers(model, data[0]).layers]
    return Quantizer(model, calibrate(model, layers, data)), layers, data


def run_in_full(quantizer: Quantizer, choice: dict[str, Option], data: list[Batch]) -> list[Tensor]:
    with torch.no_grad(), evaluation_mode(quantizer.model), quantizer.options(choice) as model:
        return [forward(model, inputs).double() for inputs, _ in data]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_single_layer_change_gives_the_bits_of_a_full_run(name: str) -> None:
    quantizer, layers, data = prepared(name)
    outputs = Outputs()
    meter = AllocationMeter(quantizer, data, outputs.loss())
    for layer in layers:
        for option in OPTIONS:
            outputs.seen.clear()
            meter.measure({layer: option})
            expected = run_in_full(quantizer, {layer: option}, data)
            for found, wanted in zip(outputs.seen, expected, strict=True):
                assert torch.equal(found, wanted), (layer, option.name)
    assert not meter.notes


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_changes_against_a_quantized_base_give_the_bits_of_a_full_run(name: str) -> None:
    quantizer, layers, data = prepared(name)
    draw = random.Random(0)
    base = {layer: draw.choice(OPTIONS) for layer in layers}
    outputs = Outputs()
    meter = AllocationMeter(quantizer, data, outputs.loss(), base=base)
    for layer in layers:
        choice = {**base, layer: parse_option("w3")}
        outputs.seen.clear()
        meter.measure(choice)
        for found, wanted in zip(outputs.seen, run_in_full(quantizer, choice, data), strict=True):
            assert torch.equal(found, wanted), layer


@pytest.mark.parametrize("memory_limit", [0, 300, 2_000, 20_000])
@pytest.mark.parametrize("name", ["residual", "shared", "attention"])
def test_any_memory_limit_gives_the_same_measurements(name: str, memory_limit: int) -> None:
    quantizer, layers, data = prepared(name)
    choices = [{layer: OPTIONS[0]} for layer in layers]
    unlimited = AllocationMeter(quantizer, data, Outputs().loss()).measure_many(choices)
    limited = AllocationMeter(quantizer, data, Outputs().loss(), memory_limit=memory_limit)
    assert limited.measure_many(choices) == unlimited
    assert [limited.measure(choice) for choice in choices] == unlimited
    held = sum(recording.memory for recording in limited._recordings.values())
    assert held <= memory_limit


def test_calls_before_the_change_are_not_run_again() -> None:
    quantizer, layers, data = prepared("residual", batches=1)
    ran: list[str] = []
    meter = AllocationMeter(quantizer, data, Outputs().loss())
    meter.measure({})
    for name in ("stem", "blocks.0.conv1", "blocks.1.conv1", "blocks.1.conv2"):
        module = quantizer.model.get_submodule(name)
        module._conv_forward = _counting(module, name, ran)  # type: ignore[assignment]
    meter.measure({"blocks.1.conv2": OPTIONS[0]})
    assert ran == ["blocks.1.conv2"]
    assert layers[0] == "stem"


def _counting(module: nn.Module, name: str, ran: list[str]) -> object:
    original = module._conv_forward

    def convolve(*args: Tensor) -> Tensor:
        ran.append(name)
        return original(*args)  # type: ignore[operator]

    return convolve


def test_the_base_itself_is_not_run_again() -> None:
    quantizer, _, data = prepared("residual")
    meter = AllocationMeter(quantizer, data, Outputs().loss())
    first = meter.measure({})
    quantizer.model.forward = None  # type: ignore[assignment,method-assign]
    assert meter.measure({}) == first


def test_measuring_leaves_no_trace_on_the_model() -> None:
    quantizer, layers, data = prepared("attention")
    model = quantizer.model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    AllocationMeter(quantizer, data, Outputs().loss()).measure_many([{layers[1]: OPTIONS[0]}])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for module in model.modules():
        assert module.training
        assert "forward" not in module.__dict__
        assert not module._forward_pre_hooks
        assert not module._forward_hooks


def test_a_forward_method_set_on_the_object_is_put_back() -> None:
    quantizer, layers, data = prepared("sequential")
    module = quantizer.model[2]  # type: ignore[index]
    own = module.forward
    module.forward = own
    AllocationMeter(quantizer, data, Outputs().loss()).measure({layers[2]: OPTIONS[0]})
    assert module.__dict__["forward"] is own


def test_a_model_that_draws_random_numbers_is_run_in_full_and_says_so() -> None:
    class Noisy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.rand(1)

    model = Noisy(nn.Linear(6, 6), nn.Linear(6, 5)).eval()
    data = [(torch.randn(3, 6), torch.zeros(3))]
    meter = AllocationMeter(Quantizer(model, {}), data, Outputs().loss())
    meter.measure({"1": parse_option("w4")})
    assert meter.notes == ("no prefix is re-used: two runs of the model give different outputs",)


def test_a_model_that_remembers_is_run_in_full_and_says_so() -> None:
    class Counter(nn.Linear):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls = self.calls + 1
            return super().forward(x)

    model = nn.Sequential(Counter(6, 6), nn.Linear(6, 5)).eval()
    data = [(torch.randn(3, 6), torch.zeros(3))]
    meter = AllocationMeter(Quantizer(model, {}), data, Outputs().loss())
    meter.measure({"1": parse_option("w4")})
    assert "changes attributes of 0" in meter.notes[0]


def test_a_model_that_writes_to_a_buffer_is_run_in_full_and_says_so() -> None:
    class Averaging(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 6)
            self.register_buffer("mean", torch.zeros(6))

        def forward(self, x: Tensor) -> Tensor:
            self.mean.mul_(0.9).add_(x.mean(0))  # type: ignore[operator]
            return self.linear(x) - self.mean

    data = [(torch.randn(3, 6), torch.zeros(3))]
    meter = AllocationMeter(Quantizer(Averaging().eval(), {}), data, Outputs().loss())
    meter.measure({"linear": parse_option("w4")})
    assert meter.notes == ("no prefix is re-used: running the model writes to mean",)


def test_calls_around_a_users_hook_are_run_so_that_the_hook_sees_them() -> None:
    quantizer, _, data = prepared("residual", batches=1)
    seen: list[int] = []
    hooked = quantizer.model.get_submodule("blocks.0.bn1")
    hooked.register_forward_hook(lambda *_: seen.append(1))
    meter = AllocationMeter(quantizer, data, Outputs().loss())
    meter.measure({})
    before = len(seen)
    meter.measure({"head": OPTIONS[0]})
    assert len(seen) == before + 1


def test_divergence_and_noise_compare_with_the_float_model() -> None:
    quantizer, layers, data = prepared("shared")
    choice = {layer: parse_option("w4") for layer in layers}
    for base in ({}, choice):
        meter = AllocationMeter(quantizer, data, as_loss("token_kl_to_float"), base=base)
        assert meter.measure({}).loss == 0
        assert meter.measure({}).metric == 1
        assert meter.measure(choice).loss > 1e-3
    noise = AllocationMeter(quantizer, data, as_loss("noise_to_signal"))
    signal = run_in_full(quantizer, {}, data)
    found = run_in_full(quantizer, choice, data)
    ratios = [
        ((q - s).square().sum() / s.square().sum()).item()
        for batch_s, batch_q in zip(signal, found, strict=True)
        for s, q in zip(batch_s, batch_q, strict=True)
    ]
    assert noise.measure(choice).loss == pytest.approx(sum(ratios) / len(ratios), rel=1e-12)


def test_progress_counts_every_run_of_a_batch() -> None:
    quantizer, layers, data = prepared("sequential")
    steps: list[tuple[int, int]] = []
    choices = [{layer: OPTIONS[0]} for layer in layers]
    AllocationMeter(quantizer, data, Outputs().loss()).measure_many(
        choices, lambda done, total: steps.append((done, total))
    )
    assert steps == [(done, 6) for done in range(1, 7)]


def test_the_meter_agrees_with_measure() -> None:
    quantizer, layers, _ = prepared("residual")
    data = [(torch.randn(5, 3, 6, 6), torch.randint(0, 5, (5,))) for _ in range(3)]
    loss = as_loss("cross_entropy")
    meter = AllocationMeter(quantizer, data, loss)
    for layer in layers:
        found = meter.measure({layer: OPTIONS[0]})
        with quantizer.options({layer: OPTIONS[0]}) as model:
            assert found == measure(model, data, loss)


def test_measuring_inside_a_context_of_options_is_refused() -> None:
    quantizer, layers, data = prepared("sequential")
    meter = AllocationMeter(quantizer, data, Outputs().loss())
    with (
        quantizer.options({layers[0]: OPTIONS[0]}),
        pytest.raises(InputError, match="options on"),
    ):
        meter.measure({})
    meter.measure({})


@pytest.mark.parametrize("turns", [2, 4])
def test_a_model_whose_calls_change_places_is_run_in_full_and_says_so(turns: int) -> None:
    runs: list[int] = []

    class Turning(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
            self.head = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            runs.append(1)
            parts = [self.one, self.two]
            if len(runs) >= turns:  # in the second run recorded, or in the first replayed
                parts.reverse()
            return self.head(sum((part(x) for part in parts), torch.zeros_like(x)))

    model, data = Turning().eval(), [(torch.randn(3, 6), torch.zeros(3))]
    quantizer, outputs = Quantizer(model, {}), Outputs()
    meter = AllocationMeter(quantizer, data, outputs.loss())
    choice = {"head": parse_option("w4")}
    meter.measure(choice)
    assert torch.equal(outputs.seen[-1], run_in_full(quantizer, choice, data)[0])
    assert "the order of calls changes: two instead of one" in meter.notes[0]


def test_code_that_cannot_be_observed_is_run_in_full_and_says_so() -> None:
    class Shy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            if "forward" in self.linear.__dict__:
                raise RuntimeError("somebody is watching")
            return self.linear(x)

    data = [(torch.randn(3, 6), torch.zeros(3))]
    meter = AllocationMeter(Quantizer(Shy().eval(), {}), data, Outputs().loss())
    meter.measure({"linear": parse_option("w4")})
    assert "somebody is watching" in meter.notes[0]


def test_weights_trained_between_measurements_are_measured_anew() -> None:
    quantizer, layers, data = prepared("residual")
    outputs = Outputs()
    meter = AllocationMeter(quantizer, data, outputs.loss())
    choice = {layers[-1]: OPTIONS[0]}
    meter.measure(choice)
    with torch.no_grad():
        quantizer.model.get_parameter("stem.weight").mul_(1.5)
    outputs.seen.clear()
    meter.measure(choice)
    for found, wanted in zip(outputs.seen, run_in_full(quantizer, choice, data), strict=True):
        assert torch.equal(found, wanted)


def test_no_data_and_negative_memory_are_refused() -> None:
    quantizer, _, data = prepared("sequential")
    with pytest.raises(DataError, match="no input"):
        AllocationMeter(quantizer, [], Outputs().loss())
    with pytest.raises(InputError, match="negative"):
        AllocationMeter(quantizer, data, Outputs().loss(), memory_limit=-1)

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

from mpsearch.hardware.schedule import INPUT, record_schedule
from mpsearch.models.digits import DigitsResNet

ROWS, WIDTH = 4, 6


class Program(nn.Module):
    """A net written as a list of (operation, inputs); every intermediate can be used again."""

    def __init__(self, lines) -> None:
        super().__init__()
        self.lines = lines
        self.layers = nn.ModuleDict(
            {str(n): nn.Linear(WIDTH, WIDTH) for n, line in enumerate(lines) if line[0] == "linear"}
        )

    def forward(self, x):
        values = [x]
        for number, (operation, first, second) in enumerate(self.lines):
            a, b = values[first], values[second]
            if operation == "linear":
                values.append(self.layers[str(number)](a))
            elif operation == "relu":
                values.append(torch.relu(a))
            elif operation == "relu_":
                values.append(torch.relu_(a))
            elif operation == "view":
                values.append(a.view(ROWS, WIDTH))
            else:
                values.append(a + b)
        return values[-1]


def simulated_peak(lines) -> int:
    """Walk over the program with a list of storages, freeing each after its last use."""
    storage_of, born, last = [0], {0: -1}, {0: -1}
    for step, (operation, first, second) in enumerate(lines):
        used = {storage_of[first]} | ({storage_of[second]} if operation == "add" else set())
        if operation != "view":  # a view computes nothing and keeps nothing alive by itself
            for storage in used:
                last[storage] = step
        if operation in {"view", "relu_"}:
            storage_of.append(storage_of[first])
        else:
            new = len(born)
            born[new] = last[new] = step
            storage_of.append(new)
    last[storage_of[-1]] = len(lines)
    size = ROWS * WIDTH * 4
    computing = [step for step, line in enumerate(lines) if line[0] != "view"]
    return max(sum(size for s in born if born[s] <= step <= last[s]) for step in computing)


@st.composite
def programs(draw):
    lines = []
    for position in range(draw(st.integers(1, 12))):
        operation = draw(st.sampled_from(["linear", "relu", "relu_", "view", "add"]))
        places = st.integers(0, position)
        lines.append((operation, draw(places), draw(places)))
    return [("linear", 0, 0), *((o, a + 1, b + 1) for o, a, b in lines)]


@given(programs())
@settings(max_examples=60, deadline=None)
def test_the_peak_is_that_of_a_simulation_with_a_list_of_storages(lines) -> None:
    schedule = record_schedule(Program(lines), torch.zeros(ROWS, WIDTH))
    assert schedule.peak() == simulated_peak(lines)


class Residual(nn.Module):
    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.a = nn.Conv2d(2, 2, 3, padding=1)
        self.b = nn.Conv2d(2, 2, 3, padding=1)
        self.relu = nn.ReLU(inplace=inplace)

    def forward(self, x):
        y = self.relu(self.a(x))
        return self.relu(y + self.b(y))


def test_residuals_stay_and_operations_in_place_take_nothing() -> None:
    image = torch.zeros(1, 2, 8, 8)
    one = 2 * 8 * 8 * 4
    # y, b(y) and their sum are there together; out of place the relu holds no third.
    assert record_schedule(Residual(inplace=True), image).peak() == 3 * one
    sequential = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Flatten())
    assert record_schedule(sequential, image).peak() == 2 * one


def test_a_tensor_belongs_to_the_latest_layer_it_comes_from() -> None:
    schedule = record_schedule(Residual(inplace=False), torch.zeros(1, 2, 8, 8))
    assert [t.producer for t in schedule.tensors] == [None, "a", "a", "b", "b", "b"]
    assert schedule.steps[0] == "0:convolution of a"


def test_recording_leaves_the_model_as_it_was() -> None:
    model = DigitsResNet().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    record_schedule(model, torch.zeros(2, 1, 8, 8))
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def measured_peak(model: nn.Module, inputs: torch.Tensor) -> int:
    """Peak of cumulated allocations, without what an operation allocates and frees by itself."""
    with torch.no_grad(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
        model.eval()(inputs)
    events: list[tuple[int, int, int, int | None]] = []

    def walk(event, operation: int | None) -> None:
        if event.tag == _EventType.Allocation:
            fields = event.extra_fields
            events.append((event.start_time_ns, fields.ptr, fields.alloc_size, operation))
            return
        if operation is None and event.name.startswith("aten::"):
            operation = event.start_time_ns
        for child in event.children:
            walk(child, operation)

    for root in run.profiler.kineto_results.experimental_event_tree():
        walk(root, None)
    events.sort(key=lambda event: event[0])
    open_at: dict[int, int] = {}
    scratch: set[int] = set()
    for number, (_, pointer, size, operation) in enumerate(events):
        if size > 0:
            open_at[pointer] = number
        elif pointer in open_at:
            made = open_at.pop(pointer)
            if operation is not None and events[made][3] == operation:
                scratch |= {made, number}
    held = peak = 0
    for number, (_, _, size, _) in enumerate(events):
        held += 0 if number in scratch else size
        peak = max(peak, held)
    return peak


def without_input(schedule, *, as_run: bool) -> int:
    return max(
        sum(t.size for t in schedule.live(step, as_run=as_run) if t.born != INPUT)
        for step in range(len(schedule.steps))
    )


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "resnet50"])
def test_peaks_of_real_models_are_what_the_profiler_sees(name: str) -> None:
    torchvision = pytest.importorskip("torchvision")
    model, image = getattr(torchvision.models, name)(), torch.randn(1, 3, 96, 96)
    schedule = record_schedule(model, image)
    seen = measured_peak(model, image)
    assert without_input(schedule, as_run=True) == pytest.approx(seen, rel=0.01)
    assert without_input(schedule, as_run=False) == pytest.approx(seen, rel=0.1)


@pytest.mark.parametrize("name", ["digits", "squeezenet1_1"])
def test_what_python_holds_beyond_its_last_use_is_told_apart(name: str) -> None:
    if name == "digits":
        model, image = DigitsResNet(), torch.randn(8, 1, 8, 8)
    else:
        torchvision = pytest.importorskip("torchvision")
        model, image = getattr(torchvision.models, name)(), torch.randn(1, 3, 96, 96)
    schedule = record_schedule(model, image)
    seen = measured_peak(model, image)
    assert without_input(schedule, as_run=True) == pytest.approx(seen, rel=0.01)
    assert without_input(schedule, as_run=False) < 0.9 * seen

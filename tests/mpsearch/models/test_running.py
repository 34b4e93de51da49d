"""Running a model: what it may do to its inputs, and code that was compiled before."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch._dynamo.eval_frame
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.models.fields import pack_fields
from mpsearch.models.running import forward


class Normalising(nn.Module):
    """Centres its input in place, as many image models do first."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.sub_(0.25).mul_(0.5))


def test_a_model_that_writes_to_its_input_leaves_the_data_alone() -> None:
    torch.manual_seed(0)
    model, x = Normalising().eval(), torch.randn(8, 6)
    expected, before = model(x.clone()), x.clone()
    for _ in range(3):
        assert torch.equal(forward(model, x), expected)
    assert torch.equal(x, before)


def test_named_inputs_are_left_alone_too() -> None:
    torch.manual_seed(0)
    model, packed = Normalising().eval(), pack_fields({"x": torch.randn(8, 6)})
    before = packed.clone()
    first = forward(model, packed)
    assert torch.equal(forward(model, packed), first)
    assert torch.equal(packed, before)


def test_a_profile_of_a_model_that_writes_to_its_input_is_that_of_one_that_does_not() -> None:
    class Pure(Normalising):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc((x - 0.25) * 0.5)

    torch.manual_seed(0)
    writing, pure = Normalising().eval(), Pure().eval()
    pure.load_state_dict(writing.state_dict())
    data = (torch.randn(16, 6), torch.randint(0, 3, (16,)))
    options = ["w2a4", "w4a8", "w8a8"]
    found = mp.profile(writing, data, options=options, estimator="measured_loss")
    wanted = mp.profile(pure, data, options=options, estimator="measured_loss")
    assert (found.loss == wanted.loss).all()


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("estimator", ["measured_loss", "hessian_trace", "fisher_output"])
def test_a_compiled_model_has_the_profile_of_its_source(estimator: str, warm: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 3)).eval()
    data = (torch.randn(16, 6), torch.randint(0, 3, (16,)))
    options = ["w2a4", "w4a8", "w8a8"]
    wanted = mp.profile(model, data, options=options, estimator=estimator)
    compiled = torch.compile(model, backend="eager")
    if warm:
        compiled(data[0])
        compiled(data[0][:1])
    found = mp.profile(compiled, data, options=options, estimator=estimator)
    assert found.groups == [f"_orig_mod.{name}" for name in wanted.groups]
    assert (found.loss == wanted.loss).all()


class Waiting(nn.Module):
    """Waits in its forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 3)
        self.inside, self.go_on = threading.Event(), threading.Event()

    def forward(self, x: Tensor) -> Tensor:
        self.inside.set()
        assert self.go_on.wait(60)
        return self.fc(x)


def test_models_that_run_in_threads_leave_torch_compile_as_it_was() -> None:
    runs = []

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        runs.append(1)
        return graph

    with ThreadPoolExecutor(2) as pool:
        models = [Waiting(), Waiting()]
        done = []
        for model in models:
            done.append(pool.submit(forward, model, torch.zeros(1, 6)))
            assert model.inside.wait(60)
        assert torch._dynamo.eval_frame._stance.stance == "force_eager"
        for model, future in zip(models, done, strict=True):  # the first that came leaves first
            model.go_on.set()
            future.result(60)
    torch.compile(Normalising().eval(), backend=counting)(torch.zeros(2, 6))
    assert runs

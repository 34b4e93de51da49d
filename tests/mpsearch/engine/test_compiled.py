"""Compiled models: code that was made before the hooks must not answer for them."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.quantize import restore


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 16)
        self.b = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class Holder(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * 2


def _wrapped(model: nn.Module) -> tuple[nn.Module, str]:
    return torch.compile(model, backend="eager"), "_orig_mod.b"


def _in_place(model: nn.Module) -> tuple[nn.Module, str]:
    model.compile(backend="eager")
    return model, "b"


def _part(model: nn.Module) -> tuple[nn.Module, str]:
    return Holder(torch.compile(model, backend="eager")), "inner._orig_mod.b"


def _layer(model: Net) -> tuple[nn.Module, str]:
    model.b.compile(backend="eager")
    return model, "b"


@pytest.mark.parametrize("compiled", [_wrapped, _in_place, _part, _layer])
def test_inputs_are_rounded_in_models_that_ran_compiled_before(
    compiled: Callable[[nn.Module], tuple[nn.Module, str]],
) -> None:
    torch.manual_seed(0)
    plain, x = Net().eval(), torch.randn(32, 8)
    model, layer = compiled(copy.deepcopy(plain))
    factor = 2 if isinstance(model, Holder) else 1
    before = model(x)
    expected = factor * mp.apply(plain, {"b": "w4a3"}, x)(x)
    assert not torch.equal(expected, before)

    assert torch.equal(mp.apply(model, {layer: "w4a3"}, x)(x), expected)
    with mp.quantized(model, {layer: "w4a3"}, x):
        assert torch.equal(model(x), expected)
    assert torch.equal(model(x), before)
    mp.apply(model, {layer: "w4a3"}, x, inplace=True)
    assert torch.equal(model(x), expected)
    assert torch.equal(restore(model)(x), before)


def test_compiled_code_is_back_after_a_context() -> None:
    torch.manual_seed(0)
    runs = []

    def counting(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        def run(*args: Tensor) -> object:
            runs.append(1)
            return graph(*args)

        return run

    x = torch.randn(4, 8)
    for model in (torch.compile(Net().eval(), backend=counting), Net().eval()):
        if isinstance(model, Net):
            model.compile(backend=counting)
        layer = next(name for name, module in model.named_modules() if name.endswith("b"))
        model(x)
        with mp.quantized(model, {layer: "w4a4"}, x):
            runs.clear()
            model(x)
            assert not runs
        model(x)
        assert runs


def test_rounded_weights_alone_leave_the_compiled_code_in_use() -> None:
    torch.manual_seed(0)
    plain, x = Net().eval(), torch.randn(32, 8)
    model = torch.compile(copy.deepcopy(plain), backend="eager")
    model(x)
    forward = model.forward
    with mp.quantized(model, {"_orig_mod.b": "w4"}):
        assert model.forward is forward
        assert torch.equal(model(x), mp.apply(plain, {"b": "w4"})(x))

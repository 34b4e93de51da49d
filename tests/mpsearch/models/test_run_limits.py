"""Memory and arithmetic that a run of a graph would take, foreseen before any of it is taken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mpsearch.errors import DataError, ModelError
from mpsearch.models.named import NamedModel
from mpsearch.models.registry import as_data, check_fit
from mpsearch.models.run_limits import LimitedRun, RunLimits
from mpsearch.models.running import first_output

MIB = 2**20


def _run(function: Callable[[], object], **limits: float) -> LimitedRun:
    with torch.no_grad(), LimitedRun(RunLimits(**limits), "the graph") as run:
        function()
    return run


def test_the_peak_is_what_is_held_at_the_same_time() -> None:
    size = 2**18  # float32: 1 MiB

    def chain() -> None:
        value = torch.zeros(size)
        for _ in range(10):
            value = value + 1  # the sum and its operand are held together

    assert _run(chain).peak == 2 * MIB

    def kept() -> None:
        values = [torch.zeros(size) for _ in range(10)]
        views = [each.view(2, -1)[0] for each in values]
        del values  # the views hold all of it
        views.append(torch.zeros(size))

    assert _run(kept).peak == 11 * MIB


def test_views_and_broadcasts_take_no_memory_and_weights_are_not_counted() -> None:
    layer = nn.Linear(512, 512)
    inputs = torch.zeros(4, 512)
    run = _run(lambda: layer(inputs.expand(4, 512)).view(-1).expand(10**9, 2048))
    assert run.peak == 4 * 512 * 4


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_operations_of_a_product_are_two_for_each_multiplication(m: int, k: int, n: int) -> None:
    assert _run(lambda: torch.ones(m, k) @ torch.ones(k, n)).operations >= 2 * m * k * n


def _endless() -> None:
    value = torch.zeros(1)
    while True:
        value = value + 1


HUNGRY: dict[str, Callable[[], object]] = {
    "full": lambda: torch.full((10**5, 10**5, 10), 1.0),
    "arange": lambda: torch.arange(10**11),
    "linspace": lambda: torch.linspace(0, 1, 10**11),
    "eye": lambda: torch.eye(10**6),
    "expand and add": lambda: torch.zeros(1).expand(10**11) + 1,
    "outer product": lambda: torch.zeros(10**6, 1) + torch.zeros(10**6),
    "repeat": lambda: torch.zeros(1000).repeat(10**9),
    "tile": lambda: torch.tile(torch.zeros(1000), (10**8,)),
    "pad": lambda: nn.functional.pad(torch.zeros(1, 1, 2, 2), (10**6,) * 4),
    "upsample": lambda: nn.functional.interpolate(torch.zeros(1, 1, 8, 8), scale_factor=10**6),
    "convolution": lambda: nn.functional.conv2d(
        torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 1, 1), padding=10**6
    ),
    "one_hot": lambda: nn.functional.one_hot(torch.arange(10**5), 10**7),
    "repeat_interleave": lambda: torch.repeat_interleave(torch.tensor([10**12, 1])),
    "bincount": lambda: torch.bincount(torch.tensor([10**12])),
    "histc": lambda: torch.histc(torch.ones(3), bins=10**12),
    "nonzero": lambda: torch.zeros(1).expand(10**12).nonzero(),
    "masked_select": lambda: torch.zeros(10**6, 1).masked_select(torch.ones(10**6) > 0),
    "gather": lambda: torch.zeros(10, 1).expand(10, 10**10)[torch.zeros(100, dtype=torch.int64)],
    "hundred tensors": lambda: [torch.zeros(2**26) for _ in range(100)],
}


@pytest.mark.parametrize("name", HUNGRY)
def test_what_would_not_fit_into_memory_is_never_run(name: str) -> None:
    before = _resident()
    with pytest.raises(ModelError, match=r"bytes of memory|cannot be foreseen"):
        _run(HUNGRY[name], memory=2**29)
    assert _resident() - before < 2**29 + 64 * MIB  # the limit, and what allocators round up


def _resident() -> int:
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * 4096 if pages.exists() else 0


BUSY: dict[str, Callable[[], object]] = {
    "product": lambda: torch.zeros(1, 30_000).expand(30_000, -1) @ torch.zeros(30_000, 9000),
    "pooling": lambda: nn.functional.max_pool2d(torch.zeros(1, 1, 4000, 4000), 2001, 1, 1000),
    "svd": lambda: torch.linalg.svdvals(torch.zeros(1, 40_000).expand(40_000, -1)),
    "attention": lambda: nn.functional.scaled_dot_product_attention(
        *[torch.zeros(1, 1, 200_000, 64)] * 3
    ),
    "convolution": lambda: nn.functional.conv2d(
        torch.zeros(1, 1, 3000, 3000), torch.zeros(1, 1, 1000, 1000), padding=500
    ),
}


@pytest.mark.parametrize("name", BUSY)
def test_what_would_compute_for_hours_is_never_run(name: str) -> None:
    with pytest.raises(ModelError, match=r"operations, of|cannot be foreseen"):
        _run(BUSY[name])


def test_graphs_of_endless_small_operations_end() -> None:
    with pytest.raises(ModelError, match="more than 1,000 operations"):
        _run(_endless, calls=1000)
    with pytest.raises(ModelError, match=r"more than 0\.05 seconds"):
        _run(_endless, seconds=0.05)


def test_an_operation_that_fails_says_so_itself() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        _run(lambda: torch.zeros(2, 3) @ torch.zeros(4, 5))
    with pytest.raises(IndexError):
        _run(lambda: torch.zeros(2)[torch.tensor([3])])


class Squares(nn.Module):
    """All products of two values of an input."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, :, None] * x[:, None, :]).flatten(1)


def test_a_batch_that_would_pass_the_limit_names_the_batch_that_does_not() -> None:
    named = NamedModel("squares.onnx", Squares(), limits=RunLimits(memory=2**25))
    assert first_output(named, torch.ones(1, 512), 32).shape == (1, 2**18)
    with pytest.raises(DataError, match="use batches of 32"):
        check_fit(named, as_data([torch.ones(33, 512)]))


def test_models_whose_code_is_known_run_without_limits() -> None:
    assert first_output(NamedModel("m", Squares()), torch.ones(1, 4), 10**9).shape == (1, 16)

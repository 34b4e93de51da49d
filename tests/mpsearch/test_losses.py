"""Losses and metrics against torch, scipy and figures worked out by hand; sums over batches."""

from __future__ import annotations

import math

import mpmath
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.errors import DataError, InputError, ModelError, UnknownNameError
from mpsearch.losses import Loss, as_loss, known_losses, measure, with_float_outputs


class Given(nn.Module):
    """Returns the logits it holds for the inputs' indices."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, index: Tensor) -> Tensor:
        return self.logits[index]  # type: ignore[index]


def batches(count: int, targets: Tensor, size: int) -> list[tuple[Tensor, Tensor]]:
    index = torch.arange(count)
    return list(zip(index.split(size), targets.split(size), strict=True))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 7), st.integers(0, 2**31))
def test_the_measurement_does_not_depend_on_how_data_are_cut(
    count: int, size: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, 5, generator=generator)
    targets = torch.randint(0, 5, (count,), generator=generator)
    found = measure(Given(logits), batches(count, targets, size), as_loss("cross_entropy"))
    expected = -logits.double().log_softmax(1)[torch.arange(count), targets].mean()
    assert found.loss == pytest.approx(float(expected), rel=1e-12)
    hits = (logits.argmax(1) == targets).double().mean()
    assert found.metric == pytest.approx(float(hits))


def test_ignored_targets_weigh_nothing() -> None:
    logits, targets = torch.randn(6, 3), torch.tensor([0, -100, -100, 2, -100, -100])
    found = measure(Given(logits), batches(6, targets, 2), as_loss("cross_entropy"))
    expected = nn.functional.cross_entropy(logits.double(), targets)
    assert found.loss == pytest.approx(float(expected), rel=1e-12)


def test_next_token_perplexity_counts_tokens_not_batches() -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, 7, (5, 6))
    ids[3:, 2:] = -100  # short texts, padded
    logits = torch.randn(5, 6, 7)
    found = measure(Given(logits), batches(5, ids, 3), as_loss("next_token"))
    logs = torch.log_softmax(logits.double(), -1)
    terms = [
        -float(logs[row, position, ids[row, position + 1]])
        for row in range(5)
        for position in range(5)
        if ids[row, position + 1] >= 0
    ]
    assert len(terms) == 3 * 5 + 2 * 1
    assert found.loss == pytest.approx(math.fsum(terms) / len(terms), rel=1e-12)
    assert found.metric == pytest.approx(math.exp(found.loss))
    assert not as_loss("next_token").higher_is_better


def test_divergence_from_the_float_model_is_scipys() -> None:
    torch.manual_seed(0)
    float_logits, logits = torch.randn(6, 4), torch.randn(6, 4)
    found = measure(Given(logits), batches(6, float_logits, 4), as_loss("kl_to_float"))
    p = scipy.special.softmax(float_logits.double().numpy(), axis=1)
    q = scipy.special.softmax(logits.double().numpy(), axis=1)
    assert found.loss == pytest.approx(scipy.special.rel_entr(p, q).sum(1).mean(), rel=1e-10)
    same = (float_logits.argmax(1) == logits.argmax(1)).double().mean()
    assert found.metric == pytest.approx(float(same))


def test_token_divergence_is_the_mean_over_tokens() -> None:
    float_logits, logits = torch.randn(3, 4, 7), torch.randn(3, 4, 7)
    by_token = measure(Given(logits), batches(3, float_logits, 2), as_loss("token_kl_to_float"))
    flat = measure(
        Given(logits.flatten(0, 1)),
        batches(12, float_logits.flatten(0, 1), 5),
        as_loss("kl_to_float"),
    )
    assert by_token.loss == pytest.approx(flat.loss, rel=1e-12)
    assert by_token.metric == pytest.approx(flat.metric)


def test_signal_to_noise_is_in_decibel() -> None:
    signal = torch.ones(4, 10)
    found = measure(Given(signal * 1.1), batches(4, signal, 3), as_loss("noise_to_signal"))
    assert found.loss == pytest.approx(0.01, rel=1e-6)
    assert found.metric == pytest.approx(20, rel=1e-6)
    exact = measure(Given(signal), batches(4, signal, 3), as_loss("noise_to_signal"))
    assert exact.loss == 0
    assert exact.metric is None  # infinite


def test_float_outputs_become_the_targets_of_both_parts() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))
    data = mp.DataSet("x", torch.randn(5, 3), held_out_inputs=torch.randn(3, 3), batch_size=2)
    found = with_float_outputs(model, data)
    assert model.training
    torch.testing.assert_close(found.targets, model[0](data.inputs).detach())
    torch.testing.assert_close(found.held_out_targets, model[0](data.held_out_inputs).detach())
    assert measure(model, found.batches(), as_loss("kl_to_float")).loss == 0
    assert data.targets is None


def test_targets_of_the_data_are_no_float_outputs() -> None:
    with pytest.raises(DataError, match="the float model's output is needed"):
        measure(
            Given(torch.randn(4, 3)), batches(4, torch.arange(4) % 3, 2), as_loss("kl_to_float")
        )
    with pytest.raises(DataError, match="logits"):
        measure(Given(torch.randn(4, 3)), batches(4, torch.arange(4) % 3, 2), as_loss("next_token"))


def test_missing_targets_empty_data_and_infinite_losses_are_named() -> None:
    loss = as_loss("cross_entropy")
    with pytest.raises(DataError, match="needs targets"):
        measure(Given(torch.randn(2, 3)), [(torch.arange(2), None)], loss)
    with pytest.raises(DataError, match="no input"):
        measure(Given(torch.randn(2, 3)), [], loss)
    broken = torch.full((2, 3), float("nan"))
    with pytest.raises(ModelError, match="nan"):
        measure(Given(broken), batches(2, torch.zeros(2, dtype=torch.long), 2), loss)


def test_losses_come_by_name_as_functions_and_ready_made() -> None:
    assert {"cross_entropy", "mse", "next_token", "kl_to_float"} <= set(known_losses())
    assert all(as_loss(name).name == name for name in known_losses())
    ready = Loss("mine", nn.functional.l1_loss)
    assert as_loss(ready) is ready
    assert as_loss(nn.functional.l1_loss).name == "l1_loss"
    with pytest.raises(UnknownNameError, match="cross_entropy"):
        as_loss("cross_entrpy")
    with pytest.raises(InputError, match="not int"):
        as_loss(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1e-6, 1e-3, 1.0, 30.0])
def test_the_divergence_is_exact_for_near_and_far_distributions_and_never_negative(scale) -> None:
    torch.manual_seed(0)
    reference = torch.randn(7, 50, dtype=torch.float64) * 20
    output = reference + scale * torch.randn(7, 50, dtype=torch.float64)
    found = float(as_loss("kl_to_float")(output, reference))
    with mpmath.workdps(60):
        rows = []
        for row, other in zip(reference.tolist(), output.tolist(), strict=True):
            p, q = ([mpmath.mpf(x) for x in each] for each in (row, other))
            log_p = mpmath.log(sum(mpmath.exp(x) for x in p))
            log_q = mpmath.log(sum(mpmath.exp(x) for x in q))
            terms = [
                mpmath.exp(x - log_p) * ((x - log_p) - (y - log_q))
                for x, y in zip(p, q, strict=True)
            ]
            rows.append(sum(terms))
        wanted = float(sum(rows) / len(rows))
    assert found >= 0
    assert found == pytest.approx(wanted, rel=1e-6, abs=1e-18)

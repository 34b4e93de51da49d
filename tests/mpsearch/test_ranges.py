"""Formats that clip or choose their grid as activations: scored, saved, applied, refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import mpsearch as mp
from mpsearch.engine.activations import KnownRange, needs_histogram
from mpsearch.errors import InputError
from mpsearch.formats import get, parse_option
from mpsearch.formats.calibration import Observer
from mpsearch.quantize import Quantizer, calibrate
from mpsearch.ranges import activation_formats, known_ranges, saved_ranges

CLIPPING = ["w:int8/a:int4_p90", "w:int8/a:int8_mse", "w:int8/a:fp8_auto", "w:int8/a:fp4_auto_mse"]


@pytest.fixture
def small() -> tuple[nn.Module, tuple[Tensor, Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))
    inputs = torch.randn(256, 6) ** 3  # long tails, so that clipping matters
    return model.eval(), (inputs, torch.randint(0, 3, (256,)))


def loss_of(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model(inputs).double(), targets))


def test_a_clipping_activation_format_is_scored_apart_from_the_plain_one(small) -> None:
    model, data = small
    found = mp.profile(model, data, ["w8a8", "w:int8/a:int8_p90", "w8a4", "w:int8/a:int4_mse"])
    plain, clipped, coarse, fitted = found.loss.T
    assert (plain != clipped).all()
    assert (coarse != fitted).any()
    assert found.activation_ranges == calibrate(model, ["0", "2", "4"], [data])


@pytest.mark.parametrize("option", CLIPPING)
def test_a_profile_scores_an_option_at_the_range_its_format_chooses(small, option) -> None:
    model, (inputs, targets) = small
    found = mp.profile(model, (inputs, targets), [option])
    observer = Observer()
    observer.observe(inputs)
    rounded = parse_option(option).activation.calibrated_quantizer(observer.statistics())(inputs)
    first = mp.apply(model, {"0": "w:int8"})  # its weights alone
    expected = loss_of(first, rounded, targets) - loss_of(model, inputs, targets)
    assert found.loss[0, 0] == pytest.approx(expected, rel=1e-4, abs=1e-7)


@pytest.mark.parametrize("option", CLIPPING)
def test_apply_gives_what_verification_measured_also_from_a_saved_allocation(
    small, tmp_path, option
) -> None:
    model, (inputs, targets) = small
    result = mp.search(model, (inputs, targets), [option, "w8a8"], {"weight_memory": "100%"})
    forced = mp.search(model, (inputs, targets), [option], {"weight_memory": "100%"})
    for one in (result, forced):
        measured = one.verification.allocation.loss
        loaded = mp.Allocation.load(one.save(tmp_path / "allocation.json"))
        assert saved_ranges(loaded) == saved_ranges(one)
        for answer in (one, loaded):
            assert loss_of(mp.apply(model, answer), inputs, targets) == pytest.approx(
                measured, rel=1e-6
            )
        assert mp.verify(model, (inputs, targets), loaded).allocation.loss == measured
        with_data = mp.apply(model, one, inputs)
        assert loss_of(with_data, inputs, targets) == pytest.approx(measured, rel=1e-6)


def test_an_automatic_format_stands_for_its_best_grid_in_every_layer(small) -> None:
    model, data = small
    found = mp.profile(model, data, ["w:int8/a:fp8_auto"])
    for layer, chosen in found.resolved_ranges.items():
        one = chosen["fp8_auto"]
        alone = Quantizer(model, {layer: (one.low, one.high)})
        known = Quantizer(model, saved_ranges(found))
        values = torch.randn(100) * 3
        assert torch.equal(
            known.activation(layer, get("fp8_auto"))(values),
            alone.activation(layer, get(one.format))(values),
        )


def test_extremes_alone_are_refused_for_formats_that_need_more(small) -> None:
    model, data = small
    old = mp.search(model, data, ["w:int8/a:int8_p90"], {"weight_memory": "100%"})
    old = old.model_copy(update={"resolved_ranges": {}})
    with pytest.raises(InputError, match=r"int8_p90 chooses its range.*data"):
        mp.apply(model, old)
    mp.apply(model, old, data)
    # verification has the data to observe again
    assert mp.verify(model, data, old).allocation == old.verification.allocation


def test_verification_observes_again_where_the_saved_ranges_say_too_little(small) -> None:
    model, data = small
    plain = mp.search(model, data, ["w8a8"], {"weight_memory": "100%"})
    layers = dict.fromkeys(plain.layers, "w:int8/a:int4_p90")
    changed = plain.model_copy(update={"layers": layers})
    expected = mp.search(model, data, ["w:int8/a:int4_p90"], {"weight_memory": "100%"})
    assert mp.verify(model, data, changed).allocation == expected.verification.allocation


def test_only_formats_that_choose_from_values_watch_a_histogram(small) -> None:
    model, (inputs, _) = small
    needing = {"int8_p90", "int8_mse", "e4m3_p99", "fp8_auto", "fp4_auto_tensor"}
    for name in [*needing, "int8", "fp8_e4m3", "mxfp4", "int8_g32_mse", "fp16"]:
        assert needs_histogram(get(name)) == (name in needing)
    plain = activation_formats(map(parse_option, ["w4a8", "w8a8", "w4"]))
    assert known_ranges(model, ["0"], [(inputs, None)], plain) == {
        "0": (float(inputs.min()), float(inputs.max()))
    }
    known = known_ranges(model, ["0"], [(inputs, None)], [get("int8_p90")])["0"]
    assert isinstance(known, KnownRange)
    _, low, high = known.settled[get("int8_p90")]
    assert float(inputs.min()) < low < high < float(inputs.max())

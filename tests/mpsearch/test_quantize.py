"""Applying allocations: copies, contexts, in place; ranges; what cannot be quantized."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import mpsearch as mp
from mpsearch.engine.calibration import calibrate
from mpsearch.engine.meter import AllocationMeter
from mpsearch.errors import InputError, MismatchError, ModelError
from mpsearch.formats import get, parse_option
from mpsearch.losses import as_loss
from mpsearch.models.layers import find_layers
from mpsearch.models.registry import as_model
from mpsearch.quantize import (
    Quantizer,
    observe,
    restore,
)
from tests.mpsearch.engine.architectures import ARCHITECTURES, build

INT4, INT8 = get("int4"), get("int8")


def clipped(values: Tensor, low: float, high: float, bits: int = 8) -> Tensor:
    """Symmetric rounding of an activation with a fixed range, written out."""
    top = 2 ** (bits - 1) - 1
    scale = max(abs(low), abs(high)) / top
    return (values / scale).round().clamp(-top, top) * scale


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def unchanged(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = model.state_dict()
    return before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_context_changes_the_output_and_leaves_no_trace(name: str) -> None:
    model, inputs = build(name)
    expected = model(inputs)
    before, identities = state(model), [id(p) for p in model.parameters()]
    pointers = [p.data_ptr() for p in model.parameters()]
    layers = find_layers(model, (inputs, None)).layers
    model.train()
    next(model.children()).eval()
    modes = [module.training for module in model.modules()]
    with mp.quantized(model, {layer.name: "w3a4" for layer in layers}, inputs):
        model.eval()
        assert not torch.equal(model(inputs), expected)
    assert unchanged(model, before)
    assert identities == [id(p) for p in model.parameters()]
    assert pointers == [p.data_ptr() for p in model.parameters()]
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(model.eval()(inputs), expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert len(modes) == len(list(model.modules()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_copies_contexts_and_in_place_agree_and_in_place_is_restored(name: str) -> None:
    model, inputs = build(name)
    before = state(model)
    choice = {layer.name: "w4a8" for layer in find_layers(model, (inputs, None)).layers}
    with mp.quantized(model, choice, inputs):
        expected = model(inputs)
    copied = mp.apply(model, choice, inputs)
    assert copied is not model
    assert torch.equal(copied(inputs), expected)
    assert unchanged(model, before)
    assert torch.equal(copy.deepcopy(copied)(inputs), expected)
    assert mp.apply(model, choice, inputs, inplace=True) is model
    assert torch.equal(model(inputs), expected)
    with pytest.raises(InputError, match="restore"):
        mp.apply(model, choice, inputs)
    assert restore(model) is model
    assert unchanged(model, before)
    with pytest.raises(InputError, match="not quantized"):
        restore(model)


def test_a_model_quantized_in_place_is_refused_everywhere_until_it_is_restored() -> None:
    model, inputs = build("sequential")
    choice = {"0": "w4a8", "2": "w4a8", "4": "w4a8"}
    answer = mp.search(model, inputs, ["w4a8", "w8a8"], {"weight_memory": "60%"})
    mp.apply(model, choice, inputs, inplace=True)
    rounded = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), nn.Sequential(model)
    for one in (model, *rounded):
        tries = [
            lambda: mp.profile(one, inputs, ["w4a8"]),  # noqa: B023
            lambda: mp.verify(one, inputs, answer),  # noqa: B023
            lambda: mp.search(one, inputs, ["w4a8"], {"bops": "100%"}),  # noqa: B023
            lambda: mp.apply(one, choice, inputs),  # noqa: B023
            lambda: mp.apply(one, choice, inputs, inplace=True),  # noqa: B023
            lambda: mp.quantized(one, choice, inputs).__enter__(),  # noqa: B023
            lambda: Quantizer(one, {}),  # noqa: B023
        ]
        for attempt in tries:
            with pytest.raises(ModelError, match=r"quantized in place already.*restore"):
                attempt()
    with pytest.raises(ModelError, match="quantized in place"):
        mp.profile(model[0], inputs, ["w4a8"])
    restore(model)
    assert not any("_mpsearch_quantized" in module.__dict__ for module in model.modules())
    assert mp.verify(model, inputs, answer).allocation == answer.verification.allocation
    with mp.quantized(model, choice, inputs):
        copied = copy.deepcopy(model)  # of a context, which puts everything back by itself
    assert not torch.equal(copied(inputs), model(inputs))


def test_a_quantized_copy_of_a_picklable_model_can_be_pickled() -> None:
    model, inputs = build("sequential")
    choice = {"0": "w4a8", "2": "w:mxfp4/a:mxfp8_e4m3", "4": "w4a4"}
    copied = mp.apply(model, choice, inputs)
    loaded = pickle.loads(pickle.dumps(copied))
    assert torch.equal(loaded(inputs), copied(inputs))


def test_hooks_and_weights_are_gone_after_an_exception() -> None:
    model, inputs = build("attention")
    before = state(model)
    choice = {layer.name: "w4a8" for layer in find_layers(model, (inputs, None)).layers}
    with pytest.raises(RuntimeError, match="wanted"), mp.quantized(model, choice, inputs):
        raise RuntimeError("wanted")
    with mp.quantized(model, choice, inputs), pytest.raises(IndexError):
        model(inputs + 1000)
    assert unchanged(model, before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model(inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_their_type(dtype: torch.dtype) -> None:
    model, inputs = build("residual")
    model, inputs = model.to(dtype), inputs.to(dtype)
    choice = {layer.name: "w4a8" for layer in find_layers(model, (inputs, None)).layers}
    copied = mp.apply(model, choice, inputs)
    assert copied(inputs).dtype == dtype
    assert {parameter.dtype for parameter in copied.parameters()} == {dtype}
    assert torch.isfinite(copied(inputs)).all()


def test_calibration_methods_choose_ranges_from_one_pass() -> None:
    model = nn.Sequential(nn.Linear(4, 4)).eval()
    x = torch.randn(4000, 4)
    x[0, 0] = 100.0
    seen = observe(model, ["0"], [(part, None) for part in x.split(500)])
    assert (seen["0"].low, seen["0"].high) == (float(x.min()), 100.0)
    from mpsearch.quantize import RangeRule

    option = {"0": parse_option("w8a4")}
    ranges = {
        method: Quantizer(model, seen, rule=RangeRule(method, 99.9)).resolve_ranges(option)["0"]
        for method in ("minmax", "percentile", "mse")
    }
    assert ranges["minmax"] == (float(x.min()), 100.0)
    assert ranges["percentile"][1] == pytest.approx(float(x.quantile(0.999)), rel=0.1)
    errors = {
        method: float((clipped(x, *ends, bits=4) - x).square().mean())
        for method, ends in ranges.items()
    }
    assert errors["mse"] <= min(errors["minmax"], errors["percentile"]) * 1.001
    by_apply = mp.apply(model, {"0": "w8a4"}, x, calibration="mse")
    with Quantizer(model, seen, rule=RangeRule("mse")).options(option):
        torch.testing.assert_close(by_apply(x), model(x))


def test_missing_ranges_unknown_layers_and_missing_data_are_named() -> None:
    model, inputs = build("sequential")
    with pytest.raises(InputError, match="layer 0 has no calibrated input range for int8"):
        mp.apply(model, {"0": "w4a8"})
    with pytest.raises(MismatchError, match="no layer 'nowhere'"):
        mp.apply(model, {"nowhere": "w4"})
    with pytest.raises(MismatchError, match="no weight to quantize"):
        mp.apply(model, {"1": "w4"})
    with pytest.raises(InputError, match="give data"):
        mp.apply(model, {"0": "w4"}, correct_bias=True)
    broken = torch.full_like(inputs, float("inf"))
    with pytest.raises(ModelError, match="not finite"):
        calibrate(model, ["0"], [(broken, None)])
    with pytest.raises(ModelError, match="not finite"):
        observe(model, ["0"], [(broken, None)])


def test_layers_that_cannot_be_quantized_are_noted_with_the_reason() -> None:
    model = nn.Sequential(
        nn.Linear(4, 4),
        parametrizations.weight_norm(nn.Linear(4, 4)),
        nn.utils.weight_norm(nn.Linear(4, 4)),
        nn.Bilinear(4, 4, 4),
    )

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = model

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[3](self.parts[:3](x), x)

    survey = find_layers(Model(), (torch.randn(2, 4), None))
    assert [layer.name for layer in survey.layers] == ["parts.0"]
    notes = "\n".join(survey.notes)
    assert "parts.1 is left in float: its weight is computed by a parametrization" in notes
    assert "parts.2 is left in float: its weight is recomputed by weight_norm" in notes
    assert "parts.3 (Bilinear) has 64 weights" in notes
    with pytest.raises(MismatchError, match="parametrization"):
        mp.apply(Model(), {"parts.1": "w4"})


def test_lazy_models_are_refused_until_they_ran() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    with pytest.raises(ModelError, match="lazy"):
        find_layers(model, (torch.randn(2, 4), None))


def test_a_forgotten_model_quantized_in_place_is_freed() -> None:
    import weakref

    model = nn.Sequential(nn.Linear(4, 4))
    mp.apply(model, {"0": "w4"}, inplace=True)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize("method", ["mse", "percentile"])
def test_a_calibration_method_without_data_is_refused(method: str) -> None:
    with pytest.raises(InputError, match="give data"):
        mp.apply(nn.Sequential(nn.Linear(2, 2)), {"0": "w4a8"}, calibration=method)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_the_name_of_its_layer(value: float) -> None:
    model, x = build("residual")
    model.get_parameter("blocks.1.conv2.weight").data[0, 1, 0, 2] = value
    before = state(model)
    choice = {"stem": "w4a8", "blocks.1.conv2": "w4"}
    for put_on in (
        lambda: mp.apply(model, choice, x),
        lambda: mp.apply(model, choice, x, inplace=True),
        lambda: mp.quantized(model, choice, x).__enter__(),
    ):
        with pytest.raises(ModelError, match=r"blocks\.1\.conv2"):
            put_on()
    assert str(before) == str(state(model))
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_a_weight_that_is_not_finite_hurts_no_other_layer() -> None:
    model, _ = build("residual")
    model.get_parameter("blocks.1.conv2.weight").data[0, 1, 0, 2] = float("nan")
    assert mp.apply(model, {"stem": "w4", "blocks.1.conv2": "float"}) is not model


def test_models_without_values_in_their_weights_are_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 3))
    with pytest.raises(MismatchError, match="meta device"):
        mp.apply(model, {"0": "w4"})
    with pytest.raises(ModelError, match=r"0\.weight is on the meta device"):
        mp.profile(model, torch.randn(2, 4), options=["w4", "w8"], estimator="sqnr")


@pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")
def test_models_that_cannot_be_reached_or_copied_say_what_to_do() -> None:
    plain = nn.Sequential(nn.Linear(4, 3)).eval()
    with pytest.raises(ModelError, match="the module that it was made from"):
        mp.apply(torch.jit.script(plain), {"0": "w4"})  # type: ignore[arg-type]
    pruned = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).eval()
    prune.l1_unstructured(pruned[0], "weight", 0.5)
    with pytest.raises(ModelError, match="inplace=True"):
        mp.apply(pruned, {"1": "w4"})
    with pytest.raises(MismatchError, match="spectral_norm or pruning"):
        mp.apply(pruned, {"0": "w4"}, inplace=True)
    x = torch.randn(5, 4)
    with mp.quantized(pruned, {"1": "w4"}):
        inner = pruned(x)
    assert not torch.equal(inner, pruned(x))


def test_a_choice_is_an_allocation_or_a_mapping_by_name_or_parsed() -> None:
    model, x = build("residual")
    by_name = mp.apply(model, {"stem": "w4a8"}, x)
    parsed = mp.apply(model, {"stem": parse_option("w4a8")}, x)
    assert torch.equal(by_name(x), parsed(x))
    for wrong in (None, "w4a8", ["stem"]):
        with pytest.raises(InputError, match="mapping of layers to options"):
            mp.apply(model, wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["residual", "recurrent", "functional tie", "mixture of experts"])
def test_contexts_of_the_public_function_nest_on_the_float_weights(name: str) -> None:
    model, inputs = build(name)
    before, expected = state(model), model(inputs)
    layers = list(Quantizer(model, {}).sites.by_name)
    inner = dict.fromkeys(layers[: len(layers) // 2 + 1], "w4")
    outer = dict.fromkeys(layers, "w2")
    wanted = mp.apply(model, outer | inner)(inputs)
    with mp.quantized(model, outer):
        rough = model(inputs)
        with mp.quantized(model, inner):
            assert torch.equal(model(inputs), wanted)
            with pytest.raises(KeyError), mp.quantized(model, outer):
                raise KeyError
            assert torch.equal(model(inputs), wanted)
        assert torch.equal(model(inputs), rough)
    assert unchanged(model, before)
    assert torch.equal(model(inputs), expected)
    assert not torch.equal(rough, expected)


def test_a_model_inside_a_context_is_no_float_model() -> None:
    model, inputs = build("sequential")
    choice = {"0": "w2a2"}
    wanted = mp.apply(model, {"0": "w4"})(inputs)
    with mp.quantized(model, choice, inputs):
        for one in (model, copy.deepcopy(model), nn.Sequential(model)):
            tries = [
                lambda: mp.profile(one, inputs, ["w4"]),  # noqa: B023
                lambda: mp.apply(one, {"0": "w4"}),  # noqa: B023
                lambda: mp.apply(one, {"0": "w4"}, inplace=True),  # noqa: B023
            ]
            for attempt in tries:
                with pytest.raises(ModelError, match="leave the context first"):
                    attempt()
        meter = AllocationMeter(Quantizer(model, {}), [(inputs, None)], as_loss("kl_to_float"))
        with pytest.raises(ModelError, match="leave the context first"):
            meter.measure({"0": parse_option("w4")})
    assert meter.measure({"0": parse_option("w4")}).loss > 0
    assert not any("_mpsearch_quantized" in module.__dict__ for module in model.modules())
    assert torch.equal(mp.apply(model, {"0": "w4"})(inputs), wanted)


def test_a_model_comes_by_name_or_as_a_module_and_nothing_else() -> None:
    by_name = mp.apply("digits-resnet", {"conv1": "w3a4"}, "digits")
    module = as_model("digits-resnet").module
    assert "conv1" in Quantizer(module, {}).sites.by_name
    live = mp.apply(module, {"conv1": "w3a4"}, "digits")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(by_name(x), live(x))
    with mp.quantized("digits-resnet", {"conv1": "w3a4"}, "digits") as inner:
        assert torch.equal(inner(x), live(x))
    for wrong in (3, lambda x: x):
        with pytest.raises(ModelError, match=r"torch\.nn\.Module or a name"):
            mp.apply(wrong, {"conv1": "w4"})  # type: ignore[arg-type]


def test_quantized_weights_take_effect_and_are_gone_again_within_one_autocast_region() -> None:
    model, inputs = build("sequential")
    choice = {"0": "w2", "2": "w2"}
    copied = mp.apply(model, choice)
    data = (inputs, torch.arange(len(inputs)) % 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = model(inputs)
        with mp.quantized(model, choice):
            inside = model(inputs)
        after = model(inputs)
        mp.apply(model, choice, inplace=True)
        in_place = model(inputs)
        restored = restore(model)(inputs)
        wanted = copied(inputs)
        scores = mp.profile(model, data, options=["w2", "w8"], estimator="measured_loss").loss
    assert torch.equal(inside, wanted)
    assert torch.equal(in_place, wanted)
    assert not torch.equal(inside, before)
    assert torch.equal(after, before)
    assert torch.equal(restored, before)
    assert (abs(scores[:, 0]) > abs(scores[:, 1])).any()
    assert scores.any()

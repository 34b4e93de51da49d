"""Applying allocations: every kind of layer, tied weights, copies, in place, corrections."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, rnn

import mpsearch as mp
from mpsearch.engine.calibration import calibrate
from mpsearch.errors import InputError, MismatchError, ModelError
from mpsearch.formats import get, parse_option
from mpsearch.models.layers import find_layers
from mpsearch.quantize import (
    Quantizer,
    layer_module,
    layer_weight,
    observe,
    restore,
    weight_deviation,
)
from tests.mpsearch.engine.architectures import ARCHITECTURES, build

INT4, INT8 = get("int4"), get("int8")


def rounded(values: Tensor, bits: int = 4) -> Tensor:
    """Symmetric rounding per row, written out: the reference."""
    top = 2 ** (bits - 1) - 1
    rows = values.reshape(len(values), -1)
    scale = rows.abs().amax(1, keepdim=True) / top
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    return ((rows / scale).round().clamp(-top, top) * scale).reshape(values.shape)


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


def test_a_quantized_copy_of_a_picklable_model_can_be_pickled() -> None:
    model, inputs = build("sequential")
    choice = {"0": "w4a8", "2": "w:mxfp4/a:mxfp8_e4m3", "4": "w4a4"}
    copied = mp.apply(model, choice, inputs)
    loaded = pickle.loads(pickle.dumps(copied))
    assert torch.equal(loaded(inputs), copied(inputs))


def test_linear_and_convolution_compute_with_rounded_weights_and_inputs() -> None:
    linear, conv = nn.Linear(6, 4), nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1)
    model = nn.Sequential(conv, nn.Flatten(), nn.Linear(4 * 9, 6), linear).eval()
    x = torch.randn(5, 3, 6, 6)
    ranges = calibrate(model, ["0", "2", "3"], [(x, None)])
    assert ranges["0"] == (float(x.min()), float(x.max()))
    with mp.quantized(model, {"0": "w4a8"}, x):
        found = conv(x)
    expected = functional.conv2d(
        clipped(x, *ranges["0"]), rounded(conv.weight), conv.bias, stride=2, padding=1
    )
    torch.testing.assert_close(found, expected)
    y = model[:3](x)
    with mp.quantized(model, {"3": "w4a8"}, x):
        found = linear(y)
    expected = functional.linear(clipped(y, *ranges["3"]), rounded(linear.weight), linear.bias)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_convolutions_have_a_scale_per_output_channel(groups: int, dims: int) -> None:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[dims - 1]
    module = kind(8, 12, 3, groups=groups, bias=False)
    model = nn.Sequential(module)
    # The impulse response of each input channel shows which weights make up which output channel:
    # the same layer as a sum over inputs, rounded output channel by output channel.
    found = Quantizer(model, {}).weight("0", INT4)
    per_group_in, per_group_out = 8 // groups, 12 // groups
    for out in range(12):
        group, column = divmod(out, per_group_out)
        rows = slice(group * per_group_in, (group + 1) * per_group_in)
        expected = rounded(module.weight[rows, column].reshape(1, -1))
        torch.testing.assert_close(found[rows, column].reshape(1, -1), expected)
    survey = find_layers(model, (torch.randn(1, 8, *[5] * dims), None))
    assert survey.layers[0].weight_shape == (12, per_group_in, *[3] * dims)


def test_attention_computes_with_rounded_projections_and_inputs() -> None:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, batch_first=True)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = module

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x)[0]

    model, x = Model().eval(), torch.randn(3, 5, 8)
    seen: dict[str, Tensor] = {}

    def attend(x: Tensor, weight: Tensor, out: Tensor, leave: Callable[[Tensor], Tensor]) -> Tensor:
        projected = functional.linear(x, weight, module.in_proj_bias)
        q, k, v = (
            part.unflatten(-1, (2, 4)).transpose(1, 2) for part in projected.chunk(3, dim=-1)
        )
        inner = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        seen["inner"] = inner.detach()
        return functional.linear(leave(inner), out, module.out_proj.bias)

    plain = attend(x, module.in_proj_weight, module.out_proj.weight, lambda t: t)
    torch.testing.assert_close(model(x), plain)
    bounds = float(seen["inner"].min()), float(seen["inner"].max())
    names = ["attention.in_proj_weight", "attention.out_proj"]
    ranges = calibrate(model, names, [(x, None)])
    assert ranges[names[1]] == pytest.approx(bounds, rel=1e-5)
    with mp.quantized(model, dict.fromkeys(names, "w4a8"), x):
        found = model(x)
    expected = attend(
        clipped(x, float(x.min()), float(x.max())),
        rounded(module.in_proj_weight),
        rounded(module.out_proj.weight),
        lambda t: clipped(t, *ranges[names[1]]),
    )
    torch.testing.assert_close(found, expected)


def test_separate_attention_projections_are_layers_of_their_own() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, key=x[..., :6] + 1, value=x[..., :4] * 3)[0]

    model, x = Model().eval(), torch.randn(2, 5, 8)
    survey = find_layers(model, (x, None))
    assert [(layer.name, layer.weight_shape, layer.macs) for layer in survey.layers] == [
        ("attention.q_proj_weight", (8, 8), 5 * 64),
        ("attention.k_proj_weight", (8, 6), 5 * 48),
        ("attention.v_proj_weight", (8, 4), 5 * 32),
        ("attention.out_proj", (8, 8), 5 * 64),
    ]
    ranges = calibrate(model, [layer.name for layer in survey.layers], [(x, None)])
    assert ranges["attention.k_proj_weight"][1] == float((x[..., :6] + 1).max())
    assert ranges["attention.v_proj_weight"][1] == float((x[..., :4] * 3).max())


def test_recurrent_weights_take_effect_in_the_fused_kernel() -> None:
    model, inputs = build("recurrent")
    plain = model(inputs)
    for layer in find_layers(model, (inputs, None)).layers:
        with mp.quantized(model, {layer.name: "w2"}):
            assert not torch.equal(model(inputs), plain), layer.name
    reference = copy.deepcopy(model)
    names = [n for n, _ in reference.lstm.named_parameters() if "weight" in n]  # type: ignore[union-attr]
    for name in names:
        parameter = reference.lstm.get_parameter(name)  # type: ignore[union-attr]
        parameter.data.copy_(rounded(parameter.data))
    with mp.quantized(model, {f"lstm.{name}": "w4" for name in names}):
        torch.testing.assert_close(model(inputs), reference(inputs))


def test_packed_sequences_are_rounded_like_their_values() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gru = nn.GRU(4, 3, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            lengths = torch.full((len(x),), x.shape[1])
            packed = rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)[0]

    model, x = Model().eval(), torch.randn(3, 5, 4)
    with mp.quantized(model, {"gru.weight_ih_l0": "w:float/a:int4"}, x):
        found = model(x)
    bounds = float(x.min()), float(x.max())
    torch.testing.assert_close(found, model(clipped(x, *bounds, bits=4)))


def test_banks_of_experts_have_a_scale_per_expert_and_output_channel() -> None:
    model, inputs = build("mixture of experts")
    bank = model.get_parameter("experts.0.up")
    found = Quantizer(model, {}).weight("experts.0.up", INT4)
    torch.testing.assert_close(found, torch.stack([rounded(expert) for expert in bank]))
    layers = {layer.name: layer for layer in find_layers(model, (inputs, None)).layers}
    assert layers["experts.0.up"].weight_shape == (48, 8)
    assert layers["experts.0.up"].macs == 96  # one input goes to one expert
    assert layers["experts.0.down"].quantizes_input
    ranges = calibrate(model, list(layers), [(inputs, None)])
    assert ranges["experts.0.down"][0] == 0  # after a ReLU
    with mp.quantized(model, {"experts.0.down": "w:float/a:int2"}, inputs):
        inside = model(inputs)
    assert not torch.equal(inside, model(inputs))


def test_transposed_banks_and_gpt2_layers_take_channels_from_their_last_axis() -> None:
    class MoeBlock(nn.Module):
        is_transposed = True

        def __init__(self) -> None:
            super().__init__()
            self.bank = nn.Parameter(torch.randn(3, 4, 5))

        def forward(self, x: Tensor) -> Tensor:
            return torch.bmm(x.expand(3, -1, -1), self.bank).sum(0)

    model = nn.Sequential(MoeBlock()).eval()
    survey = find_layers(model, (torch.randn(1, 4), None))
    assert survey.layers[0].weight_shape == (15, 4)
    assert survey.layers[0].macs == 60
    assert not any("contracted" in note for note in survey.notes)
    found = Quantizer(model, {}).weight("0.bank", INT4)
    bank = model.get_parameter("0.bank")
    expected = torch.stack([rounded(expert.T).T for expert in bank])
    torch.testing.assert_close(found, expected)
    MoeBlock.is_transposed = False
    assert any("contracted" in note for note in find_layers(model, (torch.randn(1, 4), None)).notes)


def test_tied_weights_are_one_layer_stored_once() -> None:
    model, ids = build("shared")
    survey = find_layers(model, (ids, None))
    table = next(layer for layer in survey.layers if layer.name == "table")
    assert table.tied == ("head",)
    assert table.macs == 7 * 17 * 8  # the head's; looking up costs none
    assert "head" not in [layer.name for layer in survey.layers]
    total = sum(parameter.numel() for parameter in model.parameters())
    assert survey.fixed_parameters + sum(layer.weights for layer in survey.layers) == total
    plain = model(ids)
    with mp.quantized(model, {"head": "w4a8"}, ids):
        assert model.table.weight is model.head.weight  # type: ignore[union-attr]
        by_head = model(ids)
    with mp.quantized(model, {"table": "w4a8"}, ids):
        assert torch.equal(model(ids), by_head)
    with mp.quantized(model, {"table": "w4a8", "head": "w4a8"}, ids):
        assert torch.equal(model(ids), by_head)
    assert not torch.equal(by_head, plain)
    with (
        pytest.raises(MismatchError, match="one stored weight"),
        mp.quantized(model, {"table": "w4", "head": "w8"}),
    ):
        pass
    assert torch.equal(model(ids), plain)


def test_parameters_that_share_memory_without_being_one_object_are_tied() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = nn.Parameter(first.weight.data)
    model, x = nn.Sequential(first, second), torch.randn(2, 4)
    survey = find_layers(model, (x, None))
    assert [layer.tied for layer in survey.layers] == [("1",)]
    assert survey.fixed_parameters == 8
    before = first.weight.data_ptr()
    with mp.quantized(model, {"0": "w2"}):
        assert torch.equal(first.weight, second.weight)
        assert torch.equal(second.weight, Quantizer(model, {}).weight("0", get("int2")))
    assert first.weight.data_ptr() == second.weight.data_ptr() == before


def test_a_module_that_hangs_in_two_places_answers_to_both_names() -> None:
    block = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": block, "b": block})
    assert layer_module(model, "b") is block
    assert torch.equal(
        Quantizer(model, {}).weight("a", INT4), Quantizer(model, {}).weight("b", INT4)
    )


def test_a_bare_layer_is_a_model() -> None:
    model, x = nn.Linear(4, 3).eval(), torch.randn(5, 4)
    assert [layer.name for layer in find_layers(model, (x, None)).layers] == ["weight"]
    assert layer_weight(model, "weight") is model.weight
    with mp.quantized(model, {"weight": "w4"}):
        torch.testing.assert_close(
            model(x), functional.linear(x, rounded(model.weight), model.bias)
        )


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


def test_contexts_nest_and_the_inner_weight_is_rounded_from_the_float_one() -> None:
    model, _ = build("sequential")
    quantizer = Quantizer(model, {})
    weight = layer_weight(model, "0")
    float_weight = weight.detach().clone()
    with quantizer.options({"0": parse_option("w2")}):
        outer = weight.detach().clone()
        with quantizer.options({"0": parse_option("w8")}):
            torch.testing.assert_close(weight.detach(), rounded(float_weight, 8))
            assert torch.equal(quantizer.original("0"), float_weight)
        assert torch.equal(weight, outer)
        assert quantizer.active
    assert torch.equal(weight, float_weight)
    assert not quantizer.active


def test_each_weight_is_quantized_once_within_the_memory_limit() -> None:
    model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(4)])
    size = 8 * 8 * 4
    roomy, tight = Quantizer(model, {}), Quantizer(model, {}, memory_limit=2 * size)
    kept = [roomy.weight(str(number), INT4) for number in range(4)]
    assert all(roomy.weight(str(number), INT4) is kept[number] for number in range(4))
    first = tight.weight("0", INT4)
    second = tight.weight("1", INT4)
    assert tight.weight("0", INT4) is first  # asked for last, so the other one goes
    tight.weight("2", INT4)
    assert tight.weight("0", INT4) is first
    assert tight.weight("1", INT4) is not second
    assert tight._weights.memory <= 2 * size
    with pytest.raises(InputError, match="negative"):
        Quantizer(model, {}, memory_limit=-1)


def test_a_weight_that_was_trained_meanwhile_is_quantized_again() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    quantizer = Quantizer(model, {})
    before = quantizer.weight("0", INT4)
    with torch.no_grad():
        layer_weight(model, "0").mul_(2)
    torch.testing.assert_close(quantizer.weight("0", INT4), 2 * before)


def test_gradients_pass_straight_through_inside_the_range() -> None:
    model = nn.Sequential(nn.Linear(3, 2, bias=False))
    x = torch.tensor([[0.5, -0.2, 3.0]], requires_grad=True)
    quantizer = Quantizer(model, {"0": (-1.0, 1.0)})
    with quantizer.options({"0": parse_option("w:float/a:int8")}):
        model(x).sum().backward()
    assert x.grad is not None
    expected = layer_weight(model, "0").sum(0) * torch.tensor([1.0, 1.0, 0.0])
    torch.testing.assert_close(x.grad, expected[None])


def test_block_formats_run_along_the_axis_that_the_weight_contracts() -> None:
    model = nn.Sequential(nn.Conv2d(32, 4, 1, bias=False)).eval()
    x = torch.randn(1, 32, 3, 3) * torch.logspace(-3, 3, 9).reshape(3, 3)
    with mp.quantized(model, {"0": "w:float/a:mxfp8_e4m3"}, x):
        found = model(x)
    columns = x.movedim(1, -1)
    expected = get("mxfp8_e4m3").fake_quantize(columns.reshape(-1, 32), 0).reshape(columns.shape)
    torch.testing.assert_close(found, model(expected.movedim(-1, 1)))


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


def test_the_rounding_of_a_layers_input_can_be_had_alone() -> None:
    model, ids = build("shared")
    ranges = calibrate(model, ["table", "last"], [(ids, None)])
    assert ranges.keys() == {"head", "last"}  # the table's only floating-point input
    quantizer = Quantizer(model, ranges)
    x = torch.randn(3, 8)
    torch.testing.assert_close(quantizer.activation("last", INT8)(x), clipped(x, *ranges["last"]))
    assert torch.equal(
        quantizer.activation("table", INT8)(x), quantizer.activation("head", INT8)(x)
    )
    assert quantizer.activation("last", get("float"))(x) is x
    embedding = Quantizer(nn.Sequential(nn.Embedding(3, 2)), {})
    assert embedding.activation("0", INT8)(x) is x


def test_embeddings_round_rows_and_leave_indices_alone() -> None:
    model = nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 2)).eval()
    ids = torch.arange(10)[None]
    survey = find_layers(model, (ids, None))
    assert [layer.quantizes_input for layer in survey.layers] == [False, True]
    assert survey.layers[0].macs == 0
    with mp.quantized(model, {"0": "w4a8"}, ids):
        torch.testing.assert_close(model[0](ids)[0], rounded(model[0].weight))


def test_bias_correction_gives_each_channel_its_mean_back() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)
    ).eval()
    x = torch.rand(64, 3, 6, 6) + 0.5
    before = state(model)
    choice = {"0": "w3", "3": "w3"}
    plain, corrected = mp.apply(model, choice, x), mp.apply(model, choice, x, correct_bias=True)
    for part in (slice(0, 1), slice(0, 4)):
        axes = (0, 2, 3) if part.stop == 1 else (0,)
        wanted = model[part](x).mean(axes)
        assert (plain[part](x).mean(axes) - wanted).abs().max() > 1e-2
        torch.testing.assert_close(corrected[part](x).mean(axes), wanted, atol=1e-4, rtol=1e-4)
    mp.apply(model, choice, x, correct_bias=True, inplace=True)
    restore(model)
    assert unchanged(model, before)
    assert model[0].bias is None
    with pytest.raises(InputError, match="no layer of the allocation"):
        mp.apply(nn.Sequential(nn.Embedding(4, 2)), {"0": "w4"}, torch.arange(4), correct_bias=True)


def test_batch_norms_get_the_pooled_statistics_of_the_quantized_model() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()).eval()
    x = torch.randn(10, 3, 6, 6) * 3 + 1
    before = state(model)
    data = mp.DataSet("x", x, batch_size=4)  # batches of 4, 4 and 2
    quantized = mp.apply(model, {"0": "w2"}, data, reestimate_batchnorm=True)
    seen = quantized[0](x).movedim(1, 0).flatten(1)
    torch.testing.assert_close(quantized[1].running_mean, seen.mean(1))
    torch.testing.assert_close(quantized[1].running_var, seen.var(1))
    assert unchanged(model, before)
    assert not quantized[1].training
    mp.apply(model, {"0": "w2"}, data, reestimate_batchnorm=True, inplace=True)
    restore(model)
    assert unchanged(model, before)
    with pytest.raises(InputError, match="no batch norm"):
        mp.apply(model[:1], {"0": "w2"}, data, reestimate_batchnorm=True)


def test_a_forgotten_model_quantized_in_place_is_freed() -> None:
    import weakref

    model = nn.Sequential(nn.Linear(4, 4))
    mp.apply(model, {"0": "w4"}, inplace=True)
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


def test_the_deviation_of_a_weight_is_what_rounding_adds() -> None:
    model, inputs = build("volume")
    quantizer = Quantizer(model, {})
    for layer in find_layers(model, (inputs, None)).layers:
        weight = layer_weight(model, layer.name)
        deviation = weight_deviation(quantizer, layer, INT8)
        assert deviation.shape == weight.shape
        with quantizer.options({layer.name: parse_option("w8")}):
            torch.testing.assert_close(weight.detach() - quantizer.original(layer.name), deviation)

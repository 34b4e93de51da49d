"""Rounding every kind of weight and input: against the operation written out."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import rnn

import mpsearch as mp
from mpsearch.engine.calibration import calibrate
from mpsearch.errors import InputError, MismatchError
from mpsearch.formats import get, parse_option
from mpsearch.models.layers import find_layers
from mpsearch.quantize import (
    Quantizer,
    layer_module,
    layer_weight,
    weight_deviation,
)
from tests.mpsearch.engine.architectures import build

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


def test_the_deviation_of_a_weight_is_what_rounding_adds() -> None:
    model, inputs = build("volume")
    quantizer = Quantizer(model, {})
    for layer in find_layers(model, (inputs, None)).layers:
        weight = layer_weight(model, layer.name)
        deviation = weight_deviation(quantizer, layer, INT8)
        assert deviation.shape == weight.shape
        with quantizer.options({layer.name: parse_option("w8")}):
            torch.testing.assert_close(weight.detach() - quantizer.original(layer.name), deviation)


def test_quantized_weights_lie_in_memory_as_the_float_ones() -> None:
    model = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ConvTranspose2d(6, 4, 3)).eval()
    plain = mp.apply(model, {"0": "w4", "1": "w4"})
    model.to(memory_format=torch.channels_last)
    moved = mp.apply(model, {"0": "w4", "1": "w4"})
    for name in ("0.weight", "1.weight"):
        assert moved.get_parameter(name).stride() == model.get_parameter(name).stride()
        assert torch.equal(moved.get_parameter(name), plain.get_parameter(name))


def test_weights_quantized_in_inference_mode_take_gradients_later() -> None:
    model, x = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 2)).eval(), torch.randn(5, 6)
    choice = {"0": parse_option("w4a8"), "1": parse_option("w4a8")}
    quantizer = Quantizer(model, calibrate(model, ["0", "1"], [(x, None)]))
    with torch.inference_mode(), quantizer.options(choice):
        expected = model(x)
    with quantizer.options(choice):
        found = model(x)
        found.sum().backward()
    assert torch.equal(found, expected)
    assert all(p.grad is not None for p in model.parameters())

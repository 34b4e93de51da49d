"""The survey of layers: shapes, operation counts, order, and what is left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from mpsearch.errors import DataError, ModelError
from mpsearch.models.channels import ChannelLayout
from mpsearch.models.kinds import register_bank, weight_sites
from mpsearch.models.layers import evaluation_mode, find_layers, forward
from tests.mpsearch.engine.architectures import ARCHITECTURES, build

# Fused kernels hide products from torch's counter, and a weight used without a module from ours.
COUNTED = ARCHITECTURES.keys() - {"attention", "padded attention", "recurrent", "functional tie"}


@pytest.mark.parametrize("name", sorted(COUNTED))
def test_operation_counts_agree_with_torchs_counter(name: str) -> None:
    model, inputs = build(name)
    survey = find_layers(model, (inputs, None))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs[:1])
    assert 2 * sum(layer.macs for layer in survey.layers) == counter.get_total_flops()


def test_attention_counts_its_projections_and_not_the_products_of_tokens() -> None:
    model, inputs = build("attention")
    survey = find_layers(model, (inputs, None))
    with (
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        torch.enable_grad(),  # gradients keep attention out of fused kernels, which hide products
        torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
    ):
        model(inputs[:1])
    tokens, width = inputs.shape[1], 16
    between_tokens = 3 * 2 * 2 * tokens * tokens * width  # three attentions, scores and mixing
    assert 2 * sum(l.macs for l in survey.layers) == counter.get_total_flops() - between_tokens  # noqa: E741


def test_recurrences_multiply_every_weight_once_for_every_token() -> None:
    model, inputs = build("recurrent")
    layers = {layer.name: layer for layer in find_layers(model, (inputs, None)).layers}
    for name, layer in layers.items():
        if name.startswith(("lstm", "gru")):
            assert layer.macs == inputs.shape[1] * layer.weights


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_parameter_is_either_allocated_or_fixed(name: str) -> None:
    model, inputs = build(name)
    survey = find_layers(model, (inputs, None))
    total = sum(parameter.numel() for parameter in model.parameters())
    idle = sum("did not run" in note for note in survey.notes)
    assert survey.fixed_parameters + sum(layer.weights for layer in survey.layers) == total
    assert idle == 0 or name == "experts as modules"


def test_layers_come_in_the_order_in_which_they_start() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Linear(4, 2)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.first = nn.Linear(3, 4)
            self.idle = nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            return self.last(self.attention(x, x, x)[0])

    survey = find_layers(Backwards(), (torch.randn(2, 6, 3), None))
    assert [layer.name for layer in survey.layers] == [
        "first",
        "attention.in_proj_weight",
        "attention.out_proj",
        "last",
    ]
    assert any("idle did not run" in note for note in survey.notes)


def test_subclasses_of_known_layers_are_layers() -> None:
    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(nn.functional.pad(x, (1, 1, 1, 1)))

    survey = find_layers(nn.Sequential(Padded(3, 4, 3)), (torch.randn(1, 3, 5, 5), None))
    assert survey.layers[0].kind == "conv2d"
    assert survey.layers[0].macs == 4 * 25 * 27


def test_gpt2_layers_are_stored_as_in_by_out() -> None:
    pytorch_utils = pytest.importorskip("transformers.pytorch_utils")
    model = nn.Sequential(pytorch_utils.Conv1D(5, 3))
    survey = find_layers(model, (torch.randn(1, 2, 3), None))
    assert survey.layers[0].weight_shape == (5, 3)
    assert survey.layers[0].macs == 2 * 15


def test_a_language_model_with_experts_and_a_tied_head_is_surveyed() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        tie_word_embeddings=True,
    )
    model = transformers.MixtralForCausalLM(config)
    survey = find_layers(model, (torch.arange(5)[None], None))
    layers = {layer.name: layer for layer in survey.layers}
    assert layers["model.embed_tokens"].tied == ("lm_head",)
    experts = layers["model.layers.0.mlp.experts.gate_up_proj"]
    assert experts.weight_shape == (4 * 48, 16)
    assert experts.macs == 5 * 2 * 48 * 16  # every token goes to two experts
    assert experts.quantizes_input
    assert any("mlp.gate" in note for note in survey.notes)


def test_banks_of_other_classes_can_be_declared() -> None:
    class Library(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shelves = nn.Parameter(torch.randn(3, 4, 5))
            self.bias = nn.Parameter(torch.randn(3, 1, 5))

        def forward(self, x: Tensor) -> Tensor:
            return (torch.bmm(x.expand(3, -1, -1), self.shelves) + self.bias).sum(0)

    model = nn.Sequential(Library())
    with pytest.raises(ModelError, match=r"no layer that can be quantized.*Library"):
        find_layers(model, (torch.randn(1, 4), None))
    register_bank(Library, {"shelves": 2})
    survey = find_layers(model, (torch.randn(1, 4), None))
    assert [layer.weight_shape for layer in survey.layers] == [(15, 4)]
    assert not survey.notes
    with pytest.raises(ModelError, match="axis 0"):
        register_bank(Library, {"shelves": 0})


def test_gathered_experts_cannot_be_followed_and_the_note_says_so() -> None:
    class GatheredExperts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bank = nn.Parameter(torch.randn(3, 5, 4))

        def forward(self, x: Tensor) -> Tensor:
            chosen = (x.sum(1) > 0).long()
            return torch.einsum("ni,noi->no", x, self.bank[chosen])

    survey = find_layers(nn.Sequential(GatheredExperts()), (torch.randn(4, 4), None))
    assert not survey.layers[0].quantizes_input
    assert survey.layers[0].macs == 20
    assert any("could not be followed" in note for note in survey.notes)


@pytest.mark.parametrize(
    "layout",
    [
        ChannelLayout.plain((4, 3, 2)),
        ChannelLayout.channels_last((4, 6)),
        ChannelLayout.transposed((6, 4, 3, 3), 3),
        ChannelLayout.bank((2, 3, 4), 1),
        ChannelLayout.bank((2, 3, 4), 2),
    ],
)
def test_rearranging_a_weight_is_undone_exactly(layout: ChannelLayout) -> None:
    weight = torch.randn(layout.stored)
    rows = layout.rows(weight)
    assert tuple(rows.shape) == layout.shape
    assert torch.equal(layout.restore(rows), weight)


def test_modes_are_restored_module_by_module_and_after_an_exception() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    model[1].eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]
    with pytest.raises(RuntimeError), evaluation_mode(model):
        model(torch.randn(1, 3))
    assert [module.training for module in model.modules()] == [True, True, False]


def test_the_tensor_that_counts_is_found_in_what_a_model_returns() -> None:
    class Returns(nn.Module):
        def __init__(self, wrap: object) -> None:
            super().__init__()
            self.wrap = wrap

        def forward(self, x: Tensor) -> object:
            return self.wrap(x)  # type: ignore[operator]

    x = torch.ones(2)
    for wrap in (lambda t: t, lambda t: (t, 1), lambda t: {"none": None, "hidden": t}):
        assert torch.equal(forward(Returns(wrap), x), x)
    with pytest.raises(ModelError, match="a tensor is needed"):
        forward(Returns(lambda _: "text"), x)
    with pytest.raises(DataError, match="does not accept inputs of shape"):
        forward(nn.Linear(3, 3), x)


def test_models_without_weights_and_with_broken_weights_are_refused() -> None:
    with pytest.raises(ModelError, match="no layer that can be quantized"):
        find_layers(nn.Sequential(nn.ReLU()), (torch.randn(1, 2), None))
    broken = nn.Sequential(nn.Linear(2, 2))
    broken[0].weight.data[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"NaN|not finite|nan"):
        find_layers(broken, (torch.randn(1, 2), None))


def test_modules_quantized_already_are_noted() -> None:
    class PackedLinear(nn.Module):
        """As in torch.ao.nn.quantized: the weight is a method."""

        def weight(self) -> Tensor:
            return torch.zeros(2, 2)

    integers = nn.Linear(2, 2)
    integers.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    sites = weight_sites(nn.ModuleDict({"packed": PackedLinear(), "integers": integers}))
    assert not sites.by_name
    assert any("packed (PackedLinear) is quantized already" in note for note in sites.notes)
    assert any("integers is left in float: its weight holds torch.int8" in n for n in sites.notes)

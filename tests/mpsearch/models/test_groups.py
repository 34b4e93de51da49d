from __future__ import annotations

import pytest
import torch
from torch import nn

from mpsearch.errors import UnknownNameError
from mpsearch.models.groups import propose_groups
from mpsearch.models.registry import as_model
from mpsearch.models.target_profiles import TargetProfile, known_targets

IDS = (torch.arange(8)[None], None)


def image(size: int):
    return torch.zeros(1, 3, size, size), None


def test_the_targets_explain_themselves() -> None:
    assert [each.name for each in known_targets()] == ["independent", "fused-llm", "integer-only"]
    assert all(each.reason for each in known_targets())
    with pytest.raises(UnknownNameError, match="did you mean integer-only"):
        propose_groups(nn.Linear(1, 1), IDS, "integer")


def test_independent_kernels_need_no_groups() -> None:
    assert propose_groups(as_model("digits-resnet").module, IDS, "independent") == ()


def test_resnet18_joins_what_every_stage_adds_up() -> None:
    pytest.importorskip("torchvision")
    model = as_model("torchvision:resnet18").module
    # He et al., 2016, figure 3: the stem and the second convolutions of the first stage meet in
    # its additions; in later stages the strided shortcut takes the place of the stem.
    assert propose_groups(model, image(64), "integer-only") == (
        ("conv1", "layer1.0.conv2", "layer1.1.conv2"),
        ("layer2.0.conv2", "layer2.0.downsample.0", "layer2.1.conv2"),
        ("layer3.0.conv2", "layer3.0.downsample.0", "layer3.1.conv2"),
        ("layer4.0.conv2", "layer4.0.downsample.0", "layer4.1.conv2"),
    )
    assert propose_groups(model, image(64), "fused-llm") == ()


def test_mobilenet_v3_joins_the_projections_of_blocks_of_one_size() -> None:
    pytest.importorskip("torchvision")
    model = as_model("torchvision:mobilenet_v3_large").module
    # Howard et al., 2019, table 1: blocks of stride 1 and equal width add their input: the first
    # one the stem's 16 channels, then runs of 24, 40, 80, 112 and 160 channels. The projection of
    # a block is its last convolution; squeeze-and-excitation multiplies and joins nothing.
    assert propose_groups(model, image(64), "integer-only") == (
        ("features.0.0", "features.1.block.1.0"),
        ("features.2.block.2.0", "features.3.block.2.0"),
        ("features.4.block.3.0", "features.5.block.3.0", "features.6.block.3.0"),
        (
            "features.7.block.2.0",
            "features.8.block.2.0",
            "features.9.block.2.0",
            "features.10.block.2.0",
        ),
        ("features.11.block.3.0", "features.12.block.3.0"),
        ("features.13.block.3.0", "features.14.block.3.0", "features.15.block.3.0"),
    )


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def bert(transformers):
    config = transformers.BertConfig(
        vocab_size=32,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    return transformers.BertModel(config, add_pooling_layer=False).eval()


def test_bert_joins_query_key_and_value(transformers) -> None:
    found = propose_groups(bert(transformers), IDS, "fused-llm")
    assert found == tuple(
        tuple(f"encoder.layer.{i}.attention.self.{role}" for role in ("query", "key", "value"))
        for i in range(2)
    )


def test_berts_layer_norms_part_the_residual_stream(transformers) -> None:
    # Every addition is followed by a layer norm, whose output is a new value: what is left is the
    # sum of the three embeddings.
    found = propose_groups(bert(transformers), IDS, "integer-only")
    assert [sorted(each) for each in found] == [
        [
            "embeddings.position_embeddings",
            "embeddings.token_type_embeddings",
            "embeddings.word_embeddings",
        ]
    ]


def llama(transformers, **changes):
    config = transformers.LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **changes,
    )
    return transformers.LlamaForCausalLM(config).eval()


def llama_block(i: int):
    attention = tuple(f"model.layers.{i}.self_attn.{role}_proj" for role in "qkv")
    return attention, tuple(f"model.layers.{i}.mlp.{role}_proj" for role in ("gate", "up"))


def test_llama_joins_query_key_value_and_gate_up(transformers) -> None:
    found = propose_groups(llama(transformers), IDS, "fused-llm")
    assert found == (*llama_block(0), *llama_block(1))


def test_llamas_residual_stream_is_one_value_from_the_embedding_to_the_last_block(
    transformers,
) -> None:
    for tied in (False, True):
        model = llama(transformers, tie_word_embeddings=tied)
        assert propose_groups(model, IDS, "integer-only") == (
            (
                "model.embed_tokens",
                "model.layers.0.self_attn.o_proj",
                "model.layers.0.mlp.down_proj",
                "model.layers.1.self_attn.o_proj",
                "model.layers.1.mlp.down_proj",
            ),
        )


def test_mixtral_joins_the_banks_of_every_layer(transformers) -> None:
    config = transformers.MixtralConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
    )
    found = propose_groups(transformers.MixtralForCausalLM(config).eval(), IDS, "fused-llm")
    for i in range(2):
        assert llama_block(i)[0] in found
    banks = [each for each in found if "experts" in each[0]]
    assert [sorted(name.rpartition(".")[2] for name in each) for each in banks] == [
        ["down_proj", "gate_up_proj"]
    ] * 2
    assert len(found) == 4


class ListedExperts(nn.Module):
    """Experts as modules of a list, each a pair of linear layers; all run."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 2)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.router(x).softmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], -1)
        return (outputs * weights[:, None]).sum(-1)


def test_experts_in_a_list_go_together_and_the_router_does_not() -> None:
    found = propose_groups(ListedExperts(), (torch.zeros(1, 4), None), "fused-llm")
    assert found == (("experts.0.0", "experts.0.2", "experts.1.0", "experts.1.2"),)


class Paths(nn.Module):
    """Additions that join, and look-alikes that do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.gate, self.head = (nn.Linear(4, 4) for _ in range(5))
        self.shift = nn.Parameter(torch.zeros(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).relu_()
        x = x.clone()
        summed = self.left(x) + self.right(x.clone()).view(-1, 4)
        summed += self.shift  # a constant, no second path
        gated = summed * self.gate(summed.clone()).sigmoid()  # a product is a new value
        return self.head(gated) + gated


def test_only_sums_of_two_values_of_layers_join() -> None:
    assert propose_groups(Paths(), (torch.ones(1, 4), None), "integer-only") == (("left", "right"),)


def test_a_tensor_changed_in_between_is_not_the_same_input() -> None:
    class Changed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = (nn.Linear(2, 2) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x * 2
            first = self.one(x)
            x.add_(1)
            return first * self.two(x) * self.three(x)

    assert propose_groups(Changed(), (torch.ones(1, 2), None), "fused-llm") == (("two", "three"),)


def test_layers_of_different_parents_that_read_one_tensor_stay_apart() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Sequential(nn.Linear(2, 2)) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(x)

    target = TargetProfile("t", frozenset({"fused_projections"}), "test")
    assert propose_groups(Shared(), (torch.ones(1, 2), None), target) == ()


def test_the_model_is_left_as_it_was() -> None:
    model = Paths().train()
    propose_groups(model, (torch.ones(1, 4), None), "integer-only")
    assert all(each.training for each in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

from __future__ import annotations

import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.errors import DataError, InputError, ModelError
from mpsearch.models.digits import digits_resnet
from mpsearch.models.layers import find_layers
from mpsearch.models.named import InputForm
from mpsearch.models.registry import as_data, as_model, check_fit
from mpsearch.models.running import forward
from mpsearch.models.specs import SpecPolicy

TRUSTED = SpecPolicy(allow_paths=True, trusted=True)
BATCH = torch.export.Dim("batch", max=4096)


def export(model: nn.Module, inputs: torch.Tensor, path, *, dynamic: bool = True) -> str:
    shapes = ({0: BATCH},) if dynamic else None
    program = torch.export.export(model.eval(), (inputs,), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return str(path)


@pytest.fixture(scope="module")
def digits_pt2(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("pt2") / "digits.pt2"
    return export(digits_resnet(), torch.zeros(2, 1, 8, 8), path)


def test_an_archive_is_refused_unless_the_caller_vouches_for_it(digits_pt2) -> None:
    with pytest.raises(InputError, match="--trusted"):
        as_model(digits_pt2)
    with pytest.raises(InputError, match="not allowed here"):
        as_model(digits_pt2, SpecPolicy(trusted=True))


def test_the_rebuilt_network_is_the_original_down_to_its_layers(digits_pt2) -> None:
    named = as_model(digits_pt2, TRUSTED)
    inputs = torch.rand(7, 1, 8, 8)
    original = digits_resnet()
    assert named.inputs == InputForm((1, 8, 8))
    assert torch.equal(named.module(inputs), original(inputs))
    found, wanted = (find_layers(each, (inputs, None)).layers for each in (named.module, original))
    assert found == wanted
    options, budget = ["w2a8", "w8a8"], {"weight_memory": "0.2x"}
    first, second = (
        mp.search(each, "digits", options, budget, estimator="sqnr", verified=False)
        for each in (named, "digits-resnet")
    )
    assert first.layers == second.layers


class Assorted(nn.Module):
    """One of everything that is turned back into layers, and things that are not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6, padding_idx=2)
        self.same = nn.Conv1d(6, 6, 3, padding="same", groups=2)
        self.strided = nn.Conv1d(6, 4, 2, stride=2, dilation=2, bias=False)
        self.norm = nn.LayerNorm(4)
        self.twice = nn.Linear(4, 4)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embedding.weight
        self.loose = nn.Parameter(torch.randn(6, 4))
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.strided(self.same(self.embedding(ids).transpose(1, 2)))
        x = self.norm(x.transpose(1, 2) + self.table)
        x = self.twice(self.twice(x).relu())
        a, b = torch.split(x, 2, dim=-1)
        x = torch.cat([b.softmax(-1), a], -1).view(ids.shape[0], -1, 4)
        values, _ = x.max(1, keepdim=True)
        x = nn.functional.linear(x - values, self.loose)
        return self.head(x.to(torch.float32))


def test_layers_tied_weights_and_everything_else_survive(tmp_path) -> None:
    torch.manual_seed(0)
    model = Assorted()
    ids = torch.randint(11, (3, 9))
    named = as_model(export(model, ids, tmp_path / "m.pt2"), TRUSTED)
    kinds = {name: type(module) for name, module in named.module.named_modules()}
    # torch stores a tied weight under one of its names.
    assert kinds["head"] is nn.Embedding
    assert kinds["head_linear"] is nn.Linear
    assert kinds["same"] is kinds["strided"] is nn.Conv1d
    assert kinds["twice"] is nn.Linear
    assert named.module.same.padding == "same"
    assert named.inputs is None
    for batch in (ids, torch.randint(11, (5, 9))):
        torch.testing.assert_close(named.module(batch), model(batch))
    layers = {each.name: each for each in find_layers(named.module, (ids, None)).layers}
    assert layers["head"].tied == ("head_linear",)
    assert layers["twice"].macs == 2 * 16 * 4


def test_torchvision_networks_survive(tmp_path) -> None:
    pytest.importorskip("torchvision")
    model = as_model("torchvision:mobilenet_v3_small").module
    inputs = torch.randn(1, 3, 64, 64)
    spec = export(model, inputs, tmp_path / "m.pt2", dynamic=False)
    named = as_model(spec, TRUSTED)
    torch.testing.assert_close(named.module(inputs), model(inputs))
    count = sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in model.modules())
    assert len(find_layers(named.module, (inputs, None)).layers) == count


class Language(nn.Module):
    """What language models add: sizes and devices made on the run, and parts without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            places = torch.arange(ids.shape[1], device=ids.device, dtype=torch.float32)
            scale = self.embed.weight.sum()
        seen = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
        weights = (seen & (ids > 2)[:, None]).float()
        return self.head(weights @ (self.embed(ids) * (places[:, None] * scale).cos()))


def test_parts_without_gradients_are_written_into_the_graph(tmp_path) -> None:
    torch.manual_seed(0)
    model = Language()
    ids = torch.randint(20, (3, 9))
    named = as_model(export(model, ids, tmp_path / "m.pt2"), TRUSTED)
    other = torch.randint(20, (5, 9))
    torch.testing.assert_close(named.module(other), model(other))
    for each in (model, named.module):
        each(other).square().sum().backward()
    assert model.embed.weight.grad is not None
    torch.testing.assert_close(named.module.embed.weight.grad, model.embed.weight.grad)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "BertModel", "ViTForImageClassification"])
def test_networks_of_transformers_survive(name: str, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    kind = getattr(transformers, name)
    config = kind.config_class(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        image_size=16,
        patch_size=8,
        vocab_size=40,
        use_cache=False,
    )
    torch.manual_seed(0)
    model = kind(config).eval()
    inputs = torch.randn(1, 3, 16, 16) if "ViT" in name else torch.randint(40, (1, 12))
    torch.export.save(torch.export.export(model, (inputs,)), tmp_path / "m.pt2")
    named = as_model(str(tmp_path / "m.pt2"), TRUSTED)
    torch.testing.assert_close(forward(named.module, inputs), forward(model, inputs))
    found, wanted = (find_layers(each, (inputs, None)).layers for each in (named.module, model))
    assert {each.name for each in found} == {each.name for each in wanted}


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.fc(x * mask)


def test_a_model_of_two_inputs_takes_them_by_name(tmp_path) -> None:
    model, x, mask = Two(), torch.randn(4, 3), torch.tensor([[1.0, 0, 1]]).repeat(4, 1)
    torch.export.save(torch.export.export(model, (x, mask)), tmp_path / "two.pt2")
    named = as_model(str(tmp_path / "two.pt2"), TRUSTED)
    data = as_data({"x": x, "mask": mask})
    torch.testing.assert_close(forward(named.module, data.inputs), model(x, mask))
    with pytest.raises(DataError, match="'mask'"):
        forward(named.module, x)


def test_a_model_that_changes_its_buffers_is_refused(tmp_path) -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.add_(1)
            return x + self.seen

    x = torch.ones(2)
    program = torch.export.export(Counts(), (x,)).run_decompositions()
    torch.export.save(program, tmp_path / "counts.pt2")
    with pytest.raises(ModelError, match="changes its own buffers"):
        as_model(str(tmp_path / "counts.pt2"), TRUSTED)


def test_an_export_for_one_batch_size_says_so_where_it_fails(tmp_path) -> None:
    inputs = torch.zeros(5, 3)
    model = nn.Sequential(nn.Linear(3, 2), nn.Flatten(0), nn.Unflatten(0, (5, 2)))
    torch.export.save(torch.export.export(model, (inputs,)), tmp_path / "five.pt2")
    named = as_model(str(tmp_path / "five.pt2"), TRUSTED)
    with pytest.raises(DataError, match="exported for batches of 5"):
        check_fit(named, as_data(inputs))

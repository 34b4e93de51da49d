"""torchao itself reads an exported FqnToConfig, applies it, and reports what we asked for."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

import mpsearch as mp
from mpsearch.export import export, find_target
from mpsearch.formats import Integer, parse_option
from mpsearch.models.dataset import DataSet
from tests.mpsearch.engine.trained_models import SentenceEncoder, documents
from tests.mpsearch.export.test_in_compressed_tensors import spread

torchao = pytest.importorskip("torchao")


def applied(model: nn.Module, layers: dict[str, str], path) -> nn.Module:
    """Export, let torchao read the file, and apply it to a copy."""
    from torchao.core.config import config_from_dict, config_to_dict
    from torchao.quantization import quantize_

    export(layers, "torchao", path)
    document = json.loads(path.read_text())
    config = config_from_dict(document)
    # What torchao itself would have written holds the same configs.
    again = config_to_dict(config)["_data"]["fqn_to_config"]
    assert again == document["_data"]["fqn_to_config"]
    changed = copy.deepcopy(model)
    quantize_(changed, config, filter_fn=None)
    return changed


def test_every_option_offered_is_applied_with_its_precision(tmp_path):
    options = find_target("torchao").offers
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(128, 128) for _ in options])
    layers = {str(place): option for place, option in enumerate(options)}
    changed = applied(model, layers, tmp_path / "config.json")
    for place, text in enumerate(options):
        option, weight = parse_option(text), changed[place].weight
        spec = option.weight
        kind = type(weight).__name__
        if spec.is_float:
            assert kind == "Parameter"
            continue
        shape = (128, 128) if spec.per_tensor else (1, spec.block or 128)
        assert tuple(weight.block_size) == shape, text
        codes = weight.qdata
        if isinstance(spec, Integer):
            assert codes.dtype == torch.int8
            assert int(codes.unique().numel()) <= 2**spec.width, text
            assert int(codes.unique().numel()) > 2 ** (spec.width - 1), text
            if kind == "IntxUnpackedToInt8Tensor":
                assert weight.target_dtype == getattr(torch, f"int{spec.width}"), text
        else:
            assert codes.dtype == torch.float8_e4m3fn
        inputs = getattr(weight, "act_quant_kwargs", None) or getattr(
            weight, "activation_quantization", None
        )
        assert (inputs is None) == option.activation.is_float, text
        changed[place](torch.randn(3, 128))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("asked", "simulated"),
    [
        (("w8", "int4_asym_g32", "float", "w:int8_g64/a:float", "fp8_e4m3"), {}),
        # Its activations are scaled per token at run time: blocks of the whole row, in our terms.
        (
            ("w8a8", "w:int8/a:int8_asym", "float", "w8"),
            {"w8a8": "w:int8/a:int8_g4096", "w:int8/a:int8_asym": "w:int8/a:int8_asym_g4096"},
        ),
    ],
    ids=["weights", "weights and activations"],
)
def test_embeddings_of_a_trained_encoder_match_the_fake_quantized_ones(tmp_path, asked, simulated):
    model = SentenceEncoder().eval()
    ids = documents(64)[:8]
    layers = spread(model, asked)
    changed = applied(model, layers, tmp_path / "config.json")
    same = {layer: simulated.get(option, option) for layer, option in layers.items()}
    with torch.no_grad():
        found = changed(ids)
        ours = mp.apply(model, same, DataSet("documents", ids))(ids)
        untouched = model(ids)
    cosine = nn.functional.cosine_similarity(ours, found)
    assert float(cosine.min()) >= 0.999
    # The allocation does something: the two agree better than either with the float model.
    assert float(nn.functional.cosine_similarity(ours, untouched).min()) < float(cosine.min())

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

from mpsearch.errors import InputError, UnknownNameError
from mpsearch.models.named import InputForm
from mpsearch.models.registry import as_model
from mpsearch.models.specs import SpecPolicy

timm = pytest.importorskip("timm")


def test_timm_weights_are_loaded_and_random_ones_are_named(tmp_path) -> None:
    torch.manual_seed(4)
    other = timm.create_model("mobilenetv3_small_050", pretrained=False)
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    loaded = as_model(f"timm:mobilenetv3_small_050@{tmp_path / 'w.safetensors'}")
    inputs = torch.randn(1, 3, 64, 64)
    assert torch.equal(loaded.module(inputs), other.eval()(inputs))
    assert loaded.inputs == InputForm((3, 224, 224))
    assert loaded.notes == ()
    before = torch.get_rng_state()
    first, second = (as_model("timm:mobilenetv3_small_050", SpecPolicy()) for _ in range(2))
    assert torch.equal(first.module.classifier.weight, second.module.classifier.weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert "random weights" in first.notes[0]


def test_files_without_the_step_counters_of_batch_norms_are_whole(tmp_path) -> None:
    state = timm.create_model("resnet10t", pretrained=False).state_dict()
    kept = {name: each for name, each in state.items() if "num_batches_tracked" not in name}
    save_file(kept, tmp_path / "w.safetensors")
    loaded = as_model(f"timm:resnet10t@{tmp_path / 'w.safetensors'}").module.state_dict()
    assert all(torch.equal(loaded[name], each) for name, each in kept.items())


def test_a_name_with_the_tag_of_its_weights_takes_their_input_size() -> None:
    named = as_model("timm:vit_tiny_patch16_384.augreg_in21k_ft_in1k")
    assert named.inputs == InputForm((3, 384, 384))


@pytest.mark.parametrize("name", ["hf-hub:timm/resnet18", "hf_hub:timm/resnet18", "local-dir:/etc"])
def test_names_that_timm_would_download_or_look_up_are_unknown(name: str) -> None:
    with pytest.raises(InputError, match="unknown timm network"):
        as_model(f"timm:{name}")


def test_an_unknown_name_shows_a_few_near_ones() -> None:
    with pytest.raises(UnknownNameError, match="did you mean mobilenetv3_small_050") as caught:
        as_model("timm:mobilenetv3_smal_050")
    assert len(str(caught.value)) < 600

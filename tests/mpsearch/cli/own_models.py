"""Models and data that a user's own module might define; named `own_models:…` on command lines."""

from __future__ import annotations

import torch
from torch import nn

from mpsearch.models.digits import DigitsResNet, digits, digits_resnet


def nan_weights() -> nn.Module:
    model = digits_resnet()
    with torch.no_grad():
        model.layer1[0].conv1.weight[0, 0, 0, 0] = float("nan")
    return model


def another() -> nn.Module:
    torch.manual_seed(1)
    return DigitsResNet().eval()


def no_layers() -> nn.Module:
    return nn.Sequential(nn.ReLU())


def empty_data() -> list[object]:
    return []


def no_rows() -> torch.Tensor:
    return torch.zeros(0, 1, 8, 8)


def wrong_shape() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)


def few_digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = digits()
    return data.inputs[:64], data.targets[:64]


NOT_A_FUNCTION = 3

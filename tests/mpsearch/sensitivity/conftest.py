"""A net small enough to differentiate by brute force, and the exact quantities of it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev, vmap

import mpsearch as mp


class SmallNet(nn.Module):
    """Strided, grouped and pointwise convolutions and a linear layer, smooth: 133 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2, bias=False)
        self.point = nn.Conv2d(4, 3, 1)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x))
        x = torch.nn.functional.silu(self.grouped(x))
        x = torch.tanh(self.point(x))
        return self.head(x.mean(dim=(2, 3)))


@dataclass(frozen=True)
class Exact:
    """Derivatives of the mean cross-entropy in one layer's weight, by brute force."""

    model: nn.Module
    inputs: Tensor
    targets: Tensor

    def weight(self, layer: str) -> Tensor:
        return self.model.get_submodule(layer).weight.detach()

    def logits(self, layer: str, weight: Tensor, inputs: Tensor) -> Tensor:
        return functional_call(self.model, {f"{layer}.weight": weight}, (inputs,))

    def loss(self, layer: str, weight: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self.logits(layer, weight, self.inputs), self.targets)

    def gradient(self, layer: str) -> Tensor:
        return jacrev(lambda w: self.loss(layer, w))(self.weight(layer))

    def hessian(self, layer: str) -> Tensor:
        weight = self.weight(layer)
        return hessian(lambda w: self.loss(layer, w))(weight).reshape(weight.numel(), -1)

    def jacobian(self, layer: str) -> Tensor:
        """Logits of every input differentiated in the weight: inputs x classes x weights."""
        weight = self.weight(layer)
        return jacrev(lambda w: self.logits(layer, w, self.inputs))(weight).flatten(2)

    def ggn(self, layer: str) -> Tensor:
        p = torch.softmax(self.model(self.inputs).detach(), dim=1)
        middle = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        j = self.jacobian(layer)
        return torch.einsum("ncw,ncd,ndv->wv", j, middle, j) / len(p)

    def sample_gradients(self, layer: str) -> Tensor:
        """Gradient of each input's own loss: inputs x weights."""

        def own(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return nn.functional.cross_entropy(self.logits(layer, w, x[None]), y[None])

        found = vmap(jacrev(own), in_dims=(None, 0, 0))(
            self.weight(layer), self.inputs, self.targets
        )
        return found.flatten(1)


@pytest.fixture
def net() -> SmallNet:
    torch.manual_seed(3)
    return SmallNet().double().eval()


@pytest.fixture
def exact(net: SmallNet) -> Exact:
    torch.manual_seed(4)
    return Exact(net, torch.randn(12, 1, 6, 6).double(), torch.randint(0, 3, (12,)))


@pytest.fixture
def data(exact: Exact) -> mp.DataSet:
    """Three uneven batches, so that anything that depends on batching shows."""
    return mp.DataSet("random", exact.inputs, exact.targets, batch_size=5)

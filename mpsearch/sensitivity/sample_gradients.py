"""Squared norms of every input's own weight gradient, from layer inputs and output gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mpsearch.sensitivity.taps import Call, refuse_rows, substituted

__all__ = ["SampleNorms", "squared_norms"]

Pair = tuple[Tensor, Tensor]
"""Input and output gradient of one call: `[batch, ...]` each."""

CHUNK_ELEMENTS = 2**22
"""Largest intermediate of one chunk, in elements: 16 MiB in float32, which stays near the cache."""


def squared_norms(module: nn.Module, calls: Sequence[Pair]) -> Tensor:
    """Compute ||∂l_n/∂W||² for every input n of a batch.

    With X [T, K] the layer's inputs unfolded to T positions and G [T, O] the output gradients, the
    gradient is XᵀG. The cheaper of two forms is taken: XᵀG itself (T·K·O), or the Gram form
    Σ (XXᵀ)∘(GGᵀ) (T²·(K + O)), which never builds it. Several calls in one forward pass are
    further positions.

    Args:
        module: The layer: a linear layer, a convolution, or anything whose own forward maps each
            input of the batch by itself.
        calls: Inputs and output gradients of its calls in one forward pass.

    Returns:
        float64 `[batch]`.
    """
    batch = len(calls[0][0])
    unfold = _unfolding(module)
    if unfold is None:
        return _norms_by_forward(module, calls)
    sizes = [max(1, _elements(module, pair)) for pair in calls]
    step = max(1, CHUNK_ELEMENTS // max(sizes))
    parts = []
    for start in range(0, batch, step):
        pieces = [unfold(x[start : start + step], g[start : start + step]) for x, g in calls]
        x = torch.cat([piece[0] for piece in pieces], dim=2)
        g = torch.cat([piece[1] for piece in pieces], dim=2)
        parts.append(_norms(x, g))
    return torch.cat(parts)


class SampleNorms:
    """Collects ||∂l_n/∂W||² of every layer during one backward pass.

    A layer that runs several times in a forward pass is waited for until all its calls arrived.
    """

    def __init__(
        self, modules: dict[str, nn.Module], on_norms: Callable[[str, Tensor], None]
    ) -> None:
        """Start a collection.

        Args:
            modules: Layers by name.
            on_norms: Called with a layer's name and its squared norms `[batch]`, float64.
        """
        self._modules = modules
        self._on_norms = on_norms
        self._waiting: dict[str, list[Pair]] = {}
        self.batch = 0
        self.calls: Callable[[str], int] = lambda _: 1

    def __call__(self, call: Call, gradient: Tensor) -> None:
        """Take the output gradient of one call.

        Args:
            call: The call.
            gradient: Gradient of its output.
        """
        inputs = call.take()
        refuse_rows(call, self.batch, len(inputs))
        pairs = self._waiting.setdefault(call.layer, [])
        pairs.append((inputs, gradient.detach()))
        if len(pairs) == self.calls(call.layer):
            with torch.no_grad():
                norms = squared_norms(self._modules[call.layer], pairs)
            self._on_norms(call.layer, norms)
            del self._waiting[call.layer]


def _norms(x: Tensor, g: Tensor) -> Tensor:
    """Norms from x [batch, groups, T, K] and g [batch, groups, T, O]."""
    positions, fan_in, fan_out = x.shape[2], x.shape[3], g.shape[3]
    if positions == 1:
        squares = x.square().sum(3) * g.square().sum(3)
    elif positions * (fan_in + fan_out) < fan_in * fan_out:
        squares = (x @ x.transpose(2, 3)) * (g @ g.transpose(2, 3))
    else:
        squares = (x.transpose(2, 3) @ g).square_()
    return squares.flatten(1).sum(dim=1, dtype=torch.float64)


def _elements(module: nn.Module, pair: Pair) -> int:
    """Elements of the largest intermediate that one input of the batch needs."""
    x, g = pair
    if isinstance(module, nn.Linear):
        positions = g[0].numel() // g.shape[-1]
        fan_in, fan_out, groups = x.shape[-1], g.shape[-1], 1
    else:
        assert isinstance(module, nn.Conv1d | nn.Conv2d)
        positions, groups = g[0, 0].numel(), module.groups
        fan_in, fan_out = module.weight[0].numel(), g.shape[1] // groups
    product = min(positions**2, fan_in * fan_out)
    return groups * max(positions * fan_in, positions * fan_out, product)


def _unfolding(module: nn.Module) -> Callable[[Tensor, Tensor], Pair] | None:
    """Find how to write a layer as one matrix product per position, or None where unknown."""
    # A subclass with a forward of its own may do anything to its input first, padding for example.
    own = type(module).forward
    if own is nn.Linear.forward:
        return _unfold_linear
    if own is nn.Conv1d.forward or own is nn.Conv2d.forward:
        assert isinstance(module, nn.Conv1d | nn.Conv2d)
        if module.padding_mode == "zeros" and not isinstance(module.padding, str):
            return lambda x, g: _unfold_convolution(module, x, g)
    return None


def _unfold_linear(x: Tensor, g: Tensor) -> Pair:
    return x.reshape(len(x), 1, -1, x.shape[-1]), g.reshape(len(g), 1, -1, g.shape[-1])


def _unfold_convolution(module: nn.Conv1d | nn.Conv2d, x: Tensor, g: Tensor) -> Pair:
    kernel, stride = module.kernel_size, module.stride
    padding, dilation = module.padding, module.dilation
    assert not isinstance(padding, str)
    g = g.reshape(len(g), module.groups, -1, g[0, 0].numel()).transpose(2, 3)
    if set(kernel) == {1} and set(stride) == {1} and set(padding) == {0}:
        columns = x
    elif x.ndim == 3:
        columns = nn.functional.unfold(
            x.unsqueeze(2), (1, *kernel), (1, *dilation), (0, *padding), (1, *stride)
        )
    else:
        columns = nn.functional.unfold(x, kernel, dilation, padding, stride)
    return columns.reshape(len(x), module.groups, -1, g.shape[2]).transpose(2, 3), g


def _norms_by_forward(module: nn.Module, calls: Sequence[Pair]) -> Tensor:
    """Differentiate the module's own forward in the weight for every input by itself."""
    weight = module.weight
    assert isinstance(weight, Tensor)

    def product(w: Tensor, x: Tensor, g: Tensor) -> Tensor:
        with substituted(module, {"weight": w}):
            output: Tensor = module.forward(x.unsqueeze(0))
            return (output.squeeze(0) * g).sum()

    each = torch.func.vmap(torch.func.grad(product), in_dims=(None, 0, 0))
    batch = len(calls[0][0])
    step = max(1, CHUNK_ELEMENTS // weight.numel())
    parts = []
    for start in range(0, batch, step):
        found = [
            each(weight.detach(), x[start : start + step], g[start : start + step])
            for x, g in calls
        ]
        total = torch.stack(found).sum(dim=0)
        parts.append(total.flatten(1).square().sum(dim=1, dtype=torch.float64))
    return torch.cat(parts)

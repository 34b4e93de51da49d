"""Groups of layers that a target makes share an option, proposed from one run of the model.

The model runs once, on one input, so control flow needs no tracing; what did not run on that input
is in no group.

- *fused projections*: linear layers of one parent module that read the same tensor.
- *experts*: all layers below one module named `experts`, and the banks of one module.
- *residual additions*: layers whose outputs are added. A value is followed from the layer that
  made it through operations that keep or reshape its elements one by one (batch norm, activations,
  pooling, views); anything else (layer norm, softmax, products of activations) makes a new value
  that is quantized on its own, and ends the trail.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpsearch.models.dataset import Batch
from mpsearch.models.kinds import WeightSites, weight_sites
from mpsearch.models.layers import Layer, find_layers
from mpsearch.models.running import evaluation_mode, forward
from mpsearch.models.target_profiles import Rule, TargetProfile, target_profile

__all__ = ["propose_groups"]

_ADDITIONS = {"add.Tensor", "add_.Tensor"}
_KEEPING = {
    "_adaptive_avg_pool2d",
    "_to_copy",
    "_native_batch_norm_legit_no_training",
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "avg_pool1d",
    "clamp",
    "clamp_",
    "clone",
    "constant_pad_nd",
    "cudnn_batch_norm",
    "elu",
    "gelu",
    "hardsigmoid",
    "hardswish",
    "hardswish_",
    "hardtanh",
    "hardtanh_",
    "leaky_relu",
    "leaky_relu_",
    "max_pool2d_with_indices",
    "mean",
    "native_batch_norm",
    "relu",
    "relu_",
    "sigmoid",
    "silu",
    "silu_",
    "tanh",
    "upsample_nearest2d",
}
"""Operations on one value whose result is that value, element by element or pooled."""


def propose_groups(
    model: nn.Module, batch: Batch, target: str | TargetProfile
) -> tuple[tuple[str, ...], ...]:
    """Find the layers that a target makes share an option.

    Args:
        model: The model; unchanged afterwards.
        batch: A batch that it accepts; its first input is run.
        target: The target, or its name.

    Returns:
        The groups of two and more layers, each in execution order, disjoint; in order of the first
        layer.
    """
    profile = target_profile(target) if isinstance(target, str) else target
    if not profile.rules:
        return ()
    layers = find_layers(model, batch).layers
    sites = weight_sites(model)
    together = _Together([layer.name for layer in layers])
    if "experts" in profile.rules:
        for members in _experts(layers):
            together.join(members)
    if profile.rules & {"fused_projections", "residual_additions"}:
        _watch(model, batch, sites, layers, profile.rules, together)
    return together.groups()


class _Together:
    """Disjoint sets of layers (union by the earliest member)."""

    def __init__(self, names: Sequence[str]) -> None:
        self._order = {name: place for place, name in enumerate(names)}
        self._first = {name: name for name in names}

    def join(self, names: Iterable[str]) -> None:
        """Put layers into one set; names of nothing that can be quantized are left out."""
        roots = sorted({self._root(each) for each in names if each in self._first}, key=self._place)
        for root in roots[1:]:
            self._first[root] = roots[0]

    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Give the sets of two and more, in execution order."""
        found: dict[str, list[str]] = {}
        for name in self._order:
            found.setdefault(self._root(name), []).append(name)
        return tuple(tuple(each) for each in found.values() if len(each) > 1)

    def _place(self, name: str) -> int:
        return self._order[name]

    def _root(self, name: str) -> str:
        while self._first[name] != name:
            name = self._first[name]
        return name


def _experts(layers: Sequence[Layer]) -> Iterable[list[str]]:
    found: dict[str, list[str]] = {}
    for layer in layers:
        parts = layer.name.split(".")
        if "experts" in parts[:-1]:
            home = ".".join(parts[: parts.index("experts") + 1])
        elif layer.kind == "expert_bank":
            home = layer.name.rpartition(".")[0]
        else:
            continue
        found.setdefault(home, []).append(layer.name)
    return found.values()


def _watch(
    model: nn.Module,
    batch: Batch,
    sites: WeightSites,
    layers: Sequence[Layer],
    rules: frozenset[Rule],
    together: _Together,
) -> None:
    """Run the model once and join what reads the same tensor, and what is added."""
    readers: dict[tuple[object, ...], list[str]] = {}
    trail = _Trail()
    with ExitStack() as stack:
        for layer in layers:
            for use in sites.by_name[layer.name].uses:
                module = model.get_submodule(use.module)
                if layer.kind == "linear":
                    reading = _reader(layer.name, use.module, readers, trail)
                    handle = module.register_forward_pre_hook(reading, with_kwargs=True)
                    stack.callback(handle.remove)
                handle = module.register_forward_hook(_maker(layer.name, trail))
                stack.callback(handle.remove)
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluation_mode(model))
        with trail:
            forward(model, batch[0][:1])
    if "fused_projections" in rules:
        for names in readers.values():
            together.join(names)
    if "residual_additions" in rules:
        for members in trail.added:
            together.join(members)


def _reader(
    name: str, path: str, readers: dict[tuple[object, ...], list[str]], trail: _Trail
) -> Callable[..., None]:
    parent = path.rpartition(".")[0]

    def read(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor):
                trail.keep(value)
                place = value.storage_offset(), tuple(value.shape), value.stride(), value._version
                readers.setdefault((parent, _storage(value), *place), []).append(name)
                return

    return read


def _maker(name: str, trail: _Trail) -> Callable[..., None]:
    def made(_: nn.Module, __: tuple[Any, ...], output: object) -> None:
        first = output[0] if isinstance(output, (tuple, list)) and output else output
        if isinstance(first, Tensor):
            trail.begin(first, name)

    return made


class _Trail(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows values from the layers that made them, by the storage they lie in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.added: list[set[str]] = []
        self._makers: dict[int, set[str]] = {}
        # Storages are told apart by address, so none may be freed and used again meanwhile.
        self._kept: list[Tensor] = []

    def keep(self, tensor: Tensor) -> None:
        """Hold a tensor's memory until the run is over."""
        self._kept.append(tensor)

    def begin(self, tensor: Tensor, name: str) -> None:
        """Note that a layer made this value."""
        self.keep(tensor)
        self._makers[_storage(tensor)] = {name}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        del types
        output = func(*args, **(kwargs or {}))
        made = output[0] if isinstance(output, (tuple, list)) and output else output
        if not isinstance(made, Tensor):
            return output
        self.keep(made)
        operation = func._schema.name.removeprefix("aten::")
        entered = [each for each in args if isinstance(each, Tensor)]
        if not entered or any(_storage(made) == _storage(x) for x in entered[1:]):
            return output
        if f"{operation}.{func._schema.overload_name}" in _ADDITIONS:
            self._note_addition(entered, made)
        elif operation in _KEEPING:
            self._makers[_storage(made)] = self._made(entered[0])
        elif _storage(made) != _storage(entered[0]) or func._schema.is_mutable:
            self._makers[_storage(made)] = set()  # a new value, of no layer; views keep theirs
        return output

    def _note_addition(self, entered: list[Tensor], made: Tensor) -> None:
        operands = [self._made(each) for each in entered]
        # Biases and broadcast constants are no second path through the network.
        if len(entered) == 2 and entered[0].shape == entered[1].shape:
            makers = operands[0] | operands[1]
            if all(operands) and len(makers) > 1:
                self.added.append(makers)
            self._makers[_storage(made)] = makers
        else:
            self._makers[_storage(made)] = operands[0] if entered else set()

    def _made(self, tensor: Tensor) -> set[str]:
        return self._makers.get(_storage(tensor), set())


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else id(tensor)

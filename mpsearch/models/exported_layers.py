"""Turning exported operations on stored weights back into the layers they came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["LayerCall", "as_layer"]

Given = Mapping[str, dict[str, Any]]


@dataclass(frozen=True)
class LayerCall:
    """A call of a layer that takes the place of an operation.

    Attributes:
        path: Qualified name of the layer.
        reads: Name of the operation's argument that is the layer's input.
    """

    path: str
    reads: str


def _convolution(kind: type[nn.Module], axes: int) -> Callable[[Given, nn.Parameter, bool], Any]:
    def make(given: Given, weight: nn.Parameter, bias: bool) -> nn.Module:
        groups = _plain(given, "groups", 1)
        return kind(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=_sizes(given, "stride", 1, axes),
            padding=_sizes(given, "padding", 0, axes),
            dilation=_sizes(given, "dilation", 1, axes),
            groups=groups,
            bias=bias,
            device="meta",
        )

    return make


def _linear(_: Given, weight: nn.Parameter, bias: bool) -> nn.Module:
    return nn.Linear(weight.shape[1], weight.shape[0], bias=bias, device="meta")


def _embedding(given: Given, weight: nn.Parameter, _: bool) -> nn.Module:
    padding = _plain(given, "padding_idx", -1)
    rows, columns = weight.shape
    return nn.Embedding(rows, columns, None if padding < 0 else padding, device="meta")


_MAKERS: dict[str, tuple[Callable[[Given, nn.Parameter, bool], Any], str]] = {
    "torch.ops.aten.conv1d.default": (_convolution(nn.Conv1d, 1), "input"),
    "torch.ops.aten.conv1d.padding": (_convolution(nn.Conv1d, 1), "input"),
    "torch.ops.aten.conv2d.default": (_convolution(nn.Conv2d, 2), "input"),
    "torch.ops.aten.conv2d.padding": (_convolution(nn.Conv2d, 2), "input"),
    "torch.ops.aten.conv3d.default": (_convolution(nn.Conv3d, 3), "input"),
    "torch.ops.aten.linear.default": (_linear, "input"),
    "torch.ops.aten.embedding.default": (_embedding, "indices"),
}


def as_layer(
    target: str, given: Given, stored: Mapping[str, str], root: nn.Module
) -> LayerCall | None:
    """Put a layer where an operation's weight is kept, if it is one of a layer.

    Args:
        target: The operation.
        given: Its arguments by name.
        stored: Value -> name of the parameter or buffer.
        root: Module that holds the parameters; gets the layer in place of the bare container.

    Returns:
        How to call the layer, or None when the operation is none of a layer with weights of its
        own.
    """
    if target not in _MAKERS:
        return None
    make, reads = _MAKERS[target]
    weight_name = stored.get(given["weight"].get("as_tensor", {}).get("name", ""), "")
    path, _, last = weight_name.rpartition(".")
    if not path or last != "weight":
        return None
    bias_name = None
    if "as_tensor" in given.get("bias", {}):
        bias_name = stored.get(given["bias"]["as_tensor"]["name"])
        if bias_name != f"{path}.bias":
            return None
    home = root.get_submodule(path)
    weight = home._parameters.get("weight")
    if weight is None or home._modules or (bias_name and "bias" not in home._parameters):
        return None
    layer = make(given, weight, bias_name is not None)
    own = {"weight", "bias"} if bias_name is not None else {"weight"}
    if type(home) is nn.Module:
        if set(home._parameters) | set(home._buffers) != own:
            return None
        layer._parameters.update(home._parameters)
        root.set_submodule(path, layer)
        return LayerCall(path, reads)
    # The weight was called before: by the same layer, or by another one that is tied to it.
    if repr(home) != repr(layer):
        path = f"{path}_{type(layer).__name__.lower()}"
        tied = getattr(root.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], None)
        if tied is None:
            layer._parameters.update({name: home._parameters[name] for name in own})
            root.set_submodule(path, layer)
        elif repr(tied) != repr(layer):
            return None
    return LayerCall(path, reads)


def _plain(given: Given, name: str, usual: int) -> int:
    return int(given[name]["as_int"]) if name in given else usual


def _sizes(given: Given, name: str, usual: int, axes: int) -> Any:  # noqa: ANN401 - or text
    if name not in given:
        return (usual,) * axes
    if "as_string" in given[name]:
        return str(given[name]["as_string"])
    sizes = tuple(map(int, given[name]["as_ints"]))
    return sizes * axes if len(sizes) == 1 else sizes

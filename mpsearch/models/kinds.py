"""Kinds of layers: which parameter of which module is a weight, and how its channels lie."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mpsearch.errors import MismatchError, ModelError
from mpsearch.models.channels import ChannelLayout

__all__ = ["Takes", "Use", "WeightSite", "WeightSites", "register_bank", "weight_sites"]

Takes = Literal["first", "query", "key", "value", "query_key_value", "operand", "nothing"]
"""Where a weight meets its input: an argument of the module's call, the query, key or value of an
attention call, the other operand of a matrix product inside the call, or nowhere that is a
floating-point tensor of its own (embeddings, recurrent weights inside a fused kernel)."""

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)

_BANKS: dict[type[nn.Module], Mapping[str, int]] = {}


@dataclass(frozen=True)
class Use:
    """One module that multiplies with a weight.

    Attributes:
        layer: Name under which the range of its input is kept.
        module: Qualified name of the module whose call runs it.
        takes: Where its input enters.
    """

    layer: str
    module: str
    takes: Takes


@dataclass(frozen=True)
class WeightSite:
    """A weight that is stored once, with everything that uses it.

    Attributes:
        name: Name of the layer: the module's where it has one weight, else the parameter's.
        kind: Class of operation, such as `conv2d`, `linear`, `embedding`, `attention`, `lstm`.
        parameters: Qualified names of the parameters that share the storage.
        layout: How the weight lies as rows of output channels.
        uses: The modules that multiply with it, the one it is named for first.
        flattened: Whether the module keeps several weights in one buffer, so that values must be
            written into place instead of exchanging the tensor.
    """

    name: str
    kind: str
    parameters: tuple[str, ...]
    layout: ChannelLayout
    uses: tuple[Use, ...]
    flattened: bool = False

    @property
    def tied(self) -> tuple[str, ...]:
        """Names of the other layers that share this weight."""
        return tuple(use.layer for use in self.uses[1:])


@dataclass
class WeightSites:
    """The weights of a model that can be quantized.

    Attributes:
        by_name: Layer -> its weight, in module order; a tied weight appears once.
        alias: Every other name of a layer -> the name in `by_name`.
        notes: What cannot be quantized, in words.
    """

    by_name: dict[str, WeightSite] = field(default_factory=dict)
    alias: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def find(self, model: nn.Module, name: str) -> WeightSite:
        """Find a layer by any of its names.

        Args:
            model: The model, for the message.
            name: Layer name.

        Returns:
            The weight it uses.

        Raises:
            MismatchError: The model has no such layer, or it has no weight to quantize.
            ModelError: The model is compiled by TorchScript.
        """
        site = self.by_name.get(self.alias.get(name, name))
        if site is not None:
            return site
        if isinstance(model, torch.jit.ScriptModule):
            raise ModelError(
                f"{model.original_name} is compiled by TorchScript, and weights and inputs inside "
                "compiled code cannot be reached; give the module that it was made from"
            )
        try:
            module = model.get_submodule(name)
        except AttributeError as error:
            raise MismatchError(f"{type(model).__name__} has no layer {name!r}") from error
        reason = next((note for note in self.notes if f" {name} " in note), "")
        raise MismatchError(
            f"{name} ({type(module).__name__}) has no weight to quantize"
            + (f": {reason}" if reason else "")
        )


@dataclass(frozen=True)
class _Found:
    """A weight as its module declares it."""

    parameter: str
    kind: str
    takes: Takes
    layout: ChannelLayout


def register_bank(module: type[nn.Module], output_axis: Mapping[str, int]) -> None:
    """Declare the expert banks of a module class.

    Banks of classes named after experts are found without this, with output channels along
    axis 1, or axis 2 where the module says `is_transposed`.

    Args:
        module: The class.
        output_axis: Parameter -> axis of its output channels, 1 or 2; axis 0 counts experts.

    Raises:
        ModelError: An axis is neither 1 nor 2.
    """
    for parameter, axis in output_axis.items():
        if axis not in {1, 2}:
            raise ModelError(f"bank {parameter}: output axis {axis}; axis 0 counts the experts")
    _BANKS[module] = dict(output_axis)


def weight_sites(model: nn.Module) -> WeightSites:
    """Find every weight that can be quantized, without running the model.

    Args:
        model: The model.

    Returns:
        The weights by layer name, the other names of tied and shared ones, and notes on modules
        that have weights but cannot be quantized.
    """
    sites = WeightSites()
    by_storage: dict[tuple[object, ...], str] = {}
    caller = _callers(model)
    for path, module in model.named_modules():
        found = list(_weights_of(module))
        for weight in found:
            reason = _obstacle(module, weight.parameter)
            name = _layer_name(path, weight.parameter, module)
            if reason:
                sites.notes.append(f"layer {name} is left in float: {reason}")
                continue
            use = caller.get(module, Use(name, path, weight.takes))
            site = WeightSite(
                name,
                weight.kind,
                (f"{path}.{weight.parameter}" if path else weight.parameter,),
                weight.layout,
                (replace(use, layer=name),),
                isinstance(module, nn.RNNBase),
            )
            _add(sites, by_storage, _storage(getattr(module, weight.parameter)), site)
        if not found:
            sites.notes.extend(_left_out(path, module))
    _add_second_paths(sites, model)
    return sites


def _add(
    sites: WeightSites,
    by_storage: dict[tuple[object, ...], str],
    storage: tuple[object, ...],
    site: WeightSite,
) -> None:
    first = by_storage.setdefault(storage, site.name)
    if first == site.name:
        sites.by_name[first] = site
        return
    owner = sites.by_name[first]
    sites.alias[site.name] = first
    sites.by_name[first] = replace(
        owner, parameters=owner.parameters + site.parameters, uses=owner.uses + site.uses
    )


def _add_second_paths(sites: WeightSites, model: nn.Module) -> None:
    """Let a module that hangs in two places of the model be named by either."""
    first: dict[nn.Module, str] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        original = first.setdefault(module, path)
        if original != path:
            for weight in _weights_of(module):
                known = _layer_name(original, weight.parameter, module)
                name = _layer_name(path, weight.parameter, module)
                sites.alias[name] = sites.alias.get(known, known)


def _storage(weight: Tensor) -> tuple[object, ...]:
    if weight.is_meta or weight.numel() == 0:
        return (id(weight),)
    return weight.device, weight.data_ptr(), tuple(weight.shape), weight.stride()


def _layer_name(path: str, parameter: str, module: nn.Module) -> str:
    if parameter == "weight" and path and not isinstance(module, nn.MultiheadAttention):
        return path
    return f"{path}.{parameter}" if path else parameter


def _callers(model: nn.Module) -> dict[nn.Module, Use]:
    """Modules whose weight is used by a parent without the module itself being called."""
    return {
        module.out_proj: Use("", path, "operand")
        for path, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
    }


def _weights_of(module: nn.Module) -> Iterator[_Found]:
    kind = type(module).__name__.lower()
    if isinstance(module, TRANSPOSED):
        name = next(each.__name__ for each in TRANSPOSED if isinstance(module, each)).lower()
        layout = ChannelLayout.transposed(_shape(module, "weight"), module.groups)
        yield _Found("weight", name, "first", layout)
    elif isinstance(module, CONVOLUTIONS):
        name = next(each.__name__ for each in CONVOLUTIONS if isinstance(module, each)).lower()
        yield _Found("weight", name, "first", _plain(module, "weight"))
    elif isinstance(module, nn.Linear):
        yield _Found("weight", "linear", "first", _plain(module, "weight"))
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield _Found("weight", "embedding", "nothing", _plain(module, "weight"))
    elif isinstance(module, nn.MultiheadAttention):
        yield from _attention(module)
    elif isinstance(module, nn.RNNBase):
        for name in module._flat_weights_names:
            if name.startswith("weight"):
                # Deeper layers and the recurrence read their input inside one fused kernel.
                takes: Takes = "first" if name == "weight_ih_l0" else "nothing"
                yield _Found(name, kind, takes, _plain(module, name))
    elif isinstance(module, CELLS):
        yield _Found("weight_ih", kind, "first", _plain(module, "weight_ih"))
        yield _Found("weight_hh", kind, "nothing", _plain(module, "weight_hh"))
    elif _is_transformers_conv1d(module):
        layout = ChannelLayout.channels_last(_shape(module, "weight"))
        yield _Found("weight", "linear", "first", layout)
    else:
        yield from _banks(module)


def _attention(module: nn.MultiheadAttention) -> Iterator[_Found]:
    if module._qkv_same_embed_dim:
        packed = _plain(module, "in_proj_weight")
        yield _Found("in_proj_weight", "attention", "query_key_value", packed)
        return
    roles: tuple[Takes, ...] = ("query", "key", "value")
    for role in roles:
        name = f"{role[0]}_proj_weight"
        yield _Found(name, "attention", role, _plain(module, name))


def _banks(module: nn.Module) -> Iterator[_Found]:
    declared = next((axes for cls, axes in _BANKS.items() if isinstance(module, cls)), None)
    label = type(module).__name__.lower()
    if declared is None and "expert" not in label and "moe" not in label:
        return
    axis = 2 if getattr(module, "is_transposed", False) else 1
    for name, parameter in module.named_parameters(recurse=False):
        if (declared is None or name in declared) and parameter.ndim == 3:
            output_axis = axis if declared is None else declared[name]
            layout = ChannelLayout.bank(tuple(parameter.shape), output_axis)
            yield _Found(name, "expert_bank", "operand", layout)


def _shape(module: nn.Module, name: str) -> tuple[int, ...]:
    weight = getattr(module, name, None)
    # Lazy and packed modules have no shape yet, or a method where the weight should be; they are
    # refused by name right after.
    if not isinstance(weight, Tensor) or isinstance(weight, nn.UninitializedParameter):
        return ()
    return tuple(weight.shape)


def _plain(module: nn.Module, name: str) -> ChannelLayout:
    return ChannelLayout.plain(_shape(module, name))


def _is_transformers_conv1d(module: nn.Module) -> bool:
    # GPT-2's linear layer, whose weight is stored as (in, out); transformers is not imported for
    # the sake of asking.
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _obstacle(module: nn.Module, name: str) -> str | None:
    """Say why a declared weight cannot be exchanged, or None."""
    if parametrize.is_parametrized(module, name):
        return (
            "its weight is computed by a parametrization; remove it first "
            "(torch.nn.utils.parametrize.remove_parametrizations)"
        )
    parameter: Tensor | None = module._parameters.get(name)
    if isinstance(parameter, nn.UninitializedParameter):
        return "it is lazy and has no weight yet; run the model once"
    if parameter is None:
        if f"{name}_g" in module._parameters:
            return "its weight is recomputed by weight_norm; remove it first (remove_weight_norm)"
        if f"{name}_orig" in module._parameters:
            return (
                f"its weight is recomputed from {name}_orig by spectral_norm or pruning; make it "
                "permanent first (remove_spectral_norm, torch.nn.utils.prune.remove)"
            )
        return "it keeps no float parameter of that name; it is quantized or pruned already"
    stored = type(parameter.data).__name__
    if stored != "Tensor":
        return f"its weight is a {stored}; it is quantized already"
    if not parameter.is_floating_point():
        return f"its weight holds {parameter.dtype}; it is quantized already"
    if parameter.is_meta:
        return "its weight is on the meta device; load the values first"
    return None


def _left_out(path: str, module: nn.Module) -> Iterator[str]:
    label = f"{path or type(module).__name__} ({type(module).__name__})"
    own = sum(
        p.numel()
        for p in module.parameters(recurse=False)
        if not isinstance(p, nn.UninitializedParameter) and p.ndim >= 2
    )
    if own:
        yield (
            f"module {label} has {own:,} weights but is of no kind that can be quantized; "
            "it is left in float"
        )
    elif isinstance(module, torch.jit.ScriptModule):
        yield f"module {label} is compiled by TorchScript; it is left in float"
    elif callable(getattr(module, "weight", None)):
        yield f"module {label} is quantized already; it is left as it is"

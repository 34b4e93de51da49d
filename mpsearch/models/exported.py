"""`FILE.pt2`: archives of `torch.export`, rebuilt as a torch module of ordinary layers."""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from mpsearch.errors import InputError, ModelError
from mpsearch.models.exported_archive import ExportedArchive, read_archive
from mpsearch.models.exported_layers import as_layer
from mpsearch.models.named import InputForm, NamedModel
from mpsearch.models.specs import ModelSpec, SpecPolicy, file_type
from mpsearch.models.weights_file import check_finite

__all__ = ["load_exported"]

MAX_NODES = 50_000
_TARGET = re.compile(
    r"torch\.ops\.aten\.([a-z][A-Za-z0-9_]*|_softmax|_log_softmax|_to_copy"
    r"|_unsafe_view)\.([A-Za-z][A-Za-z0-9_]*)"
)
# Reads files; shows memory of others; changes what tensors are made of.
_FORBIDDEN = {"from_file", "set_", "set_data", "resize_", "resize_as_", "record_stream"}
_ARITHMETIC = {"add", "sub", "mul", "floordiv", "mod", "neg", "getitem"}
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_PLAIN = {"as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string"}


@file_type(".pt2")
def load_exported(spec: ModelSpec, policy: SpecPolicy) -> NamedModel:
    """Load a `torch.export` archive of one input; nothing in it is unpickled or evaluated.

    Convolutions, linear layers and embeddings of stored weights become the layers they were, under
    the names of their parameters; everything else stays the ATen operation that was exported.

    Args:
        spec: The path.
        policy: Has to allow paths and to be trusted: the graph may ask for any memory when it runs.

    Returns:
        The model.

    Raises:
        InputError: The caller does not vouch for the archive.
        ModelError: It is refused, or uses what is not accepted.
    """
    if not policy.trusted:
        raise InputError(
            f"{spec.body} is a .pt2 archive, whose graph is a program; it is loaded only when you "
            "vouch for it: --trusted, or SpecPolicy(trusted=True)"
        )
    path = policy.path(spec.body)
    archive = read_archive(path)
    try:
        module, form = _Rebuilding(path, archive).module()
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"{path} has a graph that cannot be read: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    check_finite(dict(module.state_dict()), str(path))
    return NamedModel(spec.text, module, form)


@dataclass
class _Rebuilding:
    path: Path
    archive: ExportedArchive
    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[str, Any] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)

    def module(self) -> tuple[nn.Module, InputForm | None]:
        """Build the module and say what it takes."""
        described = self.archive.graph_module
        nodes = described["graph"]["nodes"]
        if len(nodes) > MAX_NODES:
            raise ModelError(f"{self.path} has {len(nodes):,} operations; at most {MAX_NODES:,}")
        form = self._inputs(described)
        for node in nodes:
            self._operation(node)
        outputs = [self._value(each) for each in described["graph"]["outputs"]]
        self.graph.output(outputs[0] if len(outputs) == 1 else tuple(outputs))
        made = fx.GraphModule(self.root, self.graph)
        return made, form

    def _inputs(self, described: dict[str, Any]) -> InputForm | None:
        entered = []
        tensors: dict[int, nn.Parameter] = {}
        for spec in described["signature"]["input_specs"]:
            ((kind, entry),) = spec.items()
            if kind == "user_input":
                entered.append(entry["arg"]["as_tensor"]["name"])
                continue
            if kind not in {"parameter", "buffer", "tensor_constant"}:
                raise ModelError(f"{self.path} takes a {kind[:40]}, which is not accepted")
            self._store(entry["arg"]["name"], entry[f"{kind}_name"], tensors)
        for spec in described["signature"]["output_specs"]:
            if set(spec) != {"user_output"}:
                raise ModelError(f"{self.path} changes its own buffers, which is not accepted")
        if len(entered) != 1:
            raise ModelError(f"{self.path} has {len(entered)} inputs; models of one are accepted")
        self.values[entered[0]] = self.graph.placeholder("inputs")
        sizes = described["graph"]["tensor_values"][entered[0]]
        shape = [each.get("as_int") for each in sizes["sizes"][1:]]
        if sizes["dtype"] != 7 or not shape or not all(type(n) is int for n in shape):
            return None
        return InputForm(tuple(shape))

    def _store(self, value: str, name: str, made: dict[int, nn.Parameter]) -> None:
        if not _NAME.fullmatch(name):
            raise ModelError(f"{self.path} has a tensor named {name[:60]!r}")
        tensor = self.archive.tensors[name]
        parent, _, last = name.rpartition(".")
        home = self._home(parent)
        if name in self.archive.parameters and tensor.is_floating_point():
            made.setdefault(id(tensor), nn.Parameter(tensor))
            home.register_parameter(last, made[id(tensor)])
        else:
            home.register_buffer(last, tensor)
        self.stored[value] = name

    def _home(self, path: str) -> nn.Module:
        home = self.root
        for part in filter(None, path.split(".")):
            if part not in home._modules:
                home.add_module(part, nn.Module())
            home = home.get_submodule(part)
        return home

    def _operation(self, node: dict[str, Any]) -> None:
        target = str(node["target"])
        if target.startswith("torch.ops.aten._assert_") and not node["outputs"]:
            return  # what was true of the exporter's inputs; the operations check for themselves
        function, schema = self._function(target)
        given = {each["name"]: each["arg"] for each in node["inputs"]}
        layer = as_layer(target, given, self.stored, self.root)
        if layer is not None:
            made = self.graph.call_module(layer.path, (self._value(given[layer.reads]),))
        else:
            args, kwargs = self._arguments(node, schema)
            made = self.graph.call_function(function, args, kwargs)
        self._name_outputs(node["outputs"], made)

    def _name_outputs(self, outputs: list[dict[str, Any]], made: fx.Node) -> None:
        if not outputs:
            return
        ((kind, value),) = outputs[0].items()
        if kind == "as_sym_int":
            self.values[value["as_name"]] = made
        elif kind == "as_tensor" and len(outputs) == 1:
            self.values[value["name"]] = made
        elif kind in {"as_tensor", "as_tensors"}:
            parts = value if kind == "as_tensors" else [each["as_tensor"] for each in outputs]
            for place, part in enumerate(parts):
                taken = self.graph.call_function(operator.getitem, (made, place))
                self.values[part["name"]] = taken
        else:
            raise ModelError(f"{self.path} has a result of kind {kind[:40]}, which is not accepted")

    def _function(self, target: str) -> tuple[Any, torch.FunctionSchema | None]:
        name = target.removeprefix("_operator.")
        if name != target and name in _ARITHMETIC:
            return getattr(operator, name), None
        match = _TARGET.fullmatch(target)
        if match is None or match[1] in _FORBIDDEN:
            raise ModelError(f"{self.path} uses {target[:80]!r}, which is not accepted")
        packet = getattr(torch.ops.aten, match[1], None)
        function = getattr(packet, match[2], None)
        if not isinstance(function, torch._ops.OpOverload):
            raise ModelError(f"{self.path} uses {target[:80]!r}, which this torch does not have")
        return function, function._schema

    def _arguments(
        self, node: dict[str, Any], schema: torch.FunctionSchema | None
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if schema is None:
            return tuple(self._value(each["arg"]) for each in node["inputs"]), {}
        positional: list[Any] = []
        named: dict[str, Any] = {}
        only_named = {each.name for each in schema.arguments if each.kwarg_only}
        for each in node["inputs"]:
            # Arguments are written in order, but those with default values may be left out.
            place = len(positional)
            follows = place < len(schema.arguments) and schema.arguments[place].name == each["name"]
            if follows and not named and each["name"] not in only_named:
                positional.append(self._value(each["arg"]))
            else:
                named[each["name"]] = self._value(each["arg"])
        return tuple(positional), named

    def _value(self, argument: dict[str, Any]) -> Any:  # noqa: ANN401
        ((kind, value),) = argument.items()
        if kind in _PLAIN:
            return value
        if kind == "as_none":
            return None
        if kind == "as_tensor":
            return self._tensor(value["name"])
        if kind == "as_tensors":
            return [self._tensor(each["name"]) for each in value]
        if kind == "as_optional_tensors":
            return [self._value(each) for each in value]
        if kind == "as_sym_int":
            return self._size(value)
        if kind == "as_sym_ints":
            return [self._size(each) for each in value]
        if kind == "as_scalar_type":
            return _SCALAR_TYPES[value]
        raise ModelError(f"{self.path} has an argument of kind {kind[:40]}, which is not accepted")

    def _size(self, value: dict[str, Any]) -> Any:  # noqa: ANN401
        return value["as_int"] if "as_int" in value else self.values[value["as_name"]]

    def _tensor(self, name: str) -> Any:  # noqa: ANN401
        if name in self.stored:
            return self.graph.get_attr(self.stored[name])
        return self.values[name]


_SCALAR_TYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}

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
from mpsearch.models.named import (
    MAX_INPUTS,
    InputForm,
    NamedModel,
    argument_name,
    fixed_batch_note,
)
from mpsearch.models.specs import ModelSpec, SpecPolicy, file_type
from mpsearch.models.weights_file import check_finite

__all__ = ["load_exported"]

MAX_NODES = 50_000
MAX_DEPTH = 8
_GRADIENT_MODE = "torch.ops.higher_order.wrap_with_set_grad_enabled"
_TARGET = re.compile(
    r"torch\.ops\.aten\.([a-z][A-Za-z0-9_]*|__(?:and|or|xor|lshift|rshift)__|_grouped_mm"
    r"|_log_softmax|_softmax|_to_copy|_unsafe_view)\.([A-Za-z][A-Za-z0-9_]*)"
)
# Reads files; shows memory that was never written; changes what tensors are made of; trusts numbers
# that point into memory.
_FORBIDDEN = re.compile(
    r"from_file|set_|set_data|resize\w*|record_stream|pin_memory|(new_)?empty\w*"
    r"|(to_)?(sparse|mkldnn)\w*|(fbgemm|cudnn|miopen|mps|q)_\w*|quantize\w*|\w*quantized\w*"
)
_ARITHMETIC = {"add", "sub", "mul", "floordiv", "mod", "neg", "getitem"}
_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_PLAIN = {"as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string"}


@file_type(".pt2")
def load_exported(spec: ModelSpec, policy: SpecPolicy) -> NamedModel:
    """Load a `torch.export` archive; nothing in it is unpickled or evaluated.

    Convolutions, linear layers and embeddings of stored weights become the layers they were, under
    the names of their parameters; everything else stays the ATen operation that was exported. A
    model of several inputs takes them by the names that they were exported with.

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
    rebuilding = _Rebuilding(path, archive)
    try:
        module, form = rebuilding.module()
    except ModelError:
        raise
    # A graph that is none makes these lines and torch.fx raise every kind of error.
    except Exception as error:
        raise ModelError(
            f"{path} has a graph that cannot be read: {type(error).__name__}: {str(error)[:200]}"
        ) from error
    check_finite(dict(module.state_dict()), str(path))
    notes = () if rebuilding.batch is None else (fixed_batch_note(spec.body, rebuilding.batch),)
    return NamedModel(spec.text, module, form, notes, policy.limits)


@dataclass
class _Rebuilding:
    path: Path
    archive: ExportedArchive
    root: nn.Module = field(default_factory=nn.Module)
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[str, Any] = field(default_factory=dict)
    stored: dict[str, str] = field(default_factory=dict)
    entered: fx.Node | None = None
    device: fx.Node | None = None
    batch: int | None = None
    _depth: int = 0

    def module(self) -> tuple[nn.Module, InputForm | None]:
        """Build the module and say what it takes."""
        described = self.archive.graph_module
        nodes = described["graph"]["nodes"]
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
        if not 1 <= len(entered) <= MAX_INPUTS:
            raise ModelError(f"{self.path} has {len(entered)} inputs; 1 to {MAX_INPUTS} are taken")
        for name in entered:
            argument = "inputs" if len(entered) == 1 else argument_name(name)
            self.values[name] = self.graph.placeholder(argument)
        self.entered = self.values[entered[0]]
        sizes = described["graph"]["tensor_values"][entered[0]]
        self.batch = sizes["sizes"][0].get("as_int") if sizes["sizes"] else None
        shape = [each.get("as_int") for each in sizes["sizes"][1:]]
        known = shape and all(type(n) is int for n in shape)
        if len(entered) > 1 or sizes["dtype"] != 7 or not known:
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
        if len(self.graph.nodes) > MAX_NODES:
            raise ModelError(f"{self.path} has more than {MAX_NODES:,} operations")
        target = str(node["target"])
        if target.startswith("torch.ops.aten._assert_") and not node["outputs"]:
            return  # what was true of the exporter's inputs; the operations check for themselves
        if target == _GRADIENT_MODE:
            self._inlined(node)
            return
        function, schema = self._function(target)
        given = {each["name"]: each["arg"] for each in node["inputs"]}
        layer = as_layer(target, given, self.stored, self.root)
        if layer is not None:
            made = self.graph.call_module(layer.path, (self._value(given[layer.reads]),))
        else:
            args, kwargs = self._arguments(node, schema)
            made = self.graph.call_function(function, args, kwargs)
        self._name_outputs(node["outputs"], made)

    def _inlined(self, node: dict[str, Any]) -> None:
        """Write a part that ran with gradients switched on or off into the graph itself."""
        enabled, part, *given = [each["arg"] for each in node["inputs"]]
        graph = part["as_graph"]["graph"]
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ModelError(f"{self.path} nests parts more than {MAX_DEPTH} deep")
        outer = self.values, self.stored
        inner: tuple[dict[str, Any], dict[str, str]] = {}, {}
        for name, argument in zip(graph["inputs"], given, strict=True):
            ((kind, value),) = name.items()
            known = argument.get("as_tensor", {}).get("name")
            if known in self.stored:
                inner[1][value["name"]] = self.stored[known]
            else:
                inner[0][value["name" if kind == "as_tensor" else "as_name"]] = self._value(
                    argument
                )
        self.values, self.stored = inner
        for each in graph["nodes"]:
            self._operation(each)
        made = [self._value(each) for each in graph["outputs"]]
        self.values, self.stored = outer
        self._depth -= 1
        for output, value in zip(node["outputs"], made, strict=True):
            kept = value
            if not enabled["as_bool"]:
                kept = self.graph.call_function(torch.ops.aten.detach.default, (value,))
            self.values[output["as_tensor"]["name"]] = kept

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
        if match is None or _FORBIDDEN.fullmatch(match[1]):
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
        known = {each.name for each in schema.arguments}
        only_named = {each.name for each in schema.arguments if each.kwarg_only}
        for each in node["inputs"]:
            # torch.fx writes names of arguments into Python code that it then runs.
            if each["name"] not in known:
                raise ModelError(f"{self.path} gives an operation {each['name']!r:.60}")
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
        if kind == "as_optional_tensor":
            return self._value(value)
        if kind in _ENUMERATIONS and value in _ENUMERATIONS[kind]:
            return _ENUMERATIONS[kind][value]
        if kind == "as_device":
            return self._device()
        raise ModelError(f"{self.path} has an argument of kind {kind[:40]}, which is not accepted")

    def _device(self) -> fx.Node:
        """Where the input is, whatever device the model was exported on."""
        if self.device is None:
            with self.graph.inserting_after(self.entered):
                self.device = self.graph.call_function(getattr, (self.entered, "device"))
        return self.device

    def _size(self, value: dict[str, Any]) -> Any:  # noqa: ANN401
        return value["as_int"] if "as_int" in value else self.values[value["as_name"]]

    def _tensor(self, name: str) -> Any:  # noqa: ANN401
        if name in self.stored:
            return self.graph.get_attr(self.stored[name])
        return self.values[name]


# Numbers of the schema, version 8 (torch/_export/serde/schema.py).
_ENUMERATIONS: dict[str, dict[int, Any]] = {
    "as_scalar_type": {
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
    },
    "as_memory_format": {
        1: torch.contiguous_format,
        2: torch.channels_last,
        3: torch.channels_last_3d,
        4: torch.preserve_format,
    },
    "as_layout": {7: torch.strided},
}

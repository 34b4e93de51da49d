"""Files that pretend to be `torch.export` archives, each with one thing wrong."""

from __future__ import annotations

import functools
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors_files import RunsCode

Maker = Callable[[Path], None]


@functools.cache
def _exported() -> dict[str, bytes]:
    """Members of an archive that torch itself wrote."""
    file = io.BytesIO()
    program = torch.export.export(torch.nn.Linear(3, 2), (torch.zeros(2, 3),))
    torch.export.save(program, file)
    with zipfile.ZipFile(file) as archive:
        root = archive.namelist()[0].partition("/")[0]
        return {name.replace(root, "m", 1): archive.read(name) for name in archive.namelist()}


def good() -> dict[str, bytes]:
    """A copy of them."""
    return dict(_exported())


def write_archive(path: Path, members: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _edited(path: Path, member: str, edit: Callable[[dict[str, Any]], object]) -> None:
    members = good()
    content = json.loads(members[member])
    edit(content)
    write_archive(path, members | {member: json.dumps(content).encode()})


GRAPH, WEIGHTS = "m/models/model.json", "m/data/weights/model_weights_config.json"


def _operation(path: Path, target: str) -> None:
    def edit(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"][0]["target"] = target

    _edited(path, GRAPH, edit)


def calls_the_system(path: Path) -> None:
    _operation(path, "torch.os.system")


def calls_python(path: Path) -> None:
    _operation(path, "builtins.eval")


def calls_attribute_getter(path: Path) -> None:
    _operation(path, "_operator.attrgetter")


def reads_a_file(path: Path) -> None:
    _operation(path, "torch.ops.aten.from_file.default")


def shows_memory(path: Path) -> None:
    _operation(path, "torch.ops.aten.empty.memory_format")


def trusts_indices(path: Path) -> None:
    _operation(path, "torch.ops.aten.sparse_csr_tensor.crow_col_value_size")


def other_library(path: Path) -> None:
    _operation(path, "torch.ops.profiler._record_function_enter.default")


def pickled_weight(path: Path) -> None:
    members = good()
    canary = path.with_name("canary")
    content = json.loads(members[WEIGHTS])
    next(iter(content["config"].values()))["use_pickle"] = True
    members["m/data/weights/weight_0"] = pickle.dumps(RunsCode(canary))
    write_archive(path, members | {WEIGHTS: json.dumps(content).encode()})


def custom_object(path: Path) -> None:
    object_ = pickle.dumps(RunsCode(path.with_name("canary")))
    write_archive(path, good() | {"m/data/constants/custom_obj_0": object_})


def pickle_beside_the_graph(path: Path) -> None:
    write_archive(path, good() | {"m/data.pkl": pickle.dumps(RunsCode(path.with_name("canary")))})


def compiled_library(path: Path) -> None:
    write_archive(path, good() | {"m/data/aotinductor/model/x.so": b"\x7fELF"})


def path_traversal(path: Path) -> None:
    write_archive(path, good() | {"../../etc/cron.d/evil": b"* * * * *"})


def path_traversal_below_the_root(path: Path) -> None:
    write_archive(path, good() | {"m/../../evil": b""})


def weight_in_another_member(path: Path) -> None:
    def edit(table: dict[str, Any]) -> None:
        next(iter(table["config"].values()))["path_name"] = "../../../../etc/passwd"

    _edited(path, WEIGHTS, edit)


def zip_bomb(path: Path) -> None:
    write_archive(path, good() | {"m/data/weights/weight_9": bytes(2**27)}, zipfile.ZIP_DEFLATED)


def thousands_of_members(path: Path) -> None:
    write_archive(path, {f"m/data/weights/weight_{i}": b"" for i in range(20_001)})


def legacy_layout(path: Path) -> None:
    write_archive(
        path, {"serialized_exported_program.json": b"{}", "serialized_state_dict.pt": b""}
    )


def stride_of_zero(path: Path) -> None:
    def edit(table: dict[str, Any]) -> None:
        meta = next(iter(table["config"].values()))["tensor_meta"]
        meta["sizes"] = [{"as_int": 2**30}, {"as_int": 2**9}]
        meta["strides"] = [{"as_int": 0}, {"as_int": 0}]

    _edited(path, WEIGHTS, edit)


def beyond_its_bytes(path: Path) -> None:
    def edit(table: dict[str, Any]) -> None:
        next(iter(table["config"].values()))["tensor_meta"]["storage_offset"] = {"as_int": 4}

    _edited(path, WEIGHTS, edit)


def negative_offset(path: Path) -> None:
    def edit(table: dict[str, Any]) -> None:
        next(iter(table["config"].values()))["tensor_meta"]["storage_offset"] = {"as_int": -64}

    _edited(path, WEIGHTS, edit)


def code_in_a_parameter_name(path: Path) -> None:
    members = good()
    evil = 'weight"), open("canary", "w"), getattr(self, "'
    for member in (GRAPH, WEIGHTS):
        text = members[member].decode().replace('"weight"', json.dumps(evil))
        members[member] = text.encode()
    write_archive(path, members)


def code_in_an_argument_name(path: Path) -> None:
    """torch.fx would write it into the source of the module, which runs at the first call."""
    canary = path.with_name("canary")
    code = f'bias = __import__("pathlib").Path("{canary}").touch() or bias'

    def edit(program: dict[str, Any]) -> None:
        program["graph_module"]["graph"]["nodes"][0]["inputs"][2]["name"] = code

    _edited(path, GRAPH, edit)


def other_schema(path: Path) -> None:
    _edited(path, GRAPH, lambda program: program["schema_version"].update(major=99))


def deep_nesting(path: Path) -> None:
    write_archive(path, good() | {GRAPH: b'{"a":' + b"[" * 200_000})


def graph_without_signature(path: Path) -> None:
    _edited(path, GRAPH, lambda program: program["graph_module"].pop("signature"))


def nan_weights(path: Path) -> None:
    write_archive(path, good() | {"m/data/weights/weight_0": b"\xff" * 24})


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(RunsCode(path.with_name("canary"))))


ATTACKS: dict[str, tuple[Maker, str]] = {
    maker.__name__: (maker, words)
    for maker, words in [
        (calls_the_system, "'torch.os.system', which is not accepted"),
        (calls_python, "'builtins.eval', which is not accepted"),
        (calls_attribute_getter, "not accepted"),
        (reads_a_file, "from_file.*not accepted"),
        (shows_memory, "not accepted"),
        (trusts_indices, "not accepted"),
        (other_library, "not accepted"),
        (pickled_weight, "pickled; such tensors are never read"),
        (custom_object, "custom_obj_0.*none of the members"),
        (pickle_beside_the_graph, "none of the members"),
        (compiled_library, "none of the members"),
        (path_traversal, "none of the members"),
        (path_traversal_below_the_root, "none of the members"),
        (weight_in_another_member, "does not describe"),
        (zip_bomb, "compressed"),
        (thousands_of_members, "members; 1 to"),
        (legacy_layout, "layout of old versions"),
        (stride_of_zero, "reaches beyond"),
        (beyond_its_bytes, "reaches beyond"),
        (negative_offset, "has the size -64"),
        (code_in_a_parameter_name, "has a tensor named"),
        (code_in_an_argument_name, "gives an operation 'bias = __import__"),
        (other_schema, "schema version 99"),
        (deep_nesting, "nested too deeply|can be read"),
        (graph_without_signature, "cannot be read"),
        (nan_weights, "NaN"),
        (pickled, "no archive that can be read"),
    ]
}

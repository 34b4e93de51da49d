"""Reading a `torch.export` archive (`.pt2`) without unpickling or evaluating anything in it.

`torch.export.load` unpickles the sample inputs and evaluates expressions of the graph as Python
code, so it is not used. The archive is a ZIP file; what is read of it are JSON (the graph of ATen
operations and the tables of tensors) and raw tensor bytes. Members of any other kind are refused,
except the pickled sample inputs that every archive carries, which are never opened.
"""

from __future__ import annotations

import json
import math
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mpsearch.errors import ModelError
from mpsearch.models.zip_file import opened_zip

__all__ = ["ExportedArchive", "read_archive"]

MAX_MEMBERS = 20_000
MAX_JSON = 64 * 2**20
SCHEMA_MAJOR = 8
"""Major version of the graph's schema that torch 2.6 to 2.14 write."""

_KNOWN = re.compile(
    r"(archive_format|archive_version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/(version|serialization_id)|models/model\.json"
    r"|data/(weights/(weight_\d+|model_weights_config\.json)"
    r"|constants/(tensor_\d+|model_constants_config\.json)|sample_inputs/model\.pt))"
)
_DTYPES = {
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


@dataclass(frozen=True)
class ExportedArchive:
    """What an archive holds.

    Attributes:
        graph_module: The JSON of its graph and signature.
        tensors: Name -> tensor of its parameters, buffers and constants; names that share stored
            bytes share the tensor.
        parameters: Names of those that are parameters.
    """

    graph_module: dict[str, Any]
    tensors: dict[str, Tensor]
    parameters: frozenset[str]


def read_archive(path: Path) -> ExportedArchive:
    """Read an archive.

    Args:
        path: The file.

    Returns:
        Its graph and tensors.

    Raises:
        ModelError: Missing, broken, of another layout or version, or holding anything that would
            have to be unpickled.
    """
    if not path.is_file():
        raise ModelError(f"no archive at {path}")
    try:
        with opened_zip(path, MAX_MEMBERS) as archive:
            root = _check_members(path, archive.infolist())
            program = _json(path, archive, f"{root}/models/model.json")
            version = program.get("schema_version", {}).get("major")
            if version != SCHEMA_MAJOR:
                raise ModelError(
                    f"{path} has the schema version {version!r:.40}; archives of version "
                    f"{SCHEMA_MAJOR}, which torch 2.6 to 2.14 write, are read: export it again"
                )
            tensors: dict[str, Tensor] = {}
            parameters: set[str] = set()
            for kind in ("weights", "constants"):
                name = f"{root}/data/{kind}/model_{kind}_config.json"
                table = _json(path, archive, name).get("config", {})
                parameters |= _read_table(path, archive, f"{root}/data/{kind}", table, tensors)
            return ExportedArchive(program["graph_module"], tensors, frozenset(parameters))
    except (zipfile.BadZipFile, OSError, RuntimeError, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path} is no archive that can be read: {str(error)[:200]}") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{path} does not describe its tensors as torch.export does: {str(error)[:200]}"
        ) from error


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> str:
    """Refuse what torch.export does not write.

    Returns:
        The folder that everything lies in.

    Raises:
        ModelError: Something else is in the archive.
    """
    if not 0 < len(members) <= MAX_MEMBERS:
        raise ModelError(f"{path} has {len(members):,} members; 1 to {MAX_MEMBERS:,} are accepted")
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise ModelError(f"{path} has a member twice")
    if any("serialized_exported_program" in name for name in names):
        raise ModelError(f"{path} has the layout of old versions of torch; export it again")
    root = names[0].partition("/")[0]
    for member in members:
        inner = member.filename.removeprefix(f"{root}/")
        if inner == member.filename or not _KNOWN.fullmatch(inner):
            raise ModelError(
                f"{path} holds {member.filename[:80]!r}, which is none of the members that can be "
                "read without running code"
            )
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
            raise ModelError(f"{path} has compressed or encrypted members; torch writes none")
    stored = sum(member.file_size for member in members)
    if stored > path.stat().st_size:
        raise ModelError(f"{path} claims {stored:,} bytes of members, more than the file has")
    return root


def _json(path: Path, archive: zipfile.ZipFile, name: str) -> dict[str, Any]:
    if archive.getinfo(name).file_size > MAX_JSON:
        raise ModelError(f"{path}: {name[:80]} is larger than {MAX_JSON:,} bytes")
    try:
        found = json.loads(archive.read(name).decode("utf-8"))
    except RecursionError:
        raise ModelError(f"{path}: {name[:80]} is nested too deeply") from None
    if not isinstance(found, dict):
        raise ModelError(f"{path}: {name[:80]} is no JSON object")
    return found


def _read_table(
    path: Path,
    archive: zipfile.ZipFile,
    folder: str,
    table: dict[str, Any],
    tensors: dict[str, Tensor],
) -> set[str]:
    parameters = set()
    loaded: dict[str, Tensor] = {}
    for name, entry in table.items():
        stored = str(entry["path_name"])
        if entry["use_pickle"] or stored.startswith("custom_obj"):
            raise ModelError(f"{path}: {name[:80]!r} is pickled; such tensors are never read")
        key = json.dumps([stored, entry["tensor_meta"]], sort_keys=True)
        if key not in loaded:
            content = archive.read(f"{folder}/{stored}")
            loaded[key] = _tensor(path, name, entry["tensor_meta"], content)
        tensors[name] = loaded[key]
        if entry["is_param"]:
            parameters.add(name)
    return parameters


def _tensor(path: Path, name: str, meta: dict[str, Any], content: bytes) -> Tensor:
    dtype = _DTYPES.get(meta["dtype"])
    if dtype is None:
        raise ModelError(f"{path}: {name[:80]!r} is of the unknown type {meta['dtype']!r:.20}")
    sizes = [_whole(each["as_int"]) for each in meta["sizes"]]
    strides = [_whole(each["as_int"]) for each in meta["strides"]]
    offset = _whole(meta["storage_offset"]["as_int"])
    values = len(content) // dtype.itemsize
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    count = math.prod(sizes)
    # Strides of zero would make any number of values out of one.
    if count and (last >= values or count > values):
        raise ModelError(f"{path}: {name[:80]!r} reaches beyond its {len(content):,} bytes")
    if not count:
        return torch.empty(sizes, dtype=dtype)
    flat = torch.frombuffer(bytearray(content[: values * dtype.itemsize]), dtype=dtype)
    return flat.as_strided(sizes, strides, offset).contiguous()


def _whole(value: object) -> int:
    if type(value) is not int or not 0 <= value < 2**40:
        raise ModelError(f"an archive has the size {value!r:.40}, which is none")
    return value

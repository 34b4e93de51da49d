"""Data in files of arrays: `.npz` without pickle, and `.safetensors`."""

from __future__ import annotations

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from mpsearch.errors import DataError, ModelError
from mpsearch.models.data_specs import DataRequest, data_file_type
from mpsearch.models.dataset import DataSet
from mpsearch.models.fields import FieldTensor, pack_fields
from mpsearch.models.safetensors_header import Limits
from mpsearch.models.weights_file import read_tensors
from mpsearch.models.zip_file import open_member, opened_zip

__all__ = ["load_npz", "load_safetensors_data", "read_npz"]

MAX_BYTES = 4 * 2**30
"""All arrays together, unpacked."""
SUSPICIOUS_BYTES = 64 * 2**20
SUSPICIOUS_RATIO = 200
MAX_ARRAYS = 64

_ROLES = {
    "inputs": ("inputs", "x", "images", "input_ids"),
    "targets": ("targets", "y", "labels"),
    "held_out_inputs": ("held_out_inputs", "x_test"),
    "held_out_targets": ("held_out_targets", "y_test"),
}


@data_file_type(".npz")
def load_npz(request: DataRequest) -> DataSet:
    """Load arrays that `numpy.savez` wrote.

    Args:
        request: The path, and `batch` for the batch size.

    Returns:
        The data set; see `_data_set` for the names of its arrays.
    """
    request.check_settings({"batch"})
    return _data_set(request, read_npz(request.path))


@data_file_type(".safetensors")
def load_safetensors_data(request: DataRequest) -> DataSet:
    """Load tensors that safetensors wrote.

    Args:
        request: The path, and `batch` for the batch size.

    Returns:
        The data set.

    Raises:
        DataError: The file is missing or broken.
    """
    request.check_settings({"batch"})
    try:
        limits = Limits(header_bytes=2**20, tensors=MAX_ARRAYS, file_bytes=MAX_BYTES)
        tensors = read_tensors(request.path, limits)
    except ModelError as error:
        raise DataError(str(error).replace("weights file", "data file")) from error
    return _data_set(request, tensors)


def read_npz(path: Path) -> dict[str, Tensor]:
    """Read the arrays of an `.npz` file; sizes are checked before anything is unpacked.

    Args:
        path: The file.

    Returns:
        Name -> tensor.

    Raises:
        DataError: Missing, broken, too large, packed suspiciously well, or holding anything but
            plain numbers.
    """
    if not path.is_file():
        raise DataError(f"no data file at {path}")
    try:
        with opened_zip(path, MAX_ARRAYS) as archive:
            members = archive.infolist()
            _check_members(path, members)
            found = {}
            for member in members:
                with open_member(archive, member) as file:
                    found[member.filename.removesuffix(".npy")] = _array(path, member, file)
            return found
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
        NotImplementedError,
    ) as error:
        raise DataError(f"{path} is no .npz file that can be read: {str(error)[:200]}") from error


def _check_members(path: Path, members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_ARRAYS:
        raise DataError(f"{path} has {len(members):,} arrays, more than the {MAX_ARRAYS} allowed")
    names = [member.filename for member in members]
    if len(set(names)) < len(names):
        raise DataError(f"{path} has an array twice")
    size = sum(member.file_size for member in members)
    packed = sum(member.compress_size for member in members)
    if size > MAX_BYTES:
        raise DataError(f"{path} unpacks to {size:,} bytes, more than the {MAX_BYTES:,} allowed")
    if size > SUSPICIOUS_BYTES and size > SUSPICIOUS_RATIO * packed:
        raise DataError(
            f"{path} unpacks from {packed:,} to {size:,} bytes, which looks like a zip bomb; "
            "save such data with numpy.savez, uncompressed"
        )


def _array(path: Path, member: zipfile.ZipInfo, file: IO[bytes]) -> Tensor:
    name = member.filename
    if not name.endswith(".npy"):
        raise DataError(f"{path} holds {name[:60]!r}, which is no array")
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, transposed, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, transposed, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise DataError(f"{path}: array {name[:60]!r} is of the unknown version {version}")
    if dtype.kind not in "fiub" or dtype.itemsize > 8:
        raise DataError(
            f"{path}: array {name[:60]!r} holds {dtype}, not plain numbers; pickled objects may "
            "run code and are never read"
        )
    length = member.file_size - file.tell()
    if any(size < 0 for size in shape) or math.prod(shape) * dtype.itemsize != length:
        raise DataError(
            f"{path}: array {name[:60]!r} claims shape {str(shape)[:60]} of {dtype}, which its "
            f"{length:,} bytes do not hold"
        )
    flat = np.frombuffer(file.read(length), dtype=dtype)
    values = flat.reshape(shape[::-1]).T if transposed else flat.reshape(shape)
    return _tensor(values)


def _tensor(values: np.ndarray) -> Tensor:
    native = values.dtype.newbyteorder("=")
    if native.kind == "u" and native.itemsize > 1:
        native = np.dtype(np.int64)
    return torch.tensor(np.ascontiguousarray(values, dtype=native).reshape(values.shape))


def _data_set(request: DataRequest, tensors: dict[str, Tensor]) -> DataSet:
    """Give every array its role by its name; a single one is the inputs."""
    named = dict(tensors)
    if len(named) == 1:
        named = {"inputs": next(iter(named.values()))}
    parts: dict[str, Tensor] = {}
    for role in ("inputs", "held_out_inputs"):
        # `inputs.NAME` is the argument NAME of the model.
        fields = {name: named.pop(name) for name in list(named) if name.startswith(f"{role}.")}
        if fields:
            named[role] = pack_fields(
                {name.removeprefix(f"{role}."): _typed(each, role) for name, each in fields.items()}
            )
    for role, names in _ROLES.items():
        present = [name for name in names if name in named]
        if len(present) > 1:
            raise DataError(f"{request.body} has both {present[0]} and {present[1]}")
        if present:
            parts[role] = _typed(named.pop(present[0]), role)
    if named or "inputs" not in parts:
        known = ", ".join([*(name for each in _ROLES.values() for name in each), "inputs.NAME"])
        shown = ", ".join(map(repr, tensors))[:200]
        raise DataError(f"{request.body} has the arrays {shown}; known are {known}")
    batch = request.settings.get("batch")
    size = {} if batch is None else {"batch_size": int(batch) if batch.isdigit() else 0}
    return DataSet(request.body, **parts, **size)  # type: ignore[arg-type]


def _typed(tensor: Tensor, role: str) -> Tensor:
    """Give floats as float32, which models compute in, and class numbers as int64."""
    if tensor.is_floating_point():
        return tensor if isinstance(tensor, FieldTensor) else tensor.float()
    return tensor.long() if role.endswith("targets") else tensor

"""Files that pretend to be `.npz` archives of arrays, each with one thing wrong."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors_files import RunsCode

Maker = Callable[[Path], None]


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _header(shape: str, dtype: str = "'<f8'") -> bytes:
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}}}".encode()
    text = text.ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def _archive(path: Path, members: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def pickled_objects(path: Path) -> None:
    objects = np.array([RunsCode(path.with_name("canary"))], dtype=object)
    np.savez(path, x=objects)


def zip_bomb(path: Path) -> None:
    size = 2**27
    content = _header(f"({size // 8},)") + bytes(size)
    _archive(path, {"x.npy": content}, zipfile.ZIP_DEFLATED)


def five_gigabytes_declared(path: Path) -> None:
    _archive(path, {"x.npy": _npy(np.zeros(1))})
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\x01\x02") + 24  # size in the central directory
    content[place : place + 4] = (2**32 - 2).to_bytes(4, "little")
    place = content.rindex(b"PK\x01\x02") + 20
    content[place : place + 4] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(bytes(content))


def shape_overflow(path: Path) -> None:
    _archive(path, {"x.npy": _header(f"({2**62}, 4)")})


def huge_shape(path: Path) -> None:
    _archive(path, {"x.npy": _header(f"({2**40},)") + bytes(64)})


def negative_shape(path: Path) -> None:
    _archive(path, {"x.npy": _header("(-1, -8)") + bytes(64)})


def structured(path: Path) -> None:
    _archive(path, {"x.npy": _npy(np.zeros(2, dtype=[("a", "f8")]))})


def thousands_of_arrays(path: Path) -> None:
    _archive(path, {f"{i}.npy": b"" for i in range(5000)})


def path_traversal(path: Path) -> None:
    _archive(path, {"../../x.npy": _npy(np.zeros((2, 2))), "y.npy": _npy(np.zeros(2))})


def no_array(path: Path) -> None:
    _archive(path, {"x.py": b"import os"})


def no_zip(path: Path) -> None:
    path.write_bytes(b"\x80\x04K\x01.")


def long_header(path: Path) -> None:
    text = b"{'descr': '<f8', 'fortran_order': False, 'shape': (" + b"(" * 60_000
    _archive(path, {"x.npy": b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text})


ATTACKS: dict[str, tuple[Maker, str]] = {
    maker.__name__: (maker, words)
    for maker, words in [
        (pickled_objects, "never read"),
        (zip_bomb, "zip bomb"),
        (five_gigabytes_declared, "claims shape|more than the|no .npz file"),
        (shape_overflow, "claims shape"),
        (huge_shape, "claims shape"),
        (negative_shape, "claims shape"),
        (structured, "plain numbers"),
        (thousands_of_arrays, "more than the 64|table of contents"),
        (path_traversal, "known are"),
        (no_array, "no array"),
        (no_zip, "no .npz"),
        (long_header, "no .npz"),
    ]
}

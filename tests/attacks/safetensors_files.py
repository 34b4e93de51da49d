"""Files that pretend to be safetensors, each with one thing wrong. Nothing here is ever stored."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

Maker = Callable[[Path], None]


def _file(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def _entry(shape: list[object], begin: object, end: object, dtype: object = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


class RunsCode:
    """Creates the canary file when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return Path.touch, (self.canary,)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(RunsCode(path.with_name("canary"))))


def header_of_100_mb(path: Path) -> None:
    header = b'{"__metadata__":{"a":"' + b"x" * (100 * 2**20) + b'"}}'
    path.write_bytes(_file(header))


def claims_an_endless_header(path: Path) -> None:
    path.write_bytes(_file({}, length=2**63))


def million_tiny_tensors(path: Path) -> None:
    entries = (
        f'"{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{i + 1}]}}' for i in range(10**6)
    )
    path.write_bytes(_file(("{" + ",".join(entries) + "}").encode(), b"\0" * 10**6))


def dense_punctuation(path: Path) -> None:
    path.write_bytes(_file(b'{"a":[' + b"[]," * (2 * 10**6) + b"[]]}"))


def deep_nesting(path: Path) -> None:
    path.write_bytes(_file(b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"))


def overlapping(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([2], 0, 8), "b": _entry([2], 4, 12)}, bytes(12)))


def hole(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([1], 0, 4), "b": _entry([1], 8, 12)}, bytes(12)))


def past_the_end(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([2**40], 0, 2**42)}, bytes(16)))


def trailing_bytes(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([1], 0, 4)}, bytes(4096)))


def duplicate_keys(path: Path) -> None:
    one = json.dumps(_entry([1], 0, 4))
    path.write_bytes(_file(f'{{"a":{one},"a":{one}}}'.encode(), bytes(4)))


def duplicate_fields(path: Path) -> None:
    text = b'{"a":{"dtype":"F32","dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(_file(text, bytes(4)))


def shape_overflows_64_bits(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([2**32, 2**32, 4], 0, 0)}))


def shape_beyond_64_bits(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([2**80, 0], 0, 0)}))


def negative_shape(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([-1, -1], 0, 4)}, bytes(4)))


def boolean_shape(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([True], 0, 4)}, bytes(4)))


def fractional_shape(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([1.0], 0, 4)}, bytes(4)))


def not_a_number_offset(path: Path) -> None:
    text = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[NaN,4]}}'
    path.write_bytes(_file(text, bytes(4)))


def integer_of_10000_digits(path: Path) -> None:
    text = b'{"a":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,4]}}'
    path.write_bytes(_file(text, bytes(4)))


def thousand_dimensions(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([1] * 1000, 0, 4)}, bytes(4)))


def backward_range(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([1], 4, 0)}, bytes(4)))


def wrong_size(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([3], 0, 8)}, bytes(8)))


def unknown_type(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([1], 0, 4, "PICKLE")}, bytes(4)))


def type_is_a_list(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([1], 0, 4, ["F32"])}, bytes(4)))


def extra_field(path: Path) -> None:
    path.write_bytes(_file({"a": _entry([1], 0, 4) | {"reduce": "os.system"}}, bytes(4)))


def metadata_is_no_text(path: Path) -> None:
    path.write_bytes(_file({"__metadata__": {"a": [1]}}))


def not_utf8(path: Path) -> None:
    path.write_bytes(_file(b'{"\xff\xfe":{}}'))


def header_is_a_list(path: Path) -> None:
    path.write_bytes(_file(b"[1,2]"))


def half_json(path: Path) -> None:
    path.write_bytes(_file(b'{"a":{"dtype":"F32"'))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def shorter_than_its_header(path: Path) -> None:
    path.write_bytes(_file({}, length=4096))


ATTACKS: dict[str, tuple[Maker, str]] = {
    maker.__name__: (maker, words)
    for maker, words in [
        (pickled, "header claims"),
        (header_of_100_mb, "header claims 104,857,"),
        (claims_an_endless_header, "more than the"),
        (million_tiny_tensors, "more than the"),
        (dense_punctuation, "too many values"),
        (deep_nesting, "nested too deeply"),
        (overlapping, "'a' and 'b' overlap"),
        (hole, "no tensor has the bytes from 4 to 8"),
        (past_the_end, "the file has 16"),
        (trailing_bytes, "4,096"),
        (duplicate_keys, "'a' twice"),
        (duplicate_fields, "'dtype' twice"),
        (shape_overflows_64_bits, "does not fill"),
        (shape_beyond_64_bits, "whole numbers"),
        (negative_shape, "whole numbers"),
        (boolean_shape, "whole numbers"),
        (fractional_shape, "no whole number"),
        (not_a_number_offset, "no whole number"),
        (integer_of_10000_digits, "JSON|whole numbers"),
        (thousand_dimensions, "whole numbers"),
        (backward_range, "no byte range"),
        (wrong_size, "does not fill"),
        (unknown_type, "unknown type 'PICKLE'"),
        (type_is_a_list, "unknown type"),
        (extra_field, "exactly"),
        (metadata_is_no_text, "__metadata__"),
        (not_utf8, "UTF-8"),
        (header_is_a_list, "does not start with"),
        (half_json, "no JSON"),
        (empty, "0 bytes"),
        (shorter_than_its_header, "has 2 left"),
    ]
}

"""ZIP files whose table of contents is the attack, whatever they should hold."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

Maker = Callable[[Path], None]


def table_of_contents(members: int, suffix: str = "", extra: int = 0) -> bytes:
    """A ZIP file of entries that all point at one empty member."""
    local = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    entries = []
    for number in range(members):
        name = f"{number:x}{suffix}".encode()
        fields = (20, 20, 0, 0, 0, 0, 0, 0, 0, len(name), extra, 0, 0, 0, 0, 0)
        entries.append(struct.pack("<4s6H3L5H2L", b"PK\1\2", *fields) + name + bytes(extra))
    table = b"".join(entries)
    count = min(members, 0xFFFF)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(table), len(local), 0)
    if members < 0xFFFF:
        return local + table + end
    place = len(local) + len(table)
    wide = struct.pack(
        "<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, members, members, len(table), len(local)
    )
    return local + table + wide + struct.pack("<4sLQL", b"PK\6\7", 0, place, 1) + end


def million_members(path: Path) -> None:
    path.write_bytes(table_of_contents(10**6, ".png"))


def long_extra_fields(path: Path) -> None:
    """Few members with 64 kB of their own each in the table."""
    path.write_bytes(table_of_contents(2000, ".png", extra=0xFFFF))


def images_bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.png", bytes(2**27))


def image_that_claims_less(path: Path) -> None:
    """Declares 100 bytes and unpacks to 64 MB: no more than declared is ever unpacked."""
    images_bomb(path)
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\1\2") + 24
    content[place : place + 4] = (100).to_bytes(4, "little")
    path.write_bytes(bytes(content))


def image_packed_by_lzma(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.png", bytes(2**28 - 1))
    content = bytearray(path.read_bytes())
    place = content.rindex(b"PK\1\2") + 24
    content[place : place + 4] = (2**26).to_bytes(4, "little")
    path.write_bytes(bytes(content))


def image_of_billions_of_pixels(path: Path) -> None:
    import zlib

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">2I5B", 60_000, 60_000, 8, 2, 0, 0, 0)
    image = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.png", image + chunk(b"IEND", b""))


def other_format_behind_the_suffix(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")


def broken_image(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.png", b"\x89PNG\r\n\x1a\n" + b"\xff" * 40)


def encrypted(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.png", b"secret")
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 8] |= 1
    content[content.index(b"PK\3\4") + 6] |= 1
    path.write_bytes(bytes(content))


def no_image(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../run.py", b"import os")


def no_zip(path: Path) -> None:
    path.write_bytes(b"PK\3\4 and nothing else")


OF_ANY_KIND: dict[str, tuple[Maker, str]] = {
    "million_members": (million_members, "table of contents"),
    "long_extra_fields": (long_extra_fields, "table of contents"),
}
"""Refused where arrays and archives are expected, too."""

ATTACKS: dict[str, tuple[Maker, str]] = {
    "million_members": (million_members, "table of contents|images; at most"),
    **{
        maker.__name__: (maker, words)
        for maker, words in [
            (long_extra_fields, "table of contents|image"),
            (images_bomb, "134,217,728 bytes unpacked"),
            (image_that_claims_less, "unpacked|no image"),
            (image_packed_by_lzma, "stored and deflated"),
            (image_of_billions_of_pixels, "no image|pixels"),
            (other_format_behind_the_suffix, "no image"),
            (broken_image, "no image|cannot be unpacked"),
            (encrypted, "cannot be unpacked"),
            (no_image, "no images"),
            (no_zip, "no ZIP file"),
        ]
    },
}

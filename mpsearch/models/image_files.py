"""Where images lie: in a folder, or in a ZIP file of one; with the class that each is of."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from mpsearch.errors import DataError
from mpsearch.models.zip_file import open_member, opened_zip

__all__ = ["ImageFile", "image_files", "labels_of"]

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".webp"}
MAX_IMAGES = 100_000
MAX_PACKED_IMAGES = 50_000
"""Most images in a ZIP file, whose table of contents is held in memory."""
MAX_PACKED_IMAGE = 64 * 2**20
"""Largest image in a ZIP file, in bytes; images are packed already, so these are few."""


@dataclass(frozen=True)
class ImageFile:
    """One image.

    Attributes:
        name: What messages call it.
        label: Name of the sub-folder that it lies in; None where there are no sub-folders.
        open: Opens it for reading.
    """

    name: str
    label: str | None
    open: Callable[[], IO[bytes]]


@contextmanager
def image_files(path: Path) -> Iterator[list[ImageFile]]:
    """Find the images of a folder or ZIP file, and keep the ZIP file open meanwhile.

    Args:
        path: A folder with images or with one sub-folder per class, or a ZIP file of one.

    Yields:
        The images, class by class, in alphabetical order; other files are left out.

    Raises:
        DataError: No such place, no images, too many, or a ZIP file that cannot be used.
    """
    if path.is_dir():
        yield _checked(path, list(_in_folder(path)))
        return
    if not path.is_file():
        raise DataError(f"no folder or ZIP file {path}")
    try:
        with opened_zip(path, MAX_PACKED_IMAGES) as archive:
            yield _checked(path, list(_in_archive(path, archive)))
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(f"{path} is no ZIP file that can be read: {str(error)[:120]}") from error


def labels_of(files: Sequence[ImageFile]) -> list[int] | None:
    """Number the classes.

    Args:
        files: The images.

    Returns:
        The number of each one's class: its name where every name is a whole number, else its place
        in alphabetical order; None where there are no classes.
    """
    classes = sorted({each.label for each in files if each.label is not None})
    if not classes:
        return None
    numbers = all(name.isascii() and name.isdigit() for name in classes)
    places = {name: int(name) if numbers else i for i, name in enumerate(classes)}
    return [places[each.label] for each in files if each.label is not None]


def _checked(path: Path, files: list[ImageFile]) -> list[ImageFile]:
    if not files:
        raise DataError(f"{path} has no images ({', '.join(sorted(SUFFIXES))})")
    if len(files) > MAX_IMAGES:
        raise DataError(f"{path} has {len(files):,} images; at most {MAX_IMAGES:,} are read")
    return files


def _in_folder(folder: Path) -> Iterator[ImageFile]:
    classes = sorted(each.name for each in folder.iterdir() if each.is_dir())
    for label in classes or ("",):
        home = folder / label
        root = home.resolve()
        for file in sorted(home.iterdir()):
            if file.suffix.lower() not in SUFFIXES or not file.is_file():
                continue
            # A link could make a stranger's archive show any file of this machine.
            if root not in file.resolve().parents:
                raise DataError(f"{file} links to a file outside its folder")
            yield ImageFile(str(file), label or None, partial(io.FileIO, file))


def _in_archive(path: Path, archive: zipfile.ZipFile) -> Iterator[ImageFile]:
    """Members are read in place and never written anywhere, so their names cannot lead astray."""
    found = {
        PurePosixPath(member.filename): member
        for member in archive.infolist()
        if PurePosixPath(member.filename).suffix.lower() in SUFFIXES
        and not PurePosixPath(member.filename).name.startswith(".")  # what macOS adds
    }
    homes = {place.parent for place in found}
    labelled = len(homes) > 1
    if labelled and len({home.parent for home in homes}) > 1:
        raise DataError(f"{path} has images at several depths; put each into its class's folder")
    for place, member in sorted(found.items()):
        if member.file_size > MAX_PACKED_IMAGE:
            raise DataError(
                f"{path}: {str(place)[:80]!r} has {member.file_size:,} bytes unpacked, more than "
                f"the {MAX_PACKED_IMAGE:,} allowed"
            )
        label = place.parent.name if labelled else None
        opening = partial(_unpacked, path, archive, member)
        yield ImageFile(f"{path}: {str(place)[:80]}", label, opening)


def _unpacked(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> IO[bytes]:
    try:
        with open_member(archive, member) as file:
            return io.BytesIO(file.read(member.file_size))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        name = member.filename[:80]
        raise DataError(f"{path}: {name!r} cannot be unpacked: {str(error)[:120]}") from error

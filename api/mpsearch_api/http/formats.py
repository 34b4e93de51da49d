"""Which files are taken as models and data, told by name, and looked at before they are kept."""

from __future__ import annotations

from pathlib import Path, PurePath

from mpsearch.errors import InputError
from mpsearch.schemas.uploads import StoredKind
from mpsearch_api.faults import NotAllowedError

__all__ = ["START_BYTES", "TAKEN", "check_beginning", "check_start", "format_of"]

TAKEN: dict[StoredKind, tuple[str, ...]] = {
    "model": ("safetensors", "onnx", "pt2"),
    "dataset": ("npz", "safetensors", "zip", "txt", "json"),
    "hardware": ("json", "yaml", "csv"),
}
_PICKLES = {"pt", "pth", "pkl", "pickle", "bin", "ckpt", "joblib", "npy"}
START_BYTES = 16
_ZIP = b"PK\x03\x04"


def format_of(kind: StoredKind, name: str, given: str | None, *, trusted: bool) -> str:
    """Tell what a file is.

    Args:
        kind: What it is to be.
        name: File name given by the uploader; only its suffix is looked at.
        given: Format named by the uploader, or None.
        trusted: Whether `.pt2` archives are taken.

    Returns:
        One of `TAKEN`.

    Raises:
        InputError: Such files are not taken.
        NotAllowedError: It is a `.pt2`, and the key lacks the scope.
    """
    found = (given or PurePath(name).suffix.removeprefix(".")).lower()
    found = {"yml": "yaml"}.get(found, found)
    taken = ", ".join(f".{each}" for each in TAKEN[kind])
    if found in _PICKLES:
        raise InputError(
            f".{found} files may run code when they are read and are not taken; save as {taken}"
        )
    if found not in TAKEN[kind]:
        said = f"{found!r} is none of them" if found else f"{name[:80]!r} has no suffix"
        raise InputError(f"a {kind} is one of {taken}; {said}")
    if found == "pt2" and not trusted:
        raise NotAllowedError(
            "a .pt2 archive holds a program; it needs a key with the scope `trusted`. ONNX and "
            "safetensors with an architecture need none"
        )
    return found


def check_beginning(path: Path, form: str) -> None:
    """Refuse a file that cannot be what it is called, by its first bytes.

    Args:
        path: The file.
        form: One of `TAKEN`.

    Raises:
        InputError: It is something else.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(START_BYTES)
    check_start(start, form)
    if form == "safetensors" and int.from_bytes(start[:8], "little") > size - 8:
        raise InputError("the file is no safetensors: its header is cut off")


def check_start(start: bytes, form: str) -> None:
    """Refuse bytes that no file begins with of what it is called.

    Args:
        start: At least `START_BYTES`, unless the file is shorter.
        form: One of `TAKEN`.

    Raises:
        InputError: It is something else.
    """
    if not start:
        raise InputError("the file is empty")
    if form in {"npz", "zip", "pt2"} and not start.startswith(_ZIP):
        raise InputError(f"the file is no {form}: it does not begin as a ZIP archive does")
    if form == "safetensors" and start[8:9] != b"{":
        raise InputError("the file is no safetensors: it has no header")
    if form == "onnx" and start.startswith((_ZIP, b"\x80")):
        raise InputError("the file is no ONNX model; it looks like a torch or pickle file")

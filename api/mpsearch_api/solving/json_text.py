"""JSON read strictly: only what stays itself further on."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

__all__ = ["MAX_DEPTH", "JsonRefusedError", "parse_json"]

MAX_DEPTH = 64
MAX_DIGITS = 400
_UNPAIRED = re.compile("[\ud800-\udfff]")
_LARGE_NUMBER = re.compile(r"[eE]\+?[0-9]{3}|[0-9]{200}")
_NO_STRUCTURE = bytes(set(range(256)) - set(b'"[]{}'))
_INNERMOST = re.compile(rb"\[\]|\{\}")
_LONG_NUMBER = re.compile(rb"[0-9]{%d,}" % (MAX_DIGITS + 1))
# A string, also one that never ends: if it had to end, each quote in it would be tried as its
# beginning, which takes quadratic time.
_STRING = r'"(?:[^"\\]++|\\.)*+"?'
_STRINGS = re.compile(_STRING, re.DOTALL)
_STRUCTURE = re.compile(rf"{_STRING}|[\[{{]|[\]}}]", re.DOTALL)


class JsonRefusedError(ValueError):
    """JSON that Python would read and this service does not."""


def parse_json(body: bytes) -> Any:  # noqa: ANN401
    """Parse JSON as RFC 8259 has it, and nothing that breaks further on.

    Args:
        body: UTF-8 text.

    Returns:
        The value.

    Raises:
        JsonRefusedError: A ValueError: not UTF-8; NaN or Infinity; a number of more than 400 digits
            or beyond float64; nested deeper than 64; a member given twice; NUL or half a surrogate
            pair in a string, which databases refuse. Other faults are `json.JSONDecodeError`.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise JsonRefusedError(f"not UTF-8 at byte {error.start}") from None
    if not _is_flat(body):
        _check_depth(text)
    if _LONG_NUMBER.search(body):
        _check_numbers(text)
    # A function called for every number would take as long as all the rest; only numbers with a
    # large exponent or very many digits can be infinite.
    read_float = _finite if _LARGE_NUMBER.search(text) else None
    value = json.loads(
        text, parse_constant=_refuse_constant, parse_float=read_float, object_pairs_hook=_unique
    )
    # Escapes turn into such characters only where a backslash is.
    if "\\u" in text or "\x00" in text:
        _check_texts(value)
    return value


def _is_flat(body: bytes) -> bool:
    """Tell quickly that nothing is nested too deep; False says nothing."""
    if b"\\" in body:
        return False
    # Strings without brackets leave two quotes behind; then each pass takes the innermost pairs.
    left = body.translate(None, _NO_STRUCTURE).replace(b'""', b"")
    for _ in range(MAX_DEPTH):
        before = len(left)
        left = _INNERMOST.sub(b"", left)
        if len(left) == before:
            break
    return not left


def _check_depth(text: str) -> None:
    depth = 0
    for match in _STRUCTURE.finditer(text):
        bracket = match[0]
        if bracket in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise JsonRefusedError(f"nested deeper than {MAX_DEPTH}")
        elif bracket in "]}":
            depth -= 1


def _check_numbers(text: str) -> None:
    without_strings = _STRINGS.sub('""', text)
    if _LONG_NUMBER.search(without_strings.encode()):
        raise JsonRefusedError(f"a number of more than {MAX_DIGITS} digits")


def _refuse_constant(name: str) -> NoReturn:
    raise JsonRefusedError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in {float("inf"), float("-inf")}:
        raise JsonRefusedError(f"{digits[:40]} is beyond the range of float64")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise JsonRefusedError(f"{name[:80]!r} is given twice in one object")
            seen.add(name)
    return found


def _check_texts(value: Any) -> None:  # noqa: ANN401
    if isinstance(value, str):
        if "\x00" in value:
            raise JsonRefusedError("a string has a NUL character in it")
        if _UNPAIRED.search(value):
            raise JsonRefusedError("a string has half a surrogate pair in it")
    elif isinstance(value, dict):
        for name, member in value.items():
            _check_texts(name)
            _check_texts(member)
    elif isinstance(value, list):
        for member in value:
            _check_texts(member)

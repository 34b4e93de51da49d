"""The table of format families: names in, specifications out. A family is one registration."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from mpsearch.errors import InputError, UnknownNameError
from mpsearch.formats.base import Format

__all__ = ["Family", "families", "get", "grammar", "known", "register", "shortened"]


@dataclass(frozen=True)
class Family:
    """Formats that share a class and a naming rule.

    Attributes:
        label: Short name of the family.
        grammar: How its names are written, for error messages and listings.
        examples: Names that stand for the family in listings; each of them parses.
        summary: One line on what its members have in common.
        parse: From a lower-case name to the format, or None when the name is not of this family.
            May raise InputError when the name is of this family but its numbers are not.
    """

    label: str
    grammar: str
    examples: tuple[str, ...]
    summary: str
    parse: Callable[[str], Format | None]


_LONG_NUMBER = re.compile(r"\d{10}")
"""What no name needs, and Python refuses to read where it goes on for thousands of digits."""

_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> None:
    """Add a family, so that its names are found by `get`, the command line and the server.

    Args:
        family: The family; its label must be new.

    Raises:
        InputError: A family of that label exists already.
    """
    if family.label in _FAMILIES:
        raise InputError(f"a format family {family.label!r} is registered already; choose another")
    _FAMILIES[family.label] = family
    get.cache_clear()


def families() -> tuple[Family, ...]:
    """Return every registered family in the order of registration."""
    return tuple(_FAMILIES.values())


def known() -> tuple[str, ...]:
    """Return one name per common format, family by family: examples, not the whole grammar."""
    return tuple(name for family in _FAMILIES.values() for name in family.examples)


def grammar() -> str:
    """Return how format names are written, in one line."""
    return " | ".join(family.grammar for family in _FAMILIES.values())


def shortened(text: str) -> str:
    """Return a name as messages show it: cut where nobody would read on.

    Args:
        text: What was given.

    Returns:
        At most 80 characters.
    """
    return text if len(text) <= 80 else f"{text[:79]}…"


@lru_cache(maxsize=4096)
def get(name: str) -> Format:
    """Return the format of that name.

    Args:
        name: A name of the grammar (`int4_g128`, `e3m4`, `mxfp4` …); case does not matter.

    Returns:
        The specification; the same object for the same name.

    Raises:
        UnknownNameError: No family knows the name; shows near names and the grammar.
        InputError: A family knows the name, but its numbers are out of range; shows its grammar.
    """
    if not isinstance(name, str):
        raise InputError(f"a format is asked for by name, not by {type(name).__name__} {name!r}")
    lowered = name.strip().lower()
    if _LONG_NUMBER.search(lowered):
        raise InputError(
            f"format {shortened(name)!r}: a number of more than 9 digits. Grammar: {grammar()}"
        )
    for family in _FAMILIES.values() if lowered.isascii() else ():
        try:
            found = family.parse(lowered)
        except InputError as error:
            raise InputError(f"{error}. Grammar: {family.grammar}") from error
        if found is not None:
            return found
    raise UnknownNameError("format", shortened(name), known(), hint=f"Grammar: {grammar()}")

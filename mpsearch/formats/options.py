"""Options: what a layer may be given, a weight format together with an activation format."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from mpsearch.errors import InputError, UnknownNameError
from mpsearch.formats.base import Format
from mpsearch.formats.registry import get, known, shortened

__all__ = ["OPTION_GRAMMAR", "Option", "parse_option"]

OPTION_GRAMMAR = (
    "float | w{1..16,32}[a{1..16,32}] | w:FORMAT[/a:FORMAT] | FORMAT (weights only), "
    "for example w4a8, w:mxfp4/a:fp8_e4m3, int4_g128"
)

_SHORT = re.compile(r"w(\d{1,9})(?:a(\d{1,9}))?", re.ASCII)
_LONG = re.compile(r"w:([^/:]+)(?:/a:([^/:]+))?")


@dataclass(frozen=True)
class Option:
    """A weight format and an activation format.

    Options are equal when their formats are, whatever they were called: `w4` equals
    `w:int4/a:float`.

    Attributes:
        name: As it was written, in lower case and without spaces.
        weight: Format of the weights.
        activation: Format of the layer's inputs; `float` leaves them alone.
    """

    name: str = field(compare=False)
    weight: Format
    activation: Format

    @property
    def key(self) -> tuple[Format, Format]:
        """What makes two options the same."""
        return self.weight, self.activation

    @property
    def is_float(self) -> bool:
        """Whether the layer is left alone."""
        return self.weight.is_float and self.activation.is_float


def parse_option(text: str) -> Option:
    """Read an option.

    Args:
        text: `w4a8`: integers of 4 and 8 bits; 16 bits mean `fp16` and 32 `float`. `w4`: weights
            only. `w:mxfp4/a:fp8_e4m3`: any two formats. `float`: leave the layer. A bare format
            name means weights only.

    Returns:
        The option.

    Raises:
        InputError: The text does not follow the grammar, or a format's numbers are out of range.
        UnknownNameError: A format name in it is unknown; shows near names and the grammar.
    """
    if not isinstance(text, str):
        raise InputError(f"an option is written as text, not {type(text).__name__} {text!r}")
    name = text.strip().lower()
    option = _read(name, text)
    if option.weight.role == "scales" or option.activation.role != "any":
        wrong = option.weight if option.weight.role == "scales" else option.activation
        raise InputError(
            f"option {text!r}: {wrong.name} is for {wrong.role} only ({wrong.summary})"
        )
    return option


def _read(name: str, text: str) -> Option:
    if match := _SHORT.fullmatch(name):
        return Option(name, _of_width(match[1], name), _of_width(match[2] or "32", name))
    if match := _LONG.fullmatch(name):
        return Option(name, get(match[1].strip()), get((match[2] or "float").strip()))
    if not name or "/" in name or ":" in name:
        raise InputError(f"cannot read option {shortened(text)!r}. Grammar: {OPTION_GRAMMAR}")
    try:
        return Option(name, get(name), get("float"))
    except UnknownNameError:
        raise UnknownNameError(
            "option", shortened(text), [*_examples(), *known()], hint=f"Grammar: {OPTION_GRAMMAR}"
        ) from None


def _examples() -> list[str]:
    return ["w2", "w3", "w4", "w8", "w2a8", "w4a4", "w4a8", "w8a8", "w4a16", "w8a16"]


def _of_width(digits: str, option: str) -> Format:
    width = int(digits)
    if width == 32:
        return get("float")
    if width == 16:
        return get("fp16")
    if not 1 <= width <= 16:
        raise InputError(
            f"option {option!r}: {width} bits; short options take 1 to 16 or 32. "
            f"Grammar: {OPTION_GRAMMAR}"
        )
    return get(f"int{width}")

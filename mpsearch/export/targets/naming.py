"""Names of formats from their parts, for readers of other tools' files."""

from __future__ import annotations

from mpsearch.formats import parse_option

__all__ = ["integer_name", "option_name", "with_sharing"]


def with_sharing(element: str, group: int | None = None, *, tensor: bool = False) -> str:
    """Name a format with what shares a scale.

    Args:
        element: Such as `int4_asym` or `fp8_e4m3`.
        group: Values per scale along a row; None for a scale per channel or tensor.
        tensor: One scale for the whole tensor.

    Returns:
        Such as `int4_asym_g128`.
    """
    return element + (f"_g{group}" if group else "_tensor" if tensor else "")


def integer_name(
    width: int, group: int | None = None, *, asymmetric: bool = False, tensor: bool = False
) -> str:
    """Name an integer format.

    Args:
        width: Bits.
        group: Values per scale along a row; None for a scale per channel or tensor.
        asymmetric: Whether there is a zero point.
        tensor: One scale for the whole tensor.

    Returns:
        Such as `int4_asym_g128`.
    """
    element = f"int{width}" + ("_asym" if asymmetric else "")
    return with_sharing(element, group, tensor=tensor)


def option_name(weight: str, activation: str = "float") -> str:
    """Name an option, the short way where there is one.

    Args:
        weight: Name of the weight format.
        activation: Name of the activation format.

    Returns:
        `w4a8`, `float`, or `w:int4_g128/a:int8`.
    """
    if weight == activation == "float":
        return "float"
    name = f"w:{weight}/a:{activation}"
    width, input_width = weight.removeprefix("int"), activation.removeprefix("int")
    if width.isdecimal() and (input_width.isdecimal() or activation == "float"):
        short = f"w{width}" + (f"a{input_width}" if activation != "float" else "")
        if parse_option(short).key == parse_option(name).key:
            return short
    return name

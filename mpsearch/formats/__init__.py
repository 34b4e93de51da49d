"""Numeric formats: their grammar, specifications and, imported on use, their kernels.

Importing this package imports no torch, so that the command line and the server can list and
explain formats in the base install.
"""

from mpsearch.formats.base import Format, Overflow
from mpsearch.formats.identity import Float
from mpsearch.formats.integer import Integer
from mpsearch.formats.options import OPTION_GRAMMAR, Option, parse_option
from mpsearch.formats.registry import Family, families, get, grammar, known, register

__all__ = [
    "OPTION_GRAMMAR",
    "Family",
    "Float",
    "Format",
    "Integer",
    "Option",
    "Overflow",
    "families",
    "get",
    "grammar",
    "known",
    "parse_option",
    "register",
]

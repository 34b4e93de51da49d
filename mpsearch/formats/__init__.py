"""Numeric formats: their grammar, specifications and, imported on use, their kernels.

Importing this package imports no torch, so that the command line and the server can list and
explain formats in the base install.
"""

from mpsearch.formats.base import Format, Overflow
from mpsearch.formats.granularity import Clip, Scaled, Sharing
from mpsearch.formats.half import Half
from mpsearch.formats.identity import Float
from mpsearch.formats.integer import Integer
from mpsearch.formats.microscaling import BlockFloat, Microscaling
from mpsearch.formats.minifloat import FloatGrid, Minifloat
from mpsearch.formats.nvfp import NvFloat4
from mpsearch.formats.options import OPTION_GRAMMAR, Option, parse_option
from mpsearch.formats.registry import Family, families, get, grammar, known, register

__all__ = [
    "OPTION_GRAMMAR",
    "BlockFloat",
    "Clip",
    "Family",
    "Float",
    "FloatGrid",
    "Format",
    "Half",
    "Integer",
    "Microscaling",
    "Minifloat",
    "NvFloat4",
    "Option",
    "Overflow",
    "Scaled",
    "Sharing",
    "families",
    "get",
    "grammar",
    "known",
    "parse_option",
    "register",
]

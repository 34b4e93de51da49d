"""Numeric formats: their grammar, specifications and, imported on use, their kernels.

Importing this package imports no torch, so that the command line and the server can list and
explain formats in the base install.
"""

from mpsearch.formats import (
    automatic,
    codebook,
    exponent,
    half,
    identity,
    integer,
    microscaling,
    minifloat,
    nvfp,
    sign,
)
from mpsearch.formats.automatic import AutoMinifloat
from mpsearch.formats.base import Format, Overflow, Role
from mpsearch.formats.calibration import Method, Observer, Statistics
from mpsearch.formats.codebook import Codebook, LearnedCodebook, register_table
from mpsearch.formats.error import QuantizationError, quantization_error
from mpsearch.formats.exponent import PowerOfTwo
from mpsearch.formats.granularity import Clip, Scaled, Sharing
from mpsearch.formats.half import Half
from mpsearch.formats.identity import Float
from mpsearch.formats.integer import Integer
from mpsearch.formats.microscaling import BlockFloat, Microscaling
from mpsearch.formats.minifloat import FloatGrid, Minifloat
from mpsearch.formats.nvfp import NvFloat4
from mpsearch.formats.options import OPTION_GRAMMAR, Option, parse_option
from mpsearch.formats.registry import Family, families, get, grammar, known, register
from mpsearch.formats.sign import Signs

for _module_family in (
    identity.FAMILY,
    integer.FAMILY,
    sign.FAMILY,
    half.FAMILY,
    minifloat.FAMILY,
    automatic.FAMILY,
    microscaling.MX_FAMILY,
    nvfp.FAMILY,
    microscaling.BFP_FAMILY,
    codebook.NF4_FAMILY,
    codebook.LEARNED_FAMILY,
    exponent.FAMILY,
):
    register(_module_family)

__all__ = [
    "OPTION_GRAMMAR",
    "AutoMinifloat",
    "BlockFloat",
    "Clip",
    "Codebook",
    "Family",
    "Float",
    "FloatGrid",
    "Format",
    "Half",
    "Integer",
    "LearnedCodebook",
    "Method",
    "Microscaling",
    "Minifloat",
    "NvFloat4",
    "Observer",
    "Option",
    "Overflow",
    "PowerOfTwo",
    "QuantizationError",
    "Role",
    "Scaled",
    "Sharing",
    "Signs",
    "Statistics",
    "families",
    "get",
    "grammar",
    "known",
    "parse_option",
    "quantization_error",
    "register",
    "register_table",
]

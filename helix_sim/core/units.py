"""Units and number formats: the one place where a size, a prefix or a number of bits is converted.

Inside helix_sim everything is bytes, FLOP and seconds; prefixes are decimal (GB = 1e9) unless they end in `i`.
"""

from __future__ import annotations

import importlib.resources
import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

import yaml

from helix_sim.core.text import said

GIGA = 1e9
MEGA = 1e6
TERA = 1e12
MEBI = 2**20
GIBI = 2**30
MICRO = 1e-6

_PREFIX = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SIZE = re.compile(r"([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)\s*([KMGT]i?|[kmgt])?")


def format_bits(format_: Mapping[str, Any]) -> float:
    """Bits that a stored value takes, its part of the scale and of the zero point that its block shares included.

    >>> format_bits({"bits": 4, "block": 16, "scale_bits": 8})
    4.5
    """
    shared = format_.get("scale_bits", 0) + format_.get("zero_bits", 0)
    return float(format_["bits"] + shared / format_.get("block", 1))


FORMATS: dict[str, dict[str, Any]] = yaml.safe_load(
    importlib.resources.files("helix_sim.core").joinpath("formats.yaml").read_bytes()
)
"""Number formats by name as formats.yaml has them: bits, block, scale_bits, zero_bits, source."""
FORMAT_BITS = {name: format_bits(each) for name, each in FORMATS.items()}
"""Bits a stored value takes, block scales included."""


def bytes_per_value(number_format: str) -> float:
    """Bytes that one stored value takes, block scales included.

    >>> bytes_per_value("fp4"), bytes_per_value("nvfp4"), bytes_per_value("bf16")
    (0.5, 0.5625, 2.0)
    """
    return FORMAT_BITS[number_format] / 8


def parse_size(text: str | int | float) -> int:
    """A whole number with a decimal (K, M, G, T) or binary (Ki, Mi, Gi, Ti) prefix.

    >>> parse_size("128K"), parse_size("1M"), parse_size("1Mi"), parse_size(4096)
    (128000, 1000000, 1048576, 4096)
    """
    shown = said(text)
    long = len(shown) > 60 or (isinstance(text, int) and text.bit_length() > 128)
    match = None if isinstance(text, bool) or long else _SIZE.fullmatch(str(text).strip().replace(",", ""))
    if match is None:
        raise ValueError(f"{shown} is not a size; write a positive number such as 4096, 128K, 1M or 1Mi")
    prefix = match[2] or ""
    value = Fraction(match[1].replace("_", "")) * _PREFIX[prefix if prefix in _PREFIX else prefix.upper()]
    if value.denominator != 1 or value < 1:
        raise ValueError(f"{shown} is not a whole number of at least 1")
    return int(value)


def format_size(value: float) -> str:
    """A size with its decimal prefix, as `parse_size` reads it.

    >>> format_size(1_000_000), format_size(128_000), format_size(1048576)
    ('1M', '128K', '1048576')
    """
    for prefix in ("T", "G", "M", "K"):
        scale = _PREFIX[prefix]
        if value >= scale and value % scale == 0:
            return f"{int(value // scale)}{prefix}"
    return f"{int(value)}"

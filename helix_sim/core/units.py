"""Units and number formats: the one place where a size, a prefix or a number of bits is converted.

Inside helix_sim everything is bytes, FLOP and seconds; prefixes are decimal (GB = 1e9) unless they end in `i`.
"""

from __future__ import annotations

import re
from fractions import Fraction

from helix_sim.core.text import said

GIGA = 1e9
MEGA = 1e6
TERA = 1e12
MEBI = 2**20
GIBI = 2**30
MICRO = 1e-6

_PREFIX = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SIZE = re.compile(r"([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)\s*([KMGT]i?|[kmgt])?")

FORMAT_BITS = {
    "fp4": 4.0,  # plain 4-bit values, as the Helix paper counts them
    "mxfp4": 4.25,  # one 8-bit scale for 32 values (OCP Microscaling 1.0)
    "nvfp4": 4.5,  # one FP8 scale for 16 values (NVIDIA, NVFP4)
    "int4": 4.125,  # one 16-bit scale for 128 values (symmetric, group size 128)
    "int4-zero": 4.125 + 4 / 128,  # and a 4-bit zero point (AWQ, GPTQ)
    "int4-g64": 4.25,  # one 16-bit scale for 64 values
    "int4-g64-zero": 4.25 + 4 / 64,
    "int4-g32": 4.5,  # one 16-bit scale for 32 values (compressed-tensors, Kimi-K2.5)
    "int4-g32-zero": 4.5 + 4 / 32,
    "fp8": 8.0,
    "fp8-block": 8.0 + 32 / 128**2,  # one FP32 scale for 128 x 128 weights (DeepSeek-V3)
    "mxfp8": 8.25,  # one 8-bit scale for 32 values (OCP Microscaling 1.0)
    "int8": 8.0,
    "int8-g128": 8.125,  # one 16-bit scale for 128 values
    "int8-g128-zero": 8.125 + 8 / 128,  # and an 8-bit zero point (GPTQ)
    "bf16": 16.0,
    "fp16": 16.0,
    "fp32": 32.0,
}
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

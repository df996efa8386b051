"""Units and number formats: the one place where a size, a prefix or a number of bits is converted.

Inside helix_sim everything is bytes, FLOP and seconds; prefixes are decimal (GB = 1e9) unless they end in `i`.
"""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

Column = int | float | npt.NDArray[Any]
"""A size or a quantity: one number, or a numpy column of them. Every equation takes both."""

GIGA = 1e9
MEGA = 1e6
TERA = 1e12
MICRO = 1e-6

_PREFIX = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
_SIZE = re.compile(r"(\d+(?:_\d+)*(?:\.\d+)?)\s*([KMGT]i?|[kmgt])?")

FORMAT_BITS = {
    "fp4": 4.0,  # plain 4-bit values, as the Helix paper counts them
    "mxfp4": 4.25,  # one 8-bit scale for 32 values (OCP Microscaling 1.0)
    "nvfp4": 4.5,  # one FP8 scale for 16 values (NVIDIA, NVFP4)
    "int4": 4.125,  # one 16-bit scale for 128 values (AWQ, GPTQ group size 128)
    "fp8": 8.0,
    "fp8-block": 8.0 + 32 / 128**2,  # one FP32 scale for 128 x 128 weights (DeepSeek-V3)
    "int8": 8.0,
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


def shortened(text: str, most: int = 400) -> str:
    """A text's start, where it is long.

    >>> shortened("abcdef", 4)
    'abc…'
    """
    return text if len(text) <= most else f"{text[: most - 1]}…"


def said(value: Any) -> str:
    """A value as a sentence quotes it: its start, where it is long.

    >>> said("fp5"), said(2**20000), len(said([1] * 50))
    ("'fp5'", 'a number of 20001 bits', 80)
    """
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of more than 4300 digits somewhere in it
        text = f"a {type(value).__name__}"
    return shortened(text, 80)


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


def ceil_div(a: Column, b: Column) -> Any:
    """a / b rounded up: the largest share when `a` things are dealt to `b` ranks.

    >>> ceil_div(8, 3), ceil_div(8, 16)
    (3, 1)
    """
    return -(-a // b)


def larger(a: Column, b: Column) -> Any:
    """np.maximum, ten times as fast for two numbers."""
    if isinstance(a, float | int) and isinstance(b, float | int):
        return a if a > b else b
    return np.maximum(a, b)


def smaller(a: Column, b: Column) -> Any:
    """np.minimum, ten times as fast for two numbers."""
    if isinstance(a, float | int) and isinstance(b, float | int):
        return a if a < b else b
    return np.minimum(a, b)


def chosen(first: Any, a: Column, b: Column) -> Any:
    """np.where, ten times as fast for one condition."""
    return (a if first else b) if isinstance(first, bool | np.bool_) else np.where(first, a, b)


def common_divisor(a: Column, b: Column) -> Any:
    """The greatest common divisor of whole numbers, whatever their type.

    >>> common_divisor(12.0, 8), common_divisor(np.array([4.0, 6.0]), 4).tolist()
    (4, [4, 2])
    """
    if isinstance(a, float | int) and isinstance(b, float | int):
        return math.gcd(int(a), int(b))
    return np.gcd(np.asarray(a, dtype=np.int64), np.asarray(b, dtype=np.int64))


def broadcast_columns(columns: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Columns stretched to one common length and flattened, in the order of the broadcast index."""
    arrays = np.broadcast_arrays(*(np.asarray(column) for column in columns.values()))
    return dict(zip(columns, (array.ravel() for array in arrays), strict=True))

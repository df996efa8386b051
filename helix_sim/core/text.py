"""Words: values as a sentence for the user quotes them, and what a word of the user names."""

from __future__ import annotations

import os
from typing import Any


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


def is_path(name: str) -> bool:
    """Whether a spec is named by the path of its file, not as one of those that are shipped.

    >>> is_path("deepseek-r1"), is_path("./deepseek-r1"), is_path("mine.yaml")
    (False, True, True)
    """
    return "/" in name or os.sep in name or name.endswith((".yaml", ".yml"))

"""A file that extends another: the other's content, over it what the file says itself, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

QUANTITY = {"value", "source"}


def extend(base: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    """What holds: the base's content, and over it what is said; mappings key by key, a quantity as a whole.

    >>> extend({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 4}})
    {'a': 1, 'b': {'c': 4, 'd': 3}}
    >>> extend({"a": {"value": 1, "source": "assumed: x"}}, {"a": {"value": 2}})
    {'a': {'value': 2}}
    """
    return {**base, **{key: _over(base.get(key), value) for key, value in said.items()}}


def differences(content: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be said over a base for the content to hold, which has every key that the base has.

    >>> differences({"a": 1, "b": {"c": 4, "d": 3}}, {"a": 1, "b": {"c": 2, "d": 3}})
    {'b': {'c': 4}}
    """
    found = {}
    for key, value in content.items():
        if key not in base:
            found[key] = value
        elif base[key] != value:
            found[key] = differences(value, base[key]) if _merge(base[key], value) else value
    return found


def _over(base: Any, said: Any) -> Any:
    return extend(base, said) if _merge(base, said) else said


def _merge(base: Any, said: Any) -> bool:
    """Whether two values are mappings that are merged key by key."""
    return isinstance(base, Mapping) and isinstance(said, Mapping) and set(base) != QUANTITY

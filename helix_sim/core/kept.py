"""Results kept for the records they were made from: what a step derives of its model, machine and timing, once."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Generic, TypeVar

MOST_KEPT = 512
"""Results of a function that are kept at most; then all of them are forgotten."""

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")


class kept_property(Generic[T]):
    """A property that is found once and then is an attribute: functools.cached_property without its lock.

    The lock, which Python 3.12 has dropped, costs more than most of what a step of one layout keeps.
    """

    def __init__(self, find: Callable[[Any], T]) -> None:
        self._find, self._name, self.__doc__ = find, find.__name__, find.__doc__

    def __get__(self, record: Any, owner: type | None = None) -> T:
        if record is None:
            return self  # type: ignore[return-value]
        found = record.__dict__[self._name] = self._find(record)
        return found


def kept_for_records(function: F) -> F:
    """The function, whose results are kept for the very objects that it was called with, by place.

    For frozen records, which are never changed but copied: two equal records are two calls, and a lookup costs no
    comparison of what is in them. A result keeps its arguments alive, so that no other object can take their place.

    >>> count = kept_for_records(lambda record: len(record))
    >>> record = (1, 2, 3)
    >>> count(record), count(record)
    (3, 3)
    """
    kept: dict[tuple[int, ...], tuple[tuple[Any, ...], Any]] = {}

    @functools.wraps(function)
    def found(*records: Any) -> Any:
        key = tuple(map(id, records))
        if (known := kept.get(key)) is None:
            if len(kept) >= MOST_KEPT:
                kept.clear()
            known = kept[key] = records, function(*records)
        return known[1]

    return found  # type: ignore[return-value]

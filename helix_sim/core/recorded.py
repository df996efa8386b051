"""Arithmetic recorded as it runs, and written down as straight lines of Python for plain numbers.

Equations take numbers or columns. Given `Recorded` numbers they leave behind which value they compute from which, and
`Tape.function` makes a Python function of that, without the records, names and lookups in between. What asks about its
values (`if x > 1`) cannot be recorded: such a function is called whole, by `called_whole`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

F = TypeVar("F", bound=Callable[..., Any])

WRITTEN: dict[Any, str] = {
    np.add: "{0} + {1}",
    np.subtract: "{0} - {1}",
    np.multiply: "{0} * {1}",
    np.true_divide: "{0} / {1}",
    np.floor_divide: "{0} // {1}",
    np.remainder: "{0} % {1}",
    np.power: "{0} ** {1}",
    np.negative: "-{0}",
    np.less: "{0} < {1}",
    np.less_equal: "{0} <= {1}",
    np.greater: "{0} > {1}",
    np.greater_equal: "{0} >= {1}",
    np.equal: "{0} == {1}",
    np.not_equal: "{0} != {1}",
    np.bitwise_and: "{0} & {1}",
    np.bitwise_or: "{0} | {1}",
    np.logical_and: "True if {0} and {1} else False",
    np.logical_or: "True if {0} or {1} else False",
    np.maximum: "{0} if {0} > {1} else {1}",
    np.minimum: "{0} if {0} < {1} else {1}",
    np.where: "{1} if {0} else {2}",
    np.ceil: "ceil({0})",
    np.floor: "floor({0})",
    np.sqrt: "sqrt({0})",
    np.cbrt: "cbrt({0})",
    np.log2: "log2({0})",
    np.log1p: "log1p({0})",
    np.expm1: "expm1({0})",
}
"""How numpy's functions of numbers are written in Python."""

MATH = {name: getattr(math, name) for name in ("ceil", "floor", "sqrt", "cbrt", "log2", "log1p", "expm1", "inf", "nan")}

NEUTRAL: dict[Any, int] = {np.add: 0, np.multiply: 1, np.bitwise_or: 0}
"""What leaves the other operand as it is, on either side."""
NEUTRAL_SECOND: dict[Any, int] = {**NEUTRAL, np.subtract: 0, np.true_divide: 1}

DEEPEST = 12
"""Brackets inside each other that a line is written with, at most."""


class Tape:
    """Values in the order in which they were computed, each different one once: how it is written, and what of."""

    def __init__(self) -> None:
        self._values: list[tuple[str, tuple[Any, ...]]] = []
        self._known: dict[Any, Recorded] = {}
        self._names: dict[str, Any] = dict(MATH)

    def input(self) -> Recorded:
        """A number that functions of the tape are given."""
        return self._value(f"input {len(self._values)}", ())

    def apply(self, function: Any, *of: Any) -> Any:
        """The value of one of WRITTEN's functions; a number where it is of numbers, or is one of its operands."""
        of = tuple(each.item() if isinstance(each, np.generic | np.ndarray) else each for each in of)
        if function is np.where and not isinstance(of[0], Recorded):
            return of[1] if of[0] else of[2]
        if not any(isinstance(each, Recorded) for each in of):
            return function(*of).item()
        if function in NEUTRAL_SECOND and _is(of[1], NEUTRAL_SECOND[function]):
            return of[0]
        if function in NEUTRAL and _is(of[0], NEUTRAL[function]):
            return of[1]
        if function is np.multiply and (_is(of[0], 0) or _is(of[1], 0)):
            return 0.0
        if function is np.power and _is(of[1], 2):
            return self._value(WRITTEN[np.multiply], (of[0], of[0]))
        if function not in WRITTEN:
            raise TypeError(f"{function} is not recorded: call what needs it whole (helix_sim.core.recorded)")
        return self._value(WRITTEN[function], of)

    def call(self, function: Callable[..., Any], of: Sequence[Any]) -> Recorded:
        """The result of a function that is called as it is."""
        places = ", ".join(f"{{{place}}}" for place in range(len(of)))
        return self._value(f"{self._name(function)}({places})", tuple(map(self._argument, of)))

    def item(self, of: Recorded, place: int) -> Recorded:
        """One of several results of a call."""
        return self._value(f"{{0}}[{place}]", (of,))

    def _argument(self, each: Any) -> Any:
        return each if isinstance(each, Recorded | float | int) else self._name(each)

    def _name(self, each: Any) -> str:
        name = f"given_{id(each)}"
        self._names[name] = each
        return name

    def _value(self, text: str, of: tuple[Any, ...]) -> Recorded:
        key = text, *((each.place, Recorded) if isinstance(each, Recorded) else (each, type(each)) for each in of)
        if (known := self._known.get(key)) is None:
            known = self._known[key] = Recorded(self, len(self._values))
            self._values.append((text, of))
        return known

    def shared(self, inputs: Iterable[Recorded], first: Iterable[Any], second: Iterable[Any]) -> list[Recorded]:
        """The values that are computed for the first outputs and that those of the second are made of."""
        computed, found = set(self._needed(first, {each.place for each in inputs})), {}
        asked = [each.place for each in second if isinstance(each, Recorded)]
        seen = set()
        while asked:
            place = asked.pop()
            if place in computed:
                found[place] = Recorded(self, place)
            elif place not in seen:
                seen.add(place)
                asked += [each.place for each in self._values[place][1] if isinstance(each, Recorded)]
        return [found[place] for place in sorted(found)]

    def function(self, inputs: Sequence[Recorded], outputs: Sequence[Any]) -> Callable[..., tuple[Any, ...]]:
        """A function of values of the tape, in order, to a tuple of others: or of numbers, which stay as they are."""
        given = {each.place: f"a{number}" for number, each in enumerate(inputs)}
        inner = self._inner(self._needed(outputs, given), outputs, given)
        lines = [place for place in inner if not inner[place]]
        reads = {place: self._read(place, inner, given) for place in lines}
        last = {of: place for place in lines for of in reads[place]}
        last |= {each.place: -1 for each in outputs if isinstance(each, Recorded)}
        names, free = dict(given), []
        written: list[str] = []
        for place in lines:
            text = self._text(place, inner, names, whole=True)
            free += [names[of] for of in reads[place] if last[of] == place and of not in given]
            names[place] = free.pop() if free else f"v{len(written)}"
            written.append(f" {names[place]} = {text}")
        returned = "".join(f"{self._written(each, inner, names)}, " for each in outputs)
        code = "\n".join([f"def found({', '.join(given.values())}):", *written, f" return ({returned})"])
        space = dict(self._names)
        exec(compile(code, "<recorded>", "exec"), space)
        made: Callable[..., tuple[Any, ...]] = space["found"]
        return made

    def _needed(self, outputs: Iterable[Any], given: Iterable[int]) -> list[int]:
        """Places of what the outputs are computed from, in order, themselves among them; not of what is given."""
        needed: set[int] = set()
        asked = [each.place for each in outputs if isinstance(each, Recorded)]
        while asked:
            place = asked.pop()
            if place not in needed and place not in given:
                needed.add(place)
                asked += [each.place for each in self._values[place][1] if isinstance(each, Recorded)]
        return sorted(needed)

    def _inner(self, needed: list[int], outputs: Iterable[Any], given: Iterable[int]) -> dict[int, bool]:
        """Whether each value is written inside its only reader's line; else it has a line of its own."""
        uses: dict[int, int] = {each.place: 2 for each in outputs if isinstance(each, Recorded)}
        for place in needed:
            text, of = self._values[place]
            for number, each in enumerate(of):
                if isinstance(each, Recorded):
                    uses[each.place] = uses.get(each.place, 0) + text.count(f"{{{number}}}")
        inner: dict[int, bool] = {}
        depth: dict[int, int] = {}
        for place in needed:
            inside = (depth.get(each.place, 0) for each in self._values[place][1] if isinstance(each, Recorded))
            depth[place] = 1 + max(inside, default=0)
            inner[place] = uses[place] == 1 and depth[place] < DEEPEST
            if not inner[place]:
                depth[place] = 0
        return inner

    def _read(self, place: int, inner: dict[int, bool], given: Iterable[int]) -> set[int]:
        """What has a line of its own, or is given, of what a line reads."""
        found: set[int] = set()
        for each in self._values[place][1]:
            if isinstance(each, Recorded):
                found |= self._read(each.place, inner, given) if inner.get(each.place) else {each.place}
        return found

    def _text(self, place: int, inner: dict[int, bool], names: dict[int, str], *, whole: bool = False) -> str:
        text, of = self._values[place]
        filled = text.format(*(self._written(each, inner, names) for each in of))
        return filled if whole else f"({filled})"

    def _written(self, each: Any, inner: dict[int, bool], names: dict[int, str]) -> str:
        if isinstance(each, str):
            return each
        if not isinstance(each, Recorded):
            return f"({np.asarray(each).item()!r})"
        return self._text(each.place, inner, names) if inner.get(each.place) else names[each.place]


def _is(each: Any, number: int) -> bool:
    return not isinstance(each, Recorded) and bool(each == number)


def _each(function: Any, *of: Any) -> Any:
    """A function of numbers, element by element: a number, or an array of them."""
    tape = next((each.tape for each in _elements(of) if isinstance(each, Recorded)), None) or Tape()
    if all(np.ndim(each) == 0 for each in of):
        return tape.apply(function, *(each.item() if isinstance(each, np.ndarray) else each for each in of))
    arrays = np.broadcast_arrays(*(_as_objects(each) for each in of))
    found = np.empty(arrays[0].shape, dtype=object)
    for place in np.ndindex(found.shape):
        found[place] = tape.apply(function, *(array[place] for array in arrays))
    return found.view(RecordedArray)


def _as_objects(each: Any) -> Any:
    if isinstance(each, np.ndarray):
        return each.astype(object).view(np.ndarray)
    found = np.empty((), dtype=object)
    found[()] = each
    return found


def _elements(of: Iterable[Any]) -> Iterable[Any]:
    for each in of:
        yield from each.ravel().view(np.ndarray) if isinstance(each, np.ndarray) and each.dtype == object else (each,)


class _Recording:
    """What numpy's functions do with values that are recorded: of WRITTEN they are values of the tape as well."""

    def __array_ufunc__(self, function: Any, method: str, *of: Any, **options: Any) -> Any:
        if method == "__call__" and not options:
            return _each(function, *of)
        if method == "reduce":
            (array,) = of
            axes = options["axis"] if isinstance(options["axis"], tuple) else (options["axis"],)
            first = np.moveaxis(array.view(np.ndarray), axes, range(len(axes)))
            parts = first.reshape(-1, *first.shape[len(axes) :])
            return functools.reduce(lambda a, b: _each(function, a, b), parts)
        return NotImplemented

    def __array_function__(self, function: Any, types: Any, of: Any, options: Any) -> Any:
        if function is np.where:
            return _each(np.where, *of)
        if function is np.clip:
            least, most = of[1:]
            return _each(np.minimum, _each(np.maximum, of[0], least), most)
        if function is np.any:  # it may hold
            return True
        if function in (np.ndim, np.shape):
            return getattr(of[0], function.__name__)
        return NotImplemented


class Recorded(_Recording, NDArrayOperatorsMixin):
    """A number that is not known yet: a value of a tape, by its place."""

    __slots__ = ("place", "tape")
    ndim, shape, size = 0, (), 1

    def __init__(self, tape: Tape, place: int) -> None:
        self.tape, self.place = tape, place

    def __getitem__(self, place: int) -> Recorded:
        return self.tape.item(self, place)

    def __bool__(self) -> NoReturn:
        raise TypeError("an equation asks whether a recorded number holds: call it whole (helix_sim.core.recorded)")

    __hash__ = object.__hash__


class RecordedArray(_Recording, np.ndarray[Any, Any]):  # type: ignore[misc]  # what a ufunc returns is not an array
    """A few numbers, some of them recorded: those that an equation chooses among."""


def called_whole(function: F) -> F:
    """The function, which a tape calls as it is, since it asks about its values. Its arguments are given by place."""

    @functools.wraps(function)
    def called(*of: Any) -> Any:
        for each in of:
            if isinstance(each, Recorded):
                return each.tape.call(function, of)
        return function(*of)

    return called  # type: ignore[return-value]

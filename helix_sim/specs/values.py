"""What the fields of a spec are made of: numbers, counts, sizes, and quantities with their source."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    WithJsonSchema,
)
from pydantic.functional_validators import AfterValidator, BeforeValidator

from helix_sim.core.display import Shown
from helix_sim.core.errors import SpecError
from helix_sim.core.text import is_path, said, shortened
from helix_sim.core.units import FORMAT_BITS, parse_size

LIMIT = 10**12
"""The largest size that is read: beyond any machine, within double precision."""


def _size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str | int | float) else value


Size = Annotated[
    int,
    BeforeValidator(_size),
    Field(ge=1, le=LIMIT),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "integer", "minimum": 1, "maximum": LIMIT},
                {"type": "string", "pattern": r"^\s*[0-9][0-9_,]*(\.[0-9]+)?\s*([KMGT]i?|[kmgt])?\s*$"},
            ]
        }
    ),
]
"""A whole number of at least 1; text such as 128K or 1M is read by `units.parse_size`."""
Count = Annotated[StrictInt, Field(ge=1, le=10**9)]
NaturalCount = Annotated[StrictInt, Field(ge=0, le=10**9)]
if TYPE_CHECKING:
    NumberFormat = str
else:
    NumberFormat = Literal[tuple(FORMAT_BITS)]
"""Names of `units.FORMAT_BITS`, in its order."""
MathFormat = Literal["fp4", "fp8", "bf16"]
"""Formats that tensor cores multiply in; the machine's profile gives the dense rate of each."""
Text = Annotated[StrictStr, Field(min_length=1)]

MOST_LETTERS = 100
"""Of a name: one line of a terminal, a table's cell, a file's name."""


def _name(text: str) -> str:
    if not text[:1].isalnum() or not text.isprintable() or len(text) > MOST_LETTERS:
        rule = f"it begins with a letter or a digit, and is one line of at most {MOST_LETTERS} characters that print"
        raise ValueError(f"{said(text)} is no name: {rule}")
    return text


def _word(text: str) -> str:
    if not re.fullmatch(r"[^\W_][\w.+-]*", text) or len(text) > MOST_LETTERS:
        rule = f"at most {MOST_LETTERS} letters, digits and . _ + - in one word, a letter or a digit first"
        raise ValueError(f"{said(text)} is no name here: {rule}")
    return text


Name = Annotated[StrictStr, AfterValidator(_name)]
"""The name of a model, a machine, a timing, a sweep: it is printed, drawn, and made part of files of every kind."""
Word = Annotated[StrictStr, AfterValidator(_word)]
"""A name of one's own for a part of a file, such as a family: it is part of the names of ops, columns and keys, too."""


class Record(Shown, BaseModel):
    """Frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    def __repr__(self) -> str:
        name = getattr(self, "name", None)
        return f"<{type(self).__name__} {name}>" if isinstance(name, str) else shortened(super().__repr__(), 300)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields changed; what was derived from the old ones and kept is derived anew."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    def with_(self, *, source: str = "", **values: Any) -> Self:
        """A copy with some values changed, each checked as a file's would be.

        values: by field; those of a part as part_field, such as collective_latency_us=2.5 of a timing. source: where
        changed quantities come from; what does not begin with datasheet, measured or assumed is taken as assumed.
        SpecError for an unknown field, a value that it cannot have, or a quantity without a source.
        """
        changed = self
        for name, value in values.items():
            changed = _changed(changed, name, value, source, name)
        return changed


class NamesFiles(Record):
    """A record that may name other files: relative paths in it start in the folder of its own file."""

    _file: Path | None = PrivateAttr(default=None)

    @property
    def file(self) -> Path | None:
        """The YAML file that the record was read from; None of one that was written in Python."""
        return self._file

    def read_from(self, path: Path) -> Self:
        """The record, with the file that it was read from."""
        copied = self.model_copy()
        copied._file = path.absolute()
        return copied

    def located(self, name: str) -> str:
        """A shipped name as it is, and a path as one that can be opened wherever the process stands."""
        return str(self._file.parent / name) if self._file is not None and is_path(name) else name


def _changed(record: Any, name: str, value: Any, source: str, shown: str) -> Any:
    """A record with one value changed, of its own or of one of its parts; shown: as the user named it."""
    fields = type(record).model_fields
    if name in fields:
        old = getattr(record, name)
        try:
            if isinstance(old, Record) and {"value", "source"} <= set(type(old).model_fields):
                value = type(old).model_validate({"value": value, "source": _as_source(source, shown)})
            content = {key: getattr(record, key) for key in fields} | {name: value}
            type(record).model_validate({fields[key].alias or key: each for key, each in content.items()})
        except ValidationError as error:
            raise SpecError([f"{shown}: {problem['msg']}" for problem in error.errors(include_url=False)]) from None
        return record.model_copy(update={name: value})
    for part, old in ((part, getattr(record, part)) for part in fields if name.startswith(f"{part}_")):
        if isinstance(old, Record):
            inside = _changed(old, name.removeprefix(f"{part}_"), value, source, shown)
            return record.model_copy(update={part: inside})
    known = sorted(_names_of(record))
    close = difflib.get_close_matches(shown, known, n=1, cutoff=0.6)
    raise SpecError([f"{shown}: unknown; " + (f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}")])


def _names_of(record: Record) -> list[str]:
    """What `with_` can change in a record."""
    names = []
    for name in type(record).model_fields:
        value = getattr(record, name)
        if isinstance(value, Record) and "value" not in type(value).model_fields:
            names += [f"{name}_{each}" for each in _names_of(value)]
        else:
            names.append(name)
    return names


def _as_source(source: str, shown: str) -> str:
    if not source.strip():
        raise SpecError([f'{shown}: say where it comes from, such as source="what if"'])
    return source if source.startswith(("datasheet", "measured", "assumed")) else f"assumed: {source}"


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{said(value)} is not a number{_exponent_hint(value)}")
    if isinstance(value, int) and value.bit_length() > 1000:
        raise ValueError(f"{said(value)} is too large")
    if not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    return value


def _exponent_hint(value: Any) -> str:
    """YAML 1.1 reads 8e12 as text: say how to write it."""
    if not isinstance(value, str):
        return ""
    try:
        number = float(value)
    except ValueError:
        return ""
    return f"; YAML reads it as text, write {number:.1e}" if math.isfinite(number) else ""


Number = Annotated[float, BeforeValidator(_number)]
Source = Annotated[StrictStr, Field(pattern=r"^(datasheet|measured|assumed)\b.*\S")]
VALUE = "the number, in the unit that the key's name ends in [number]"
SOURCE = "where it comes from: datasheet, measured or assumed, then which, with the URL of a public one [text]"


MOST, LEAST = 1e15, 1e-15
"""Of a quantity that is read, in whatever unit, none aside: products and ratios of a few of them are numbers still."""


class Quantity(Record):
    """A number and where it comes from: `datasheet: …`, `measured: …` or `assumed: …`."""

    value: Annotated[Number, Field(ge=0, le=MOST)] = Field(description=VALUE)
    source: Source = Field(description=SOURCE)

    def scale(self, factor: float) -> Self:
        """The quantity times a factor, with a source that says so; itself where the factor is 1."""
        if factor == 1:
            return self
        source = f"assumed: {factor:g} times what it was ({self.source})"
        return self.model_copy(update={"value": self.value * factor, "source": source})


class Positive(Quantity):
    """A quantity above zero."""

    value: Annotated[Number, Field(gt=0, ge=LEAST, le=MOST)] = Field(description=VALUE)


class Share(Quantity):
    """A share of a datasheet rate that is reached, in (0, 1]."""

    value: Annotated[Number, Field(gt=0, ge=LEAST, le=1)] = Field(description="of the datasheet's rate [share]")


class Fraction(Quantity):
    """A share that may be none, in [0, 1]."""

    value: Annotated[Number, Field(ge=0, le=1)] = Field(description="of the whole [share]")


class WholeQuantity(Record):
    """A whole number and where it comes from."""

    value: Count = Field(description="the number [count]")
    source: Source = Field(description=SOURCE)


class Flag(Record):
    """A yes or no and where it comes from."""

    value: StrictBool = Field(description="whether it holds [yes or no]")
    source: Source = Field(description=SOURCE)

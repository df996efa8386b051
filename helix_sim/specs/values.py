"""What the fields of a spec are made of: numbers, counts, sizes, and quantities with their source."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, WithJsonSchema
from pydantic.functional_validators import BeforeValidator

from helix_sim.core.text import said
from helix_sim.core.units import parse_size

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
NumberFormat = Literal[
    "fp4", "mxfp4", "nvfp4", "int4", "int4-zero", "int4-g64", "int4-g64-zero", "int4-g32", "int4-g32-zero",
    "fp8", "fp8-block", "mxfp8", "int8", "int8-g128", "int8-g128-zero", "bf16", "fp16", "fp32",
]  # fmt: skip
"""Names of `units.FORMAT_BITS`, in its order."""
MathFormat = Literal["fp4", "fp8", "bf16"]
"""Formats that tensor cores multiply in; the machine's profile gives the dense rate of each."""
Text = Annotated[StrictStr, Field(min_length=1)]


class Record(BaseModel):
    """Frozen, and no key that it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with some fields changed; what was derived from the old ones and kept is derived anew."""
        copied = super().model_copy(update=update, deep=deep)
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied


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


class Quantity(Record):
    """A number and where it comes from: `datasheet: …`, `measured: …` or `assumed: …`."""

    value: Annotated[Number, Field(ge=0)] = Field(description=VALUE)
    source: Source = Field(description=SOURCE)

    def scale(self, factor: float) -> Self:
        """The quantity times a factor, with a source that says so; itself where the factor is 1."""
        if factor == 1:
            return self
        source = f"assumed: {factor:g} times what it was ({self.source})"
        return self.model_copy(update={"value": self.value * factor, "source": source})


class Positive(Quantity):
    """A quantity above zero."""

    value: Annotated[Number, Field(gt=0)] = Field(description=VALUE)


class Share(Quantity):
    """A share of a datasheet rate that is reached, in (0, 1]."""

    value: Annotated[Number, Field(gt=0, le=1)] = Field(description="of the datasheet's rate [share]")


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

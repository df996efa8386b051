"""The equations of the docs' model pages, read and evaluated: letters, blocks of work, forms of collectives."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

MODEL = Path(__file__).parents[1] / "docs" / "model"

Number = float


def value(formula: str, letters: Mapping[str, Number]) -> Number:
    """A formula of the pages with its letters' values: ·, −, ceil, floor, min, max, gcd, mod, and [condition]."""
    text = formula.replace("·", "*").replace("−", "-").replace(" mod ", " % ").replace("×", "*")
    text = re.sub(r"\[([^\]]+)\]", lambda condition: f"(1 if {re.sub(r'(?<![<>])=', '==', condition[1])} else 0)", text)
    functions: dict[str, Callable[..., Number]] = {
        "ceil": math.ceil,
        "floor": math.floor,
        "min": min,
        "max": max,
        "gcd": lambda a, b: math.gcd(int(a), int(b)),
    }
    return float(eval(text, {"__builtins__": {}}, {**functions, **letters}))


def with_letters(page: str, letters: Mapping[str, Number]) -> dict[str, Number]:
    """The letters that a page derives, beside those given; each may use those above it."""
    found = dict(letters)
    for line in blocks(page, "letters")[0].splitlines():
        name, formula = line.split("=", 1)
        found[name.strip()] = value(re.split(r" {2,}", formula.strip())[0], found)
    return found


def formula_of(page: str, letter: str) -> str:
    """The formula by which a page derives a letter."""
    lines = dict(line.split("=", 1) for line in blocks(page, "letters")[0].splitlines())
    return next(re.split(r" {2,}", text.strip())[0] for name, text in lines.items() if name.strip() == letter)


def blocks(page: str, kind: str) -> list[str]:
    """The code blocks of a kind on a page of the model."""
    text = (MODEL / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Section:
    """One equation of the pages: the function, its file, the ops that it makes, and what they ask by word."""

    function: str
    file: str
    ops: list[str]
    work: dict[str, str]


def sections() -> Iterator[Section]:
    """Every op's section, of all pages of the model."""
    for path in sorted(MODEL.glob("*.md")):
        for part in re.split(r"^### ", path.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
            if found := re.search(r"^```work\n(.*?)^```$", part, re.DOTALL | re.MULTILINE):
                named = re.search(r"^Ops: (.*); in `(.*)`$", part, re.MULTILINE)
                assert named, f"{path.name}: {part.splitlines()[0]} has no line `Ops: …; in …`"
                yield Section(
                    function=part.splitlines()[0].strip(),
                    file=named[2],
                    ops=re.findall(r"`(\w+)`", named[1]),
                    work=dict(re.split(r" {2,}", line, maxsplit=1) for line in found[1].splitlines()),
                )

"""The project's own files name what is there."""

import re
import tomllib
from pathlib import Path

from missing_extras import EXTRAS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_extra_that_a_run_asks_for_is_one_of_the_projects():
    asked = {name for extra in EXTRAS for name in re.findall(r"'\.\[(\w+)\]'", extra.command)}
    assert asked <= set(PROJECT["project"]["optional-dependencies"])


def test_what_the_archives_include_exists():
    targets = PROJECT["tool"]["hatch"]["build"]["targets"]
    for path in (*targets["sdist"]["include"], *targets["wheel"]["packages"], *targets["wheel"]["force-include"]):
        assert (ROOT / path).exists(), path

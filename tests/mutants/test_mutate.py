"""The tool that makes mutants: it finds what can go wrong, names it so that it is found again, and keeps its lists."""

from __future__ import annotations

import ast
import csv
import itertools
from types import FunctionType

import pytest
import yaml
from mutants import mutate

TEXT = """
EDGE = 16
Either = Head | Latent

def share(x, n, /, *, scale=2):
    '''A docstring of 3 words.'''
    if x.tpa > EDGE:
        raise ValueError(f"{x} is more than {EDGE + 1}")
    return larger(x.tokens - n, 0) * scale
"""


def changes() -> list[str]:
    return [f"{each.where}: {each.change}" for each in mutate.mutants_of("m.py", ast.parse(TEXT))]


def test_operators_terms_edges_constants_letters_and_functions_go_wrong():
    assert {
        ": 16 → 17",
        "share: x.tpa > EDGE → x.tpa >= EDGE",
        "share: x.tpa → x.kvp",
        "share: x.tokens - n → x.tokens + n",
        "share: x.tokens - n → x.tokens",
        "share: larger → smaller",
        "share: 0 → 1",
        "share: larger(x.tokens - n, 0) * scale → scale",
        "share: larger(x.tokens - n, 0) * scale → larger(x.tokens - n, 0) / scale",
    } <= set(changes())


def test_sentences_and_refusals_do_not_go_wrong():
    assert not [change for change in changes() if "EDGE + 1" in change or "docstring" in change or "Head" in change]


def test_a_mutant_is_wrong_while_it_is_made_and_true_again():
    tree = ast.parse(TEXT)
    true = ast.unparse(tree)
    wrong = set()
    for mutant in mutate.mutants_of("m.py", tree):
        with mutant.made(tree):
            wrong.add(ast.unparse(tree))
        assert ast.unparse(tree) == true, mutant.change
    assert true not in wrong
    assert len(wrong) == len(changes())


def test_every_name_is_one_mutants():
    _, found = mutate.all_mutants(mutate.files(mutate.SUBJECTS))
    assert len({mutant.name for mutant in found}) == len(found) > 2000


def test_a_wrong_function_takes_the_place_of_the_true_one():
    path = "helix_sim/timing/overlap.py"
    trees, found = mutate.all_mutants([path])
    (mutant,) = (each for each in found if each.name == (path, "pipelined", "larger → smaller"))
    ((true, wrong),) = mutate.wrong_functions(mutant, trees[path])
    from helix_sim.timing.overlap import pipelined

    copy = FunctionType(pipelined.__code__, pipelined.__globals__)
    copy.__kwdefaults__ = pipelined.__kwdefaults__
    assert copy(2.0, 1.0, 3) == 7
    mutate.put_wrong([(true, wrong)], [copy])
    assert copy(2.0, 1.0, 3) == 5


def test_a_constant_of_a_module_is_imported_wrong():
    path = "helix_sim/ops/attention.py"
    trees, found = mutate.all_mutants([path])
    (mutant,) = (each for each in found if each.where == "" and each.change == "16 → 17")
    assert mutate.wrong_functions(mutant, trees[path]) is None


def test_what_is_listed_as_no_different_is_still_a_mutant_and_says_why():
    listed = yaml.safe_load(mutate.EQUAL.read_text(encoding="utf-8"))
    _, found = mutate.all_mutants(sorted({each["path"] for each in listed}))
    names = {mutant.name for mutant in found}
    for each in listed:
        assert (each["path"], each["where"], each["change"]) in names, each
        assert len(each["why"]) > 20, each
    assert all(a != b for a, b in itertools.pairwise(listed))


@pytest.mark.skipif(not mutate.SCORE.exists(), reason='not yet counted: make mutants ARGS="--write"')
def test_the_score_that_the_documentation_shows_reaches_the_aim():
    head, *lines = mutate.SCORE.read_text(encoding="utf-8").splitlines()
    assert head.startswith("# python tests/mutants/mutate.py")
    rows = [
        {name: int(row[name]) for name in ("mutants", "killed", "equal", "survived")} for row in csv.DictReader(lines)
    ]
    assert all(row["killed"] + row["equal"] + row["survived"] == row["mutants"] for row in rows)
    differ = sum(row["killed"] + row["survived"] for row in rows)
    assert sum(row["killed"] for row in rows) / differ >= mutate.AIM


@pytest.mark.parametrize("subject", mutate.SUBJECTS)
def test_what_is_mutated_exists(subject):
    assert mutate.files([subject])

"""Whole verbs on hostile files: a sample of what `python tests/fuzz/verbs.py` runs ten thousand times a kind."""

import os

import pytest
from fuzz import verbs

COUNT = int(os.environ.get("HELIX_SIM_FUZZ_VERBS", "8"))


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch):
    from helix_sim.output import plot, report

    monkeypatch.setattr(plot, "save", plot.save)
    monkeypatch.setattr(report, "plotly_script", report.plotly_script)
    verbs.without_pictures(200)


@pytest.mark.parametrize("kind", verbs.KINDS)
def test_a_verb_on_hostile_files_ends_with_an_answer_or_a_sentence(kind):
    verbs.failure(kind, "what is imported and kept", most_s=60)
    for seed in range(COUNT):
        wrong, _ = verbs.failure(kind, seed)
        assert not wrong, f"{kind} {seed}: {wrong}"


@pytest.mark.parametrize("kind", verbs.KINDS)
def test_a_sample_reaches_answers_and_refusals(kind):
    verbs.failure(kind, "what is imported and kept", most_s=60)
    codes = set()
    for seed in range(100):
        codes.add(verbs.failure(kind, seed)[1])
        if codes & {0, 1} and 2 in codes:
            return
    pytest.fail(f"all that {kind} ends with is {codes}")


def spin(rng, folder):
    while True:
        pass


def test_the_fuzzer_sees_a_traceback_a_hang_and_a_steered_terminal(monkeypatch):
    from helix_sim.cli import files

    made = {
        "raises": (lambda rng, folder: 1 / 0, "ZeroDivisionError"),
        "spins": (spin, "more than"),
        "bug": (lambda rng, folder: ["models"], "this is a fault of helix_sim"),
        "steers": (lambda rng, folder: ["machines"], "a control character"),
    }
    monkeypatch.setattr("helix_sim.specs.catalogue.models", lambda: [][1])
    monkeypatch.setattr(files, "print_rows", lambda rows: print("\x1b[2J"))
    for kind, (build, wrong) in made.items():
        monkeypatch.setitem(verbs.KINDS, kind, build)
        assert wrong in verbs.failure(kind, 0, most_s=0.3)[0], kind

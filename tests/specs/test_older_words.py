"""Files of the last release are read for one more: a timing was a clock, a machine was hardware."""

import re

import pytest

from helix_sim.core.errors import SpecError
from helix_sim.search.plan import plan
from helix_sim.specs.catalogue import check, machines, models
from helix_sim.specs.load import data_folder, load_machine, load_sweep, load_timing

FILES = {
    "timing": data_folder("hardware_profiles/timings") / "paper.yaml",
    "machine": data_folder("hardware_profiles") / "h200-hgx.yaml",
    "sweep": data_folder("sweeps") / "paper-llama-3.1-405b.yaml",
}


def older(kind, folder):
    """A shipped file as the last release wrote it, and today's."""
    text = FILES[kind].read_text(encoding="utf-8")
    path = folder / "older.yaml"
    text, count = re.subn(r"(?m)^kind: timing|^timing: ", lambda m: m[0].replace("timing", "clock"), text)
    text, more = re.subn(r"(?m)^kind: machine|^machine: ", lambda m: m[0].replace("machine", "hardware"), text)
    assert count + more
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("kind", "load"), [("timing", load_timing), ("machine", load_machine), ("sweep", load_sweep)])
def test_a_file_in_the_older_words_is_what_it_was(kind, load, tmp_path):
    assert load(older(kind, tmp_path)).model_dump() == load(FILES[kind]).model_dump()


def test_a_sweep_in_the_older_words_is_the_same_search(tmp_path):
    assert plan(load_sweep(older("sweep", tmp_path))).digest == plan(load_sweep(FILES["sweep"])).digest


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("timing", ["kind: clock is now kind: timing"]),
        ("machine", ["kind: hardware is now kind: machine"]),
        ("sweep", ["clock is now timing", "hardware is now machine"]),
    ],
)
def test_check_says_which_words_are_older(kind, words, tmp_path):
    path = older(kind, tmp_path)
    old, new = check([path, FILES[kind]])
    assert old.remarks == [f"{path}: {text}, and goes with the next release" for text in words]
    assert old.problems == new.remarks == []


def test_both_words_at_once_are_an_unknown_key(tmp_path):
    path = tmp_path / "both.yaml"
    path.write_text(FILES["sweep"].read_text(encoding="utf-8") + "\nclock: ideal\n", encoding="utf-8")
    with pytest.raises(SpecError, match="clock: unknown key"):
        load_sweep(path)


def test_a_measured_clock_may_still_say_what_its_machine_says_today(tmp_path):
    text = (data_folder("hardware_profiles/measured_timings") / "h100-vllm.yaml").read_text(encoding="utf-8")
    facts = "  sms: {value: 132, source: 'datasheet: x'}\n  l2_MB: {value: 50, source: 'datasheet: x'}\n"
    path = tmp_path / "older.yaml"
    path.write_text(text.replace("kind: timing", "kind: clock").replace("calibration:\n", f"calibration:\n{facts}"))
    assert load_timing(path) == load_timing("h100-vllm")


def test_what_is_shipped_is_a_record_each():
    assert {row["name"] for row in models()} >= {"deepseek-r1", "llama-3.1-405b"}
    assert {row["name"] for row in machines()} >= {"gb200-nvl72", "h100-hgx"}
    assert all(row["hbm_GBps"] > 1000 for row in machines())

"""One door for layouts, one for formats, one for timings: the same options, sources and sentences in every verb."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from helix_sim.cli import app
from helix_sim.cli.options import FormatOptions, LayoutOptions, TimingOptions
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import AXES
from helix_sim.core.units import FORMAT_BITS
from helix_sim.search.layout_source import FORMATS, option, precision_of
from helix_sim.specs.load import load_machine, load_model
from helix_sim.specs.precision import Precision
from helix_sim.step import setting_of

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
OF_LAYOUTS = ("explain", "capacity", "export", "trace", "sensitivity")
OF_STEPS = tuple(verb for verb in OF_LAYOUTS if verb != "capacity")
"""Verbs whose answer has a latency."""
OF_FORMATS = (*OF_LAYOUTS, "recommend")
OF_TIMINGS = (*OF_FORMATS, "sweep", "reproduce", "report")
WITH_TIMINGS_OF_THEIR_OWN = ("compare", "validate")
"""Verbs that take several timings, or judge one."""
MORE = {"export": ["--to", "trtllm"], "recommend": ["--ttl-ms", "9", "--family", "tp", "--gpus", "2"]}
"""What else a verb has to be told."""


def options_of(verb: str) -> dict[str, Any]:
    """A verb's options by their long names."""
    return {name: parameter for parameter in COMMANDS[verb].params for name in parameter.opts}


def run(verb: str, *words: str, given: str | None = None) -> Any:
    """A verb's result in this process; what it raises is in its exception."""
    return CliRunner().invoke(app, [verb, *MORE.get(verb, []), *words], input=given)


def problems(verb: str, *words: str) -> list[str]:
    """The sentences that a verb ends with."""
    result = run(verb, *words)
    assert isinstance(result.exception, SpecError), result.output
    return result.exception.problems


# --- The same options ------------------------------------------------------------------------------------------------


def test_every_format_of_a_precision_is_an_option() -> None:
    own = {each.name for each in fields(FormatOptions)} - {each.name for each in fields(TimingOptions)} - {"formats"}
    assert own == set(FORMATS) == set(Precision.model_fields)


@pytest.mark.parametrize(("verbs", "names"), [
    (OF_LAYOUTS, [option(name) for name in AXES] + ["--context", "--query-tokens"]),
    (OF_FORMATS, [option(name) for name in FORMATS] + ["--formats"]),
    (OF_TIMINGS, ["--timing", "--clock"]),
])  # fmt: skip
def test_verbs_share_the_declaration_of_their_options(verbs: tuple[str, ...], names: list[str]) -> None:
    for name in names:
        shared = [options_of(verb)[name] for verb in verbs if not (verb == "recommend" and name == "--context")]
        assert len({(each.help, each.metavar, each.default, each.hidden) for each in shared}) == 1, name


def test_no_verb_has_an_option_of_a_group_that_it_declares_itself() -> None:
    for verb, command in COMMANDS.items():
        names = set(options_of(verb))
        assert len(names) == sum(len(parameter.opts) for parameter in command.params), f"{verb} has an option twice"
        if "--timing" in names and verb not in WITH_TIMINGS_OF_THEIR_OWN:
            assert verb in OF_TIMINGS, verb
        if "--weights" in names:
            assert verb in OF_FORMATS, verb
        if "--kvp" in names:
            assert verb in OF_LAYOUTS, verb


def test_what_the_older_name_was_is_hidden() -> None:
    assert {parameter.name for parameter in COMMANDS["explain"].params if getattr(parameter, "hidden", False)} == {
        "clock"
    }
    assert {verb for verb, command in COMMANDS.items() if command.hidden} == {"hardware"}


# --- The same sources ------------------------------------------------------------------------------------------------

LAYOUT = ("llama-3.1-8b", "h100-hgx", "--tpa", "2", "--batch", "4", "--context", "64K", "--timing", "ideal")


def ttl_ms(verb: str, tmp_path: Path, *source: str, given: str | None = None) -> float:
    """The TTL that a verb says of a layout, by its JSON or its file."""
    more = ["--out", str(tmp_path / "step.json")] if verb == "trace" else ["--json"]
    result = run(verb, *source, *more, given=given)
    assert result.exit_code == 0, (result.output, result.exception)
    if verb == "trace":
        return float(json.loads((tmp_path / "step.json").read_text())["otherData"]["ttl_us"]) / 1e3
    return float(json.loads(result.stdout)["ttl_s"]) * 1e3


@pytest.mark.parametrize("verb", OF_STEPS)
def test_every_verb_takes_a_layout_from_every_source(verb: str, tmp_path: Path) -> None:
    expected = ttl_ms("explain", tmp_path, *LAYOUT)
    answer = run("explain", *LAYOUT, "--json").stdout
    (tmp_path / "answer.json").write_text(answer)
    (tmp_path / "choices.json").write_text(json.dumps({"choices": [{}, json.loads(answer)]}))
    sources = [LAYOUT, [f"{tmp_path}/answer.json"], [f"{tmp_path}/answer.json:1"], [f"{tmp_path}/choices.json:2"]]
    found = [ttl_ms(verb, tmp_path, *source) for source in sources]
    found.append(ttl_ms(verb, tmp_path, "-", given=answer))
    assert found == pytest.approx([expected] * 5, rel=1e-12)


@pytest.mark.parametrize("verb", OF_STEPS)
def test_options_go_before_what_an_answer_says_in_every_verb(verb: str, tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text(run("explain", *LAYOUT, "--json").stdout)
    changes = ("--batch", "2", "--context", "128K", "--kv", "bf16", "--timing", "paper")
    source = f"{tmp_path}/answer.json"
    assert ttl_ms(verb, tmp_path, source, *changes) == pytest.approx(
        ttl_ms("explain", tmp_path, *LAYOUT, *changes), rel=1e-12
    )


def test_a_number_of_a_sweep_is_one_layout_in_every_verb(tmp_path: Path) -> None:
    source = ("paper-llama-3.1-405b:0", "--tpa", "8", "--context", "1000", "--kv", "fp8", "--weights", "fp8")
    found = {ttl_ms(verb, tmp_path, *source) for verb in ("explain", "trace", "sensitivity")}
    assert len(found) == 1


# --- The same sentences ----------------------------------------------------------------------------------------------

HERE = ("llama-3.1-8b", "h100-hgx")


SIZE = "is not a size; write a positive number such as 4096, 128K, 1M or 1Mi"
SENTENCES = [
    (OF_LAYOUTS, "--kvp", "0", "'0' is not a whole number of at least 1"),
    (OF_LAYOUTS, "--tpa", "x", f"'x' {SIZE}"),
    (OF_LAYOUTS, "--batch", "nan", f"'nan' {SIZE}"),
    (OF_LAYOUTS, "--dp", "10T", "10000000000000 is not a whole number from 1 to 10^12"),
    (OF_LAYOUTS, "--context", "2e6T", f"'2e6T' {SIZE}"),
    (OF_FORMATS, "--weights", "fp5", f"'fp5' is not one of {', '.join(FORMAT_BITS)}"),
    (OF_FORMATS, "--output-math", "int8", "'int8' is not one of fp4, fp8, bf16"),
    (OF_FORMATS, "--math", "fp4", "h100-hgx has no fp4 arithmetic; use fp8 or bf16"),
    (OF_FORMATS, "--timing", "papier", "there is no timing named 'papier'; did you mean paper?; "
     "or give the path of a .yaml file"),
]  # fmt: skip


@pytest.mark.parametrize(("verbs", "name", "value", "sentence"), SENTENCES, ids=lambda each: str(each)[:24])
def test_a_bad_option_is_the_same_sentence_in_every_verb(
    verbs: tuple[str, ...], name: str, value: str, sentence: str
) -> None:
    for verb in verbs:
        assert problems(verb, *HERE, name, value) == [f"{name}: {sentence}"]


@pytest.mark.parametrize("machine", ["h100-hgx", "gb200-nvl72"])
@pytest.mark.parametrize("model", ["deepseek-r1", "llama-3.1-405b", "gpt-oss-120b"])
def test_formats_of_a_model_are_the_same_from_python_and_by_their_name(model: str, machine: str) -> None:
    record = load_model(model)
    for name, stored in record.formats.items():
        by_name = precision_of(record, load_machine(machine), {}, named=name)
        assert setting_of(record, machine, precision=stored).precision == by_name


def test_a_file_of_formats_is_read_by_the_same_words_in_every_verb(tmp_path: Path) -> None:
    (tmp_path / "formats.yaml").write_text("{weights: fp5, head_maths: fp8}")
    for verb in OF_FORMATS:
        found = problems(verb, *HERE, "--formats", str(tmp_path / "formats.yaml"))
        assert found[0].startswith(f"{tmp_path}/formats.yaml: weights: 'fp5' is not one of")
        assert found[1].startswith(f"{tmp_path}/formats.yaml: head_maths: there is no such format")


@pytest.mark.parametrize("verb", ["sweep", "report"])
def test_a_bad_timing_of_a_sweep_is_that_sentence_too(verb: str, tmp_path: Path) -> None:
    found = problems(verb, "paper-deepseek-r1", "--out", str(tmp_path / "out"), "--timing", "papier")
    assert found[0].startswith("--timing: there is no timing named 'papier'")


@pytest.mark.parametrize(
    "words",
    [
        ["sensitivity", *HERE, "--ttl-ms", "9"],
        ["sensitivity", *HERE, "--family", "tp"],
        ["sensitivity", *HERE, "--gpus-at-most", "4"],
        ["sensitivity", *HERE, "--frontier", "--tpa", "2"],
        ["sensitivity", *HERE, "--set", "hbm_bandwidth=2x", "--family", "tp", "--out", "x"],
        ["sensitivity", "paper-llama-3.1-405b", "--weights", "fp8"],
        ["sweep", "paper-llama-3.1-405b", "--out", "x", "--scheduler", "tcp://x:1"],
        ["sweep", "paper-llama-3.1-405b", "--out", "x", "--executor", "serial", "--workers", "2"],
        ["sweep", "paper-llama-3.1-405b", "--out", "x", "--no-plots", "--against", "joules_per_token"],
        ["compare", "--model", HERE[0], "--machine", HERE[1], "--context", "8K", "--ttl-ms", "9", "--against", "x"],
        ["explain", *HERE, "--draft", "llama-3.1-8b-eagle3"],
        ["trace", *HERE, "--draft", "llama-3.1-8b-eagle3", "--out", "x"],
        ["capacity", *HERE, "--context", "8K", "--mix", "8K:0.5,16K:0.5"],
        ["capacity", *HERE, "--query-tokens", "4"],
        ["export", *HERE, "--context", "8K", "--to", "vllm", "--stack", "sglang"],
        ["recommend", *HERE, "--ttl-ms", "9", "--draft-tokens", "2"],
        ["recommend", *HERE, "--ttl-ms", "9", "--objective", "per-gpu"],
        ["sensitivity", *HERE, "--frontier", "--query-tokens", "2"],
        ["sensitivity", *HERE, "--frontier", "--draft-tokens", "2"],
        ["sensitivity", "paper-llama-3.1-405b", "--draft", "llama-3.1-8b-eagle3"],
        ["sensitivity", "paper-llama-3.1-405b", "--context", "8K"],
        ["reproduce", "fig1", "--timing", "ideal"],
        ["reproduce", "fig5", "--draws", "3"],
        ["validate", "--kernels", "--out", "x"],
        ["validate", "--kernels", "--timing", "paper"],
        ["validate", "--measurements", "x.csv", "--framework", "vllm"],
        ["validate", "--measurements", "x.csv", "--peer"],
        ["regress", "--update", "--baseline", "x", "--curves-only"],
        ["validate", "--kernels", "--no-peer"],
        ["validate", "--end-to-end", "--system", "gb200"],
        ["calibrate", "gpu", "--out", "x.yaml", "--system", "gb200"],
        ["calibrate", "silicon", "--out", "x", "--system", "gb200", "--framework", "trtllm", "--from", "x.csv"],
    ],
    ids=" ".join,
)
def test_an_option_that_the_mode_would_ignore_is_refused(words: list[str], tmp_path: Path) -> None:
    words = [str(tmp_path / word) if word.startswith("x") else word for word in words]
    (sentence,) = problems(*words)
    assert any(
        way in sentence for way in ("leave", "change it there", "measures the GPU", "give both", "must be given too")
    )
    assert "_" not in re.findall(r"--[\w-]+", sentence)[0], sentence
    assert list(tmp_path.iterdir()) == []


def test_a_search_of_a_machine_drafts_where_it_is_told_to() -> None:
    search = ["sensitivity", *HERE, "--frontier", "--context", "8K", "--gpus-at-most", "1", "--family", "tp", "--json"]
    drafted = json.loads(run(*search, "--draft", "llama-3.1-8b-eagle3").stdout)
    plain = json.loads(run(*search).stdout)
    assert "acceptance" in {row["knob"] for row in drafted["elasticities"]} - {
        row["knob"] for row in plain["elasticities"]
    }


@pytest.mark.parametrize("bad", ["nan", "inf", "-1", "0", "x", "1e400"])
def test_a_number_that_is_none_names_its_option(bad: str, tmp_path: Path) -> None:
    assert problems("recommend", *HERE, "--ttl-ms", bad)[0].startswith("--ttl-ms: ")
    assert problems("sensitivity", *HERE, "--frontier", "--family", "tp", "--ttl-ms", bad)[0].startswith("--ttl-ms: ")
    assert problems("regress", "--rtol", bad)[0].startswith("--rtol: ")
    (tmp_path / "config.json").write_text("{}")
    assert problems("import-hf", str(tmp_path), "--published-parameters", bad)[0].startswith("--published-parameters: ")


def test_a_mix_is_refused_where_a_search_would_take_its_mean() -> None:
    found = problems("sensitivity", *HERE, "--frontier", "--context", "32K:0.7,1M:0.3")
    assert found[0].startswith("--context: '32K:0.7,1M:0.3' is not a size")


# --- The older name --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", OF_STEPS)
def test_clock_is_read_as_timing_with_a_remark(verb: str, tmp_path: Path) -> None:
    widths = LAYOUT[:-2]
    found = run(verb, *widths, "--clock", "ideal", *(["--out", str(tmp_path / "s.json")] if verb == "trace" else []))
    assert found.exit_code == 0
    assert "--clock is now --timing" in found.stderr
    assert problems(verb, *LAYOUT, "--clock", "ideal") == ["--clock is now --timing; give --timing alone"]


def test_a_layout_of_the_older_clock_is_that_of_the_timing() -> None:
    by_name = [run("explain", *LAYOUT[:-2], name, "ideal", "--json") for name in ("--clock", "--timing")]
    assert json.loads(by_name[0].stdout) == json.loads(by_name[1].stdout)


def test_a_group_is_spread_in_the_order_it_is_written() -> None:
    names = [parameter.name for parameter in LayoutOptions.parameters()]
    assert names[:4] == ["source", "machine", "context", "query_tokens"]
    assert names.index("chunks") < names.index("weights") < names.index("timing")


# --- Help ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", [name for name, command in COMMANDS.items() if not command.hidden])
def test_help_has_two_examples_that_parse_and_every_name_that_options_take(verb: str) -> None:
    from helix_sim.answers.sensitivity import SEARCH_KNOBS
    from helix_sim.cli.help import EXAMPLES
    from helix_sim.specs.load import shipped, shipped_families

    shown = CliRunner().invoke(app, [verb, "--help"]).stdout
    text = " ".join(shown.split())
    assert len(EXAMPLES[verb]) >= 2
    for example in EXAMPLES[verb]:
        assert example in text
        words = example.split(" > ")[0].split()[2:]
        given = {word for word in words if word.startswith("--")}
        assert given <= options_of(verb).keys(), example
    names = {"--family": list(shipped_families()), "--timing": shipped("timing"), "--weights": list(FORMAT_BITS),
             "--set": list(SEARCH_KNOBS) if verb == "sensitivity" else []}  # fmt: skip
    for name in options_of(verb).keys() & names.keys():
        assert [each for each in names[name] if each not in text] == [], name


NARROW = {
    "explain": ["explain", *LAYOUT],
    "capacity": ["capacity", *LAYOUT],
    "recommend": ["recommend", *HERE, "--ttl-ms", "20", "--context", "64K", "--timing", "h100-trtllm", "--total-gpus",
                  "16", "--family", "helix", "--gpus-at-most", "2"],
    "recommend nothing": ["recommend", *HERE, "--ttl-ms", "1", "--context", "64K", "--gpus", "1", "--family", "tp"],
    "compare": ["compare", "--model", HERE[0], "--machine", HERE[1], "--context", "64K", "--ttl-ms", "10", "--family",
                "tp"],
    "sensitivity": ["sensitivity", *LAYOUT],
    "what if": ["sensitivity", *HERE, "--context", "8K", "--gpus-at-most", "1", "--family", "tp", "--set",
                "hbm_bandwidth=2x"],
    "sweep": ["sweep", "small.yaml", "--out", "out", "--no-plots"],
    "trace": ["trace", *LAYOUT],
    "reproduce": ["reproduce", "fig3", "--out", "out"],
    "validate": ["validate", "--measurements", "servings.csv", "--out", "out"],
    "check": ["check", "small.yaml"],
    "models": ["models"],
    "machines": ["machines"],
}  # fmt: skip
SMALL = """
{kind: sweep, name: small, description: a small search, model: llama-3.1-8b, machine: h100-hgx, timing: h100-trtllm,
 precision: {weights: fp8, kv: fp8, math: fp8}, contexts: [64K, 8K], gpus: {from: 1, to: 4},
 batch: {dense_to: 4, growth: 1.5, to: 16}, families: [tp, helix]}
"""


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", NARROW)
def test_a_terminal_of_any_width_holds_what_a_verb_prints(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(SMALL)
    serving = "system,framework,dp,ep,isl,osl,concurrency,tpot_s\ngb200,trtllm,8,8,99,99,64,0.01\n"
    Path("servings.csv").write_text(serving)
    found = CliRunner().invoke(app, NARROW[name])
    assert found.stdout, found.exception
    assert [line for line in found.stdout.splitlines() if len(line) > width] == []


QUICK = ("explain", "capacity", "export", "trace", "sensitivity", "models", "machines", "schema")
"""Verbs whose examples are run here; those of the others search for seconds, and the tests of each verb run it."""


@pytest.mark.parametrize("verb", QUICK)
def test_an_example_of_help_does_what_it_says(verb: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from helix_sim.cli.help import EXAMPLES

    monkeypatch.chdir(tmp_path)
    choice = run(
        "recommend", *HERE, "--ttl-ms", "20", "--context", "8K", "--family", "tp", "--stack", "trtllm", "--json"
    )
    Path("answer.json").write_text(choice.stdout)
    for example in EXAMPLES[verb]:
        words = example.split(" > ")[0].split()[1:]
        if "paper-deepseek-r1:4711" in words or "--ttl-ms" in words or "gb200-trtllm" in words:
            continue
        found = CliRunner().invoke(app, words)
        assert found.exit_code == 0, (example, found.output, found.exception)


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("explain", ["TTL is the", "TPA and TPF are", "KVP shards", "HOP-B overlaps", "Medha is", "binds", "wire is"]),
        ("recommend", ["TTL is the", "Medha is", "binds"]),
        ("regress", ["hypervolume is the area"]),
        ("validate", ["effective batch of a serving is"]),
    ],
)
def test_coined_words_are_explained_in_the_help_of_the_verbs_that_print_them(verb: str, words: list[str]) -> None:
    text = " ".join(CliRunner().invoke(app, [verb, "--help"]).stdout.split())
    assert [word for word in words if word not in text] == []
    assert "docs/reference/glossary.md" in text

"""One door to a layout: answers are their files and their content, numbers are those of one sweep's content."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_sim.answers.explain import explain
from helix_sim.core.errors import SpecError
from helix_sim.core.layout import AXES, LATER
from helix_sim.output.export import STACKS, export
from helix_sim.output.sweep_folder import write_sweep
from helix_sim.search.layout_source import FORMATS, REQUIRED, Options, pick, precision_of
from helix_sim.search.plan import plan
from helix_sim.specs.load import data_folder, load_machine, load_model, load_sweep
from helix_sim.specs.precision import Precision, StoredFormats

HALF_MEMORY = Options(context=64_000, widths={"tpa": 2, "batch": 4})

SWEEP = """
kind: sweep
name: mine
description: a few hundred layouts
model: {model}
machine: {machine}
timing: paper
precision: {{weights: fp8, kv: fp8, math: fp8}}
contexts: [64K]
gpus: {{from: 1, to: 4}}
batch: {{dense_to: 4, growth: 1.5, to: 8}}
families: [tp, helix]
"""


def own(folder: Path, kind: str, shipped: str, **values: float) -> Path:
    """A copy of a shipped file that keeps its name, some values changed."""
    text = (data_folder({"model": "model_specs", "machine": "hardware_profiles"}[kind]) / f"{shipped}.yaml").read_text()
    for name, value in values.items():
        text, found = re.subn(rf"(?m)^{name}: {{value: [\d.]+", f"{name}: {{value: {value}", text)
        assert found == 1
    path = folder / f"{kind}.yaml"
    path.write_text(text)
    return path


def answer_of(folder: Path, *source: Any, **changes: Any) -> Path:
    """An answer of explain in a file, some of its keys changed, or removed where None."""
    record = explain(*source).record() | changes
    path = folder / "answer.json"
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))
    return path


# --- Identity --------------------------------------------------------------------------------------------------------


def test_an_answer_of_ones_own_machine_that_kept_a_shipped_name_is_read_back_as_it_was(tmp_path: Path) -> None:
    machine = own(tmp_path, "machine", "h100-hgx", hbm_bandwidth_GBps=1675)
    asked = pick("llama-3.1-8b", str(machine), HALF_MEMORY)
    shipped = pick("llama-3.1-8b", "h100-hgx", HALF_MEMORY)
    assert asked.step.machine.name == shipped.step.machine.name
    assert asked.step.ttl_s > 1.3 * shipped.step.ttl_s
    again = pick(answer_of(tmp_path, asked))
    assert again.step.ttl_s == asked.step.ttl_s
    assert again.inputs == asked.inputs
    assert again.inputs["machine"].file == str(machine.resolve())


@pytest.mark.parametrize("kind", ["model", "machine", "timing"])
def test_an_input_that_has_changed_since_or_is_gone_is_said_in_one_sentence(kind: str, tmp_path: Path) -> None:
    (tmp_path / "timing.yaml").write_text((data_folder("hardware_profiles/timings") / "paper.yaml").read_text())
    files = {"model": own(tmp_path, "model", "llama-3.1-8b"), "machine": own(tmp_path, "machine", "h100-hgx")}
    files["timing"] = tmp_path / "timing.yaml"
    options = replace(HALF_MEMORY, timing=str(files["timing"]))
    answer = answer_of(tmp_path, str(files["model"]), str(files["machine"]), options)
    before = pick(answer).step.ttl_s
    text = files[kind].read_text()
    files[kind].write_text(f"# a remark changes nothing\n{text}")
    assert pick(answer).step.ttl_s == before
    key = {"model": "vocab_size: ", "machine": "gpus: {value: ", "timing": "latency_us: {value: "}[kind]
    files[kind].write_text(text.replace(key, f"{key}1", 1))
    with pytest.raises(SpecError, match=r"has changed since .*answer.json was written") as caught:
        pick(answer)
    assert len(caught.value.problems) == 1
    assert str(files[kind]) in caught.value.problems[0]
    files[kind].unlink()
    with pytest.raises(SpecError, match=f"its {kind} .* is gone"):
        pick(answer)


@pytest.mark.parametrize("key", ["model", "machine", "timing", "inputs", "context", "longest_context", "query_tokens",
                                 "precision", "layout"])  # fmt: skip
def test_what_an_answer_does_not_say_is_an_error_and_no_default(key: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=rf"answer.json: {key}\S* is missing"):
        pick(answer_of(tmp_path, "llama-3.1-8b", "h100-hgx", HALF_MEMORY, **{key: None}))


NEEDED = [("layout", name) for name in AXES if name not in LATER] + [("precision", name) for name in REQUIRED]
"""What an answer must say; a layout of before an axis was there does not use it."""


@pytest.mark.parametrize(("part", "name"), NEEDED)
def test_a_width_or_a_format_that_an_answer_lacks_is_an_error(part: str, name: str, tmp_path: Path) -> None:
    record = explain("llama-3.1-8b", "h100-hgx", HALF_MEMORY).record()
    del record[part][name]
    with pytest.raises(SpecError, match=rf"{part}.{name} is missing"):
        pick(answer_of(tmp_path, "llama-3.1-8b", "h100-hgx", HALF_MEMORY, **{part: record[part]}))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"machine": "h200-hgx"}, "machine is 'h200-hgx', and h100-hgx holds 'h100-hgx'"),
        ({"context": 0}, "context: 0 is not a whole number from 1 to 10"),
        ({"context": True}, "context: True is not a whole number"),
        ({"layout": {"tpa": 1.5}}, "layout.tpa: 1.5 is not a whole number"),
        ({"layout": {"wide": 1}}, "layout.wide is not known"),
        ({"precision": {"kv": "fp3"}}, "precision.kv: 'fp3' is not one of"),
        ({"precision": "fp8"}, "precision is 'fp8', not precision by name"),
        ({"inputs": {"model": {"digest": "0" * 12}}}, "inputs.model has no file"),
        ({"inputs": {"model": {"file": "llama-3.1-8b"}}}, "inputs.model is missing"),
        ({"choices": []}, "has no choices, and 1 is none of them"),
        ({"choices": [3]}, "choice 1 is 3, not an answer"),
    ],
)
def test_an_answer_that_was_tampered_with_is_a_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=re.escape(sentence)):
        pick(answer_of(tmp_path, "llama-3.1-8b", "h100-hgx", HALF_MEMORY, **changes))


def test_a_key_twice_in_an_answer_is_an_error(tmp_path: Path) -> None:
    answer = answer_of(tmp_path, "llama-3.1-8b", "h100-hgx", HALF_MEMORY)
    answer.write_text(answer.read_text().replace('"context":', '"context": 5, "context":', 1))
    with pytest.raises(SpecError, match="the key 'context' is repeated"):
        pick(answer)


def test_an_answer_of_a_program_is_known_by_its_digests_and_says_that_it_has_no_file(tmp_path: Path) -> None:
    step = pick("llama-3.1-8b", "h100-hgx", HALF_MEMORY).step
    assert explain(step).record()["ttl_s"] == step.ttl_s
    with pytest.raises(SpecError, match="made in Python"):
        pick(answer_of(tmp_path, step))


def test_an_answer_of_many_choices_is_read_back(tmp_path: Path) -> None:
    record = explain("llama-3.1-8b", "h100-hgx", HALF_MEMORY).record()
    path = tmp_path / "answer.json"
    path.write_text(json.dumps({"choices": [record] * 1000}))
    assert path.stat().st_size > 2**22
    assert pick(f"{path}:1000").step.layout.tpa == 2


@settings(max_examples=25, deadline=None)
@given(
    widths=st.fixed_dictionaries({axis: st.sampled_from([1, 2, 4]) for axis in ("tpa", "kvp", "dp", "pp")}),
    batch=st.integers(1, 9),
    context=st.sampled_from([1000, 64_000, 10**6]),
    query_tokens=st.sampled_from([1, 4]),
    formats=st.dictionaries(st.sampled_from(FORMATS), st.sampled_from(["fp8", "bf16"])),
    timing=st.sampled_from(["paper", "ideal", "h100-vllm"]),
)
def test_every_answer_is_read_back_as_the_step_it_was(
    tmp_path_factory: pytest.TempPathFactory, widths: dict[str, int], batch: int, context: int, query_tokens: int,
    formats: dict[str, str], timing: str,
) -> None:  # fmt: skip
    options = Options(
        context=context, query_tokens=query_tokens, timing=timing, widths=widths | {"batch": batch}, formats=formats
    )
    try:
        asked = pick("llama-3.1-70b", "h100-hgx", options)
    except SpecError:
        return
    again = pick(answer_of(tmp_path_factory.mktemp("answers"), asked))
    assert again.step.setting == asked.step.setting
    assert (again.step.layout, again.step.context) == (asked.step.layout, asked.step.context)
    assert again.step.ttl_s == asked.step.ttl_s


# --- Sweeps ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_sweep(tmp_path: Path) -> Callable[..., Path]:
    """A sweep of one's own model, which its YAML names beside it."""

    def write(**changes: str) -> Path:
        own(tmp_path, "model", "llama-3.1-8b")
        text = SWEEP.format(model="./model.yaml", machine="h100-hgx")
        for before, after in changes.items():
            text = text.replace(f"{before}: ", f"{before}: {after} #")
        (tmp_path / "mine.yaml").write_text(text)
        return tmp_path / "mine.yaml"

    return write


def test_paths_in_a_sweep_start_at_its_own_file(
    own_sweep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = own_sweep()
    digests = set()
    for place, name in ((tmp_path, "mine.yaml"), (tmp_path.parent, f"{tmp_path.name}/mine.yaml"), (Path("/"), path)):
        monkeypatch.chdir(place)
        planned = plan(load_sweep(str(name) if "/" in str(name) else f"./{name}"))
        assert planned.inputs["model"].file == str((tmp_path / "model.yaml").resolve())
        digests.add(planned.digest)
    assert len(digests) == 1


def test_a_sweep_whose_model_is_not_beside_it_names_the_place_it_looked_at(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(SWEEP.format(model="./none.yaml", machine="h100-hgx"))
    with pytest.raises(SpecError, match=re.escape(str(tmp_path / "none.yaml"))):
        plan(load_sweep(tmp_path / "mine.yaml"))


def test_a_number_of_ones_own_sweep_loads_by_its_file_its_digest_and_its_folder(
    own_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    path = own_sweep()
    summary = write_sweep(load_sweep(path), tmp_path / "out")
    with (tmp_path / "out" / "frontier.csv").open(newline="") as table:
        number = next(csv.DictReader(table))["id"]
    found = [pick(f"{source}:{number}") for source in (path, f"{tmp_path}/out")]
    held = pick(f"{path}:{number}@{summary['digest']}")
    assert len({each.step.ttl_s for each in (*found, held)}) == 1
    assert found[0].remarks[0].endswith(f"{number}@{summary['digest']} says so of this content")
    assert held.remarks == found[1].remarks == ()
    again = pick(answer_of(tmp_path, found[1]))
    assert again.step.ttl_s == held.step.ttl_s
    assert again.inputs["model"].file == str((tmp_path / "model.yaml").resolve())


@pytest.mark.parametrize("what", ["sweep", "model"])
def test_a_number_of_a_sweep_that_has_changed_is_refused(
    what: str, own_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    path = own_sweep()
    summary = write_sweep(load_sweep(path), tmp_path / "out")
    if what == "sweep":
        own_sweep(families="[helix, tp]")
    else:
        text = (tmp_path / "model.yaml").read_text()
        (tmp_path / "model.yaml").write_text(text.replace("vocab_size: ", "vocab_size: 1", 1))
    for source in (f"{path}:7@{summary['digest']}", f"{tmp_path}/out:7"):
        with pytest.raises(SpecError, match="changed since") as caught:
            pick(source)
        assert len(caught.value.problems) == 1


def test_a_folder_of_a_sweep_under_another_timing_keeps_that_timing(
    own_sweep: Callable[..., Path], tmp_path: Path
) -> None:
    write_sweep(load_sweep(own_sweep()).with_timing("ideal"), tmp_path / "out")
    assert pick(f"{tmp_path}/out:3").step.timing.name == "ideal"


def test_a_shipped_sweeps_number_needs_no_digest() -> None:
    assert pick("paper-llama-3.1-405b:0", None, Options(widths={"tpa": 8}, context=1000)).remarks == ()


# --- Mixed contexts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", list(STACKS))
def test_a_mixed_context_is_exported_by_its_longest_request(stack: str) -> None:
    mixed = replace(pick("deepseek-r1", "gb200-nvl72", Options(context=336_818, widths={"kvp": 8, "ep": 8})),
                    longest_context=10**6)  # fmt: skip
    written = export(mixed, to=stack)
    longest = {"trtllm": "max_seq_len", "vllm": "--max-model-len", "sglang": "--context-length"}[stack]
    assert written.options[longest] == 10**6
    assert any("up to 1M tokens" in remark for remark in written.remarks)
    assert "336818 tokens on average" in written.text


# --- Formats ---------------------------------------------------------------------------------------------------------


NVFP4 = StoredFormats(
    source="a checkpoint", weights="nvfp4", kv="fp8", math="fp4", head_weights="bf16", head_math="bf16"
)
BF16 = StoredFormats(source="another", weights="bf16", kv="bf16", math="bf16")
QWEN = load_model("qwen3-32b").model_copy(update={"formats": {"nvfp4": NVFP4, "bf16": BF16}})
R1 = load_model("deepseek-r1").model_copy(update={"formats": {"nvfp4": NVFP4}})


def test_formats_are_the_options_then_the_files_then_the_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "formats.yaml").write_text("{weights: int8, head_math: fp8}")
    (tmp_path / "formats.json").write_text('{"weights": "int8", "head_math": "fp8"}')
    for name in ("formats.yaml", "formats.json"):
        found = precision_of(QWEN, load_machine("h100-hgx"), {"kv": "bf16"}, named=str(tmp_path / name))
        assert found == Precision(
            weights="int8", kv="bf16", math="bf16", attention_math="bf16", head_weights="bf16", head_math="fp8"
        )


def test_a_checkpoint_is_computed_with_what_the_machine_multiplies_in() -> None:
    on_blackwell = precision_of(R1, load_machine("gb200-nvl72"), {})
    assert (on_blackwell.weights, on_blackwell.math, on_blackwell.attention_math) == ("nvfp4", "fp4", "fp8")
    on_hopper = precision_of(R1, load_machine("h100-hgx"), {})
    assert (on_hopper.weights, on_hopper.math, on_hopper.attention_math) == ("nvfp4", "bf16", "bf16")
    assert precision_of(QWEN, load_machine("gb200-nvl72"), {}).attention_math == "bf16"


def test_formats_are_chosen_by_the_name_that_the_model_has_for_them() -> None:
    machine = load_machine("gb200-nvl72")
    assert precision_of(QWEN, machine, {}, named="bf16").weights == "bf16"
    assert precision_of(QWEN, machine, {}, named="checkpoint") == precision_of(QWEN, machine, {}, named="nvfp4")
    assert precision_of(QWEN, machine, {}, named="narrowest") == Precision(weights="fp4", kv="fp4", math="fp4")
    with pytest.raises(SpecError, match="no formats named 'awq'; use nvfp4, bf16, checkpoint, narrowest"):
        precision_of(QWEN, machine, {}, named="awq")


def test_a_model_that_says_no_formats_has_the_machines_narrowest() -> None:
    bare = QWEN.model_copy(update={"formats": {}})
    assert precision_of(bare, load_machine("h100-hgx"), {}) == Precision(weights="fp8", kv="fp8", math="fp8")


@pytest.mark.parametrize(
    ("formats", "sentence"),
    [
        ({"weights": "fp5"}, "--weights: 'fp5' is not one of fp4"),
        ({"attention_math": "int8"}, "--attention-math: 'int8' is not one of fp4, fp8, bf16"),
        ({"head_math": "fp4"}, "--head-math: h100-hgx has no fp4 arithmetic; use fp8 or bf16"),
        ({"wieghts": "fp8"}, "--wieghts: there is no such format"),
    ],
)
def test_a_format_that_is_none_names_its_option(formats: dict[str, str], sentence: str) -> None:
    with pytest.raises(SpecError, match=re.escape(sentence)):
        pick("llama-3.1-8b", "h100-hgx", Options(formats=formats))


def test_a_timing_of_another_machine_is_refused_unless_the_machines_file_says_it_is_that_one(tmp_path: Path) -> None:
    measured = Options(context=8192, timing="h100-vllm")
    with pytest.raises(SpecError, match="h100-vllm was measured on h100, and h200-hgx is h200"):
        pick("llama-3.1-8b", "h200-hgx", measured)
    path = own(tmp_path, "machine", "h200-hgx")
    path.write_text(path.read_text().replace("system: h200", "system: h100"))
    assert pick("llama-3.1-8b", str(path), measured).remarks == ()
    text = re.sub(r"(?ms)^public_tables:.*?(?=^\S|\Z)", "", path.read_text())
    path.write_text(text)
    assert "names no public_tables.system" in pick("llama-3.1-8b", str(path), measured).remarks[0]

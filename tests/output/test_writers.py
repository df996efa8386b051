"""Random Unicode, control characters and markup in every name, through every writer of every verb."""

import ast
import base64
import contextlib
import csv
import gzip
import io
import json
import os
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import yaml
from cases import GB200, LLAMA, PAPER
from hostile_text import TEXTS, UTF_8, is_harmless
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from helix_sim.answers.compare import compare
from helix_sim.cli import app, base, steps
from helix_sim.core.errors import SpecError
from helix_sim.core.escape import terminal_line, text_of_cell, xml_text
from helix_sim.core.files import PointsWriter, write_csv, write_points_csv
from helix_sim.core.layout import Layout
from helix_sim.core.units import MEGA
from helix_sim.gate import baseline, regress
from helix_sim.output import gate_files, plot, report, sweep_folder
from helix_sim.output.comparison_files import write_comparison
from helix_sim.output.export import STACKS, export
from helix_sim.output.html import html_of
from helix_sim.output.trace import trace
from helix_sim.search.frame import decode_step
from helix_sim.search.layout_source import Picked
from helix_sim.search.sweep import run_sweep
from helix_sim.specs.comparison import Comparison
from helix_sim.specs.load import data_folder, load_sweep, parse
from helix_sim.specs.precision import Precision
from helix_sim.specs.sweep import BatchRange, GpuRange, Sweep

BASH = shutil.which("bash")
FORMATS = Precision(weights="nvfp4", kv="fp8", math="fp4")
FEW = {"max_examples": 40, "deadline": None}


def renamed(name):
    """A step of a model, a machine and a timing of that name, as a file could not say it: files restrict names."""
    records = (record.model_copy(update={"name": name}) for record in (LLAMA, GB200, PAPER))
    model, machine, timing = records
    model = model.model_copy(update={"source": name})
    layout = Layout(batch=4, tpa=8, tpf=8)
    return decode_step(model, machine, layout, int(MEGA / 10), precision=FORMATS, timing=timing)


# --- Launch files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS)
@settings(**FEW)
@given(name=UTF_8, checkpoint=TEXTS.filter(bool))
def test_a_launch_file_runs_nothing_of_a_name(stack, name, checkpoint, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "launch"
    folder.mkdir(exist_ok=True)
    for given_checkpoint in (checkpoint, None):
        written = export(renamed(name), to=stack, checkpoint=given_checkpoint)
        if stack == "trtllm":
            assert yaml.safe_load(written.text) == written.options
        elif BASH:
            text = f"NVFP4-CHECKPOINT-OF-{name}" if given_checkpoint is None else given_checkpoint
            text = text.replace("\0", "")  # bash has no such byte
            assert started_by(written.text, folder) == [text.encode("utf-8", "replace")]
            assert not list(folder.iterdir())


@pytest.mark.parametrize("stack", STACKS)
@settings(max_examples=20, deadline=None)
@given(name=UTF_8, checkpoint=UTF_8.filter(bool))
def test_a_deployment_says_a_name_as_it_is(stack, name, checkpoint):
    written = export(renamed(name), to="dynamo", stack=stack, checkpoint=checkpoint)
    assert is_harmless(written.text, keep="\n")
    graph = list(yaml.safe_load_all(written.text))[-1]
    assert re.fullmatch("[a-z0-9]([a-z0-9-]*[a-z0-9])?", graph["metadata"]["name"])
    container = graph["spec"]["components"][1]["podTemplate"]["spec"]["containers"][0]
    assert checkpoint in [expanded(word) for word in container["args"]]
    written = export(renamed(name), to="srt-slurm", stack=stack, checkpoint=checkpoint)
    assert is_harmless(written.text, keep="\n")
    assert yaml.safe_load(written.text)["model"]["path"] == checkpoint


def expanded(word):
    """A word as Kubernetes gives it to a container that has no variables: $$ is $, and $(NAME) stands for something."""
    return re.sub(r"\$\$|\$\([^)]*\)", lambda found: "$" if found[0] == "$$" else "a variable", word)


def started_by(script, folder):
    """The checkpoints that a launch file starts its server with, in a folder with nothing to run but a stand-in."""
    stand_in = "vllm() { printf '%s\\0' \"$2\"; }; python3() { printf '%s\\0' \"$4\"; }; "
    for options in (["-n"], []):
        ran = subprocess.run(
            [BASH, *options, "-c", stand_in + "\n" + script],
            cwd=folder,
            capture_output=True,
            check=False,
            env={**os.environ, "NODE_RANK": "0", "HEAD_ADDRESS": "head"},  # what the file asks of each node
        )
        assert (ran.returncode, ran.stderr) == (0, b"")
    return ran.stdout.split(b"\0")[:-1]


# --- Every other writer ----------------------------------------------------------------------------------------------

BATCHES = BatchRange.model_validate({"dense_to": 2, "growth": 2, "to": 4})
SWEEP = load_sweep("paper-llama-3.1-405b").model_copy(
    update={
        "gpus": GpuRange.model_validate({"from": 7, "to": 8}),
        "batch": BATCHES,
        "contexts": [100_000],
    }
)
FOUND = run_sweep(SWEEP)


def sweep_renamed(name):
    """A sweep's result whose sweep, model, machine, timing and families have that name or title."""
    families = {key: family.model_copy(update={"title": name}) for key, family in SWEEP.families.items()}
    update = {"name": name, "description": name, "families": families}
    records = {part: getattr(FOUND.plan, part).model_copy(update={"name": name}) for part in ("machine", "timing")}
    records |= {"model": FOUND.plan.model.model_copy(update={"name": name, "source": name})}
    planned = replace(FOUND.plan, sweep=SWEEP.model_copy(update=update), setting=replace(FOUND.plan.setting, **records))
    return replace(FOUND, plan=planned)


def read_svg(path):
    """The texts that a picture shows; the parser refuses what is no XML."""
    return ["".join(part.itertext()) for part in ElementTree.parse(path).iter() if part.tag.endswith("text")]


def same(shown, name):
    """Whether a target shows a name: its line, up to where it is cut, its spaces aside."""
    wanted = "".join(terminal_line(name).split())
    return wanted[:100] in "".join(shown.split())


@settings(max_examples=5, deadline=None)
@given(name=UTF_8.filter(bool))
def test_a_sweeps_folder_shows_a_name_as_it_is(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    result = sweep_renamed(name)
    sweep_folder._write(result, folder, every_point=False, drawn="tokens_per_s_gpu", price=None)
    summary = (folder / "summary.json").read_text()
    assert is_harmless(summary, keep="\n")
    assert json.loads(summary)["model"] == name
    assert same("".join(read_svg(folder / "pareto.svg")), name)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(UTF_8, min_size=1, max_size=5))
def test_a_table_of_texts_reads_back_as_it_was(texts, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "table.csv"
    write_csv(path, pd.DataFrame({"=1": texts, "x": 1.5}))
    assert is_harmless(path.read_bytes().decode(), keep="\n")
    with path.open(newline="") as file:
        (first, *_), *rows = csv.reader(file)
    assert text_of_cell(first) == "=1"
    assert [text_of_cell(row[0]) for row in rows] == texts
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for row in rows for cell in row)


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(UTF_8, min_size=1, max_size=5))
def test_a_table_of_points_reads_back_as_it_was(texts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    with PointsWriter(folder / "part-000000.parquet", texts) as writer:
        writer.write({"family": np.arange(len(texts), dtype=np.int8), "batch": np.arange(len(texts))})
    path = write_points_csv(folder / "points.csv", folder)
    with path.open(newline="") as file:
        _, *rows = csv.reader(file)
    assert [text_of_cell(row[0]) for row in rows] == texts
    assert pd.read_parquet(folder / "part-000000.parquet")["family"].tolist() == texts


@settings(max_examples=12, deadline=None)
@given(name=UTF_8.filter(bool))
def test_a_report_shows_a_name_as_text(name):
    page = report.render(report.content(sweep_renamed(name), []), script="")
    assert is_harmless(page, keep="\n\t")
    packed = page.split('<script id="data" type="text/plain">')[1].split("</script>")[0]
    data = json.loads(gzip.decompress(base64.b64decode(packed)))
    assert data["model"] == data["curves"][0]["title"] == terminal_line(name)


@settings(max_examples=12, deadline=None)
@given(name=UTF_8.filter(bool))
def test_a_baseline_reads_back_as_it_was(name):
    stored = baseline.snapshot(sweep_renamed(name), source=name, date="2026-01-01")
    text = baseline.render(stored)
    assert is_harmless(text, keep="\n")
    assert baseline.parse(text, "file").header["sweep"] == name


CURVE = FOUND.frontiers[100_000]["tp"]
MOVED = {"tokens_per_s_user": 1.0, "before": 2.0, "after": 1.0, "vertical": -0.5, "horizontal": -0.5, "distance": -0.5}


@settings(max_examples=5, deadline=None)
@given(name=UTF_8.filter(bool))
def test_a_gates_verdict_shows_a_name_in_every_form(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gate")
    inputs = [regress.InputChange(name=name, what=[name])]
    move = regress.PointMove(kind="slower", old_layout=name, new_layout=name, why=name, **MOVED)
    curves = [regress.CurveCheck(context=100_000, curve=name, group=False, before=CURVE, after=CURVE, moves=[move],
                                 hypervolume_change=0.5)]  # fmt: skip
    verdict = regress.Verdict(sweep=name, title=name, date="2026-01-01", rtol=1e-6, curves=curves, terms=[], counts=[],
                              inputs=inputs, curves_only=False)  # fmt: skip
    gate_files.write([verdict], out=folder)
    suite = ElementTree.parse(folder / "regress.xml").getroot()[0]
    assert suite.get("name") == xml_text(name)
    assert json.loads((folder / "regress.json").read_text())["sweeps"][0]["sweep"] == name
    assert is_harmless((folder / "regress.json").read_text() + (folder / "regress.md").read_text(), keep="\n")
    assert any(same("".join(read_svg(path)), name) for path in folder.glob("*.svg"))


COMPARED = compare(
    Comparison.model_validate(
        {"kind": "comparison", "models": ["llama-3.1-8b"], "machines": ["h100-hgx"], "contexts": [8000], "ttl_ms": [50],
         "timings": ["paper"], "families": ["tp"], "gpus": [1]}
    )
)  # fmt: skip


@settings(max_examples=5, deadline=None)
@given(name=UTF_8.filter(bool))
def test_a_comparisons_files_show_a_name_as_it_is(name, tmp_path_factory):
    openpyxl = pytest.importorskip("openpyxl")
    folder = tmp_path_factory.mktemp("comparison")
    cells = [replace(cell, asked=cell.asked | {"machine": name}, why_none=name) for cell in COMPARED.cells]
    (search,) = COMPARED.searches
    machine = search.plan.machine.model_copy(update={"name": name})
    searches = [replace(search, plan=replace(search.plan, setting=replace(search.plan.setting, machine=machine)))]
    write_comparison(replace(COMPARED, cells=cells, searches=searches, remarks=[name]), folder)
    assert is_harmless((folder / "comparison.csv").read_bytes().decode(), keep="\n")
    assert is_harmless((folder / "comparison.json").read_text(), keep="\n")
    book = openpyxl.load_workbook(folder / "comparison.xlsx")
    shown = [cell for sheet in book for row in sheet.iter_rows() for cell in row if cell.value is not None]
    assert not [cell for cell in shown if cell.data_type in "fe"]
    assert name in [text_of_cell(cell.value) for cell in shown if isinstance(cell.value, str)]


@settings(max_examples=20, deadline=None)
@given(name=UTF_8.filter(bool))
def test_a_notebook_shows_a_name_as_text(name):
    step = renamed(name)
    for shown in (step.model, step.setting, step):
        page = html_of(shown)
        parts = ElementTree.fromstring(f"<div>{page}</div>")
        assert is_harmless(page, keep="\n")
        assert any(same(part, name) for part in parts.itertext()) or same("".join(parts.itertext()), name)
        assert not [text for text in parts.itertext() if text.count("$") > 1]


@settings(max_examples=5, deadline=None)
@given(name=UTF_8.filter(bool))
def test_a_trace_and_a_tornado_show_a_name(name, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    assert json.loads(json.dumps(trace(renamed(name))))["otherData"]["model"] == name
    plot.save(plot.tornado({name: (1.0, -1.0)}, name, (name, name)), folder / "tornado")
    assert sum(same(text, name) for text in read_svg(folder / "tornado.svg")) >= 3


# --- The terminal ----------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(name=TEXTS)
def test_a_terminal_shows_a_name_in_sentences_tables_and_titles(name):
    def print_all(shown):
        base.say(name)
        base.remark(name)
        base.print_text(name)
        base.print_json({name: name})
        base.print_rows([{name: name}])
        shown.print(name)
        shown.print(base.styled((name, "bold"), name))
        base.show(shown, base.new_table(name, title=name))
        steps._print_step(shown, Picked(step=STEP_OF[name], inputs={}, longest_context=1))

    STEP_OF = {name: renamed(name.encode("utf-8", "replace").decode())}
    for terminal in (False, True):
        with (
            contextlib.redirect_stdout(Terminal(terminal)) as out,
            contextlib.redirect_stderr(Terminal(terminal)) as err,
        ):
            print_all(base.console())
        colours = re.compile(r"\x1b\[[0-9;]*m")  # rich's own, on a terminal
        text = colours.sub("", out.getvalue()) if terminal else out.getvalue()
        assert is_harmless(text + err.getvalue(), keep="\n\t")
        assert same(text, name)
        assert same(err.getvalue(), name)


class Terminal(io.StringIO):
    """An output that says whether it is a terminal."""

    def __init__(self, is_terminal):
        super().__init__()
        self.isatty = lambda: is_terminal


def test_only_the_one_place_prints():
    for path in sorted(Path(base.__file__).parents[1].rglob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        printed = [call for call in calls if getattr(call.func, "id", "") in ("print", "echo")]
        assert not printed or path == Path(base.__file__), f"{path}: print with cli.base.say, remark or print_text"


YAML = {
    "a name with markup is shown": ("llama [fp8] $x$ :fire: <b>", "llama [fp8] $x$ :fire: <b>"),
    "a name of two lines is refused": ("llama\ntouch RUN", "name: 'llama\\ntouch RUN' is no name: it begins with"),
    "a name that colours is refused": ("llama\x1b[31m", "is no name"),
    "a name that turns is refused": ("llama\u202e", "is no name"),
    "a name that is a formula is refused": ("=1+2", "'=1+2' is no name"),
    "a name without end is refused": ("a" * 101, "at most 100 characters"),
}


@pytest.mark.parametrize(("name", "shown"), YAML.values(), ids=YAML)
def test_a_file_names_what_prints(name, shown, tmp_path):
    content = yaml.safe_load((data_folder("model_specs") / "llama-3.1-8b.yaml").read_text()) | {"name": name}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    result = CliRunner().invoke(app, ["explain", str(tmp_path / "mine.yaml"), "gb200-nvl72"])
    assert shown in result.output + "".join(getattr(result.exception, "problems", []))


@pytest.mark.parametrize("name", ["a b", "a: b", "=1", "__proto__", "x\ny", "[x]"])
def test_a_part_of_a_file_is_named_by_one_word(name):
    family = {"title": "mine", "tpa": "free"}
    content = SWEEP.model_dump(by_alias=True) | {"families": {name: family}, "groups": {}}
    with pytest.raises(SpecError, match=r"(?s)families\..*is no name here"):
        parse(Sweep, content, "file")

"""Text for where it goes: whatever a text holds, its target shows it, and does nothing else with it."""

import csv
import io
import json
import re
import shutil
import subprocess
from xml.etree import ElementTree

import pytest
import yaml
from hostile_text import TEXTS, is_harmless
from hypothesis import given, settings
from hypothesis import strategies as st

from helix_sim.core import escape

BASH = shutil.which("bash")
CALM = {"max_examples": 200, "deadline": None}


@settings(**CALM)
@given(TEXTS)
def test_a_terminal_is_shown_text_and_no_command(text):
    assert is_harmless(escape.terminal_line(text))
    assert is_harmless(escape.terminal_lines(text), keep="\n\t")
    assert escape.terminal_lines(text).count("\n") == text.count("\n")
    if is_harmless(text) and text.isprintable():
        assert escape.terminal_line(text) == text


@settings(**CALM)
@given(TEXTS)
def test_a_comment_is_one_line_that_yaml_and_a_shell_skip(text):
    line = escape.comment(text)
    assert len(line.splitlines()) == 1
    assert yaml.safe_load(f"{line}\na: 1\n") == {"a": 1}


@pytest.mark.skipif(BASH is None, reason="needs bash")
@settings(max_examples=40, deadline=None)
@given(st.lists(TEXTS, min_size=1, max_size=12))
def test_a_shell_word_is_given_to_the_program_as_it_is(texts):
    words = [escape.shell_word(text) for text in texts]
    assert all(len(word.splitlines()) == 1 for word in words)
    script = f"{escape.comment(texts[0])}\nprintf '%s\\0' " + " \\\n  ".join(words) + "\n"
    shown = subprocess.run([BASH, "-c", script], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    assert shown.stderr == b""
    assert shown.stdout == b"".join(text.replace("\0", "").encode("utf-8", "replace") + b"\0" for text in texts)


@settings(**CALM)
@given(st.recursive(TEXTS | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(TEXTS, x), max_leaves=6))
def test_json_reads_back_as_it_was_and_steers_no_terminal(content):
    for indent in (None, 2):
        text = escape.json_text(content, indent=indent)
        assert is_harmless(text, keep="\n")
        assert json.loads(text) == content


@settings(**CALM)
@given(st.lists(TEXTS, min_size=1, max_size=4))
def test_a_cell_of_csv_is_no_formula_and_reads_back_as_it_was(texts):
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerow([escape.csv_cell(text) for text in texts])
    (cells,) = csv.reader(io.StringIO(file.getvalue(), newline=""))
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
    assert [escape.text_of_cell(cell) for cell in cells] == texts


def shown_by_markdown(source: str) -> list[str]:
    """The text of each cell of a table's body, as GitHub's Markdown shows it; elements of HTML come out as marks."""
    markdown_it = pytest.importorskip("markdown_it")
    tokens = markdown_it.MarkdownIt("gfm-like", {"linkify": False}).parse(source)
    body = tokens[[token.type for token in tokens].index("tbody_open") :]
    cells = [token.children for token in body if token.type == "inline"]
    assert {child.type for cell in cells for child in cell} <= {"text", "text_special", "code_inline"}
    return ["".join(child.content for child in cell) for cell in cells]


@settings(**CALM)
@given(TEXTS, TEXTS)
def test_markdown_shows_a_cell_as_it_is(one, other):
    table = f"| a | b |\n|---|---|\n| x{escape.markdown(one)} | x{escape.markdown(other)} |\n"
    wanted = ["x" + " ".join(escape.terminal_line(text).split()) for text in (one, other)]
    assert [" ".join(cell.split()) for cell in shown_by_markdown(table)] == wanted


@settings(**CALM)
@given(TEXTS.filter(str.strip))
def test_markdown_shows_code_as_it_is(text):
    (cell,) = shown_by_markdown(f"| a |\n|---|\n| {escape.markdown_code(text)} |\n")
    assert cell.strip() == escape.terminal_line(text).strip()


@settings(**CALM)
@given(TEXTS)
def test_a_page_is_given_text_on_one_line(text):
    found = escape.html_data({text: [text, 1, None, (text,)]})
    shown = escape.terminal_line(text)
    assert found == {shown: [shown, 1, None, [shown]]}


@settings(**CALM)
@given(TEXTS, TEXTS)
def test_yaml_reads_back_as_it_was_and_steers_no_terminal(key, text):
    if not any(0xD800 <= ord(char) <= 0xDFFF for char in key + text):
        written = escape.yaml_text({key: text})
        assert yaml.safe_load(written) == {key: text}
        assert is_harmless(written, keep="\n")


@settings(**CALM)
@given(TEXTS)
def test_xml_is_read_by_any_parser(text):
    element = ElementTree.Element("a", b=escape.xml_text(text))
    element.text = escape.xml_text(text)
    read = ElementTree.fromstring(ElementTree.tostring(element, encoding="unicode"))
    assert (read.text or "") == read.get("b") == escape.xml_text(text)


@pytest.mark.filterwarnings("ignore:Glyph")
@settings(max_examples=40, deadline=None)
@given(TEXTS.filter(bool))
def test_a_plot_shows_a_title_as_it_is(text):
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.fonttype": "none"}):
        figure = Figure()
        axes = figure.subplots()
        axes.plot([1], [1], label=escape.plot_text(text))
        axes.set_title(escape.plot_text(text))
        assert len(axes.legend().get_texts()) == 1
        figure.savefig(svg := io.StringIO(), format="svg")
    words = [part.text for part in ElementTree.fromstring(svg.getvalue()).iter() if part.tag.endswith("text")]
    line = escape.terminal_line(text)
    shown = (line if len(line) <= 160 else line[:159] + "…").split()
    assert not shown or sum((word or "").split() == shown for word in words) == 2


@settings(**CALM)
@given(TEXTS)
def test_a_file_is_named_in_its_folder(text):
    stem = escape.file_stem(text)
    assert re.fullmatch(r"[\w.-]+", stem)
    assert stem.strip(".")
    assert len(stem.encode()) <= 200

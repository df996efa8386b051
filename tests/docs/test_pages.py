"""The pages are of this code: nothing generated is stale, nothing is missing, every command, path and link is real."""

from __future__ import annotations

import ast
import doctest
import importlib.util
import re
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
import yaml

import helix_sim
from helix_sim.cli import app
from helix_sim.core.errors import Exit
from helix_sim.feasibility import Reason
from helix_sim.specs.load import check_content
from helix_sim.specs.schema import FILES, json_schema

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def _generator():
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["docs_generate"] = module
    spec.loader.exec_module(module)
    return module


generate = _generator()
PAGES = generate.pages()


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


each_page = pytest.mark.parametrize("path", PAGES, ids=name_of)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def code_blocks(kind: str) -> list[tuple[str, str]]:
    """(page, content) of every code block of a kind, in the docs and the README."""
    found = []
    for path in PAGES:
        for block in re.findall(rf"^```{kind}\n(.*?)^```$", text_of(path), re.DOTALL | re.MULTILINE):
            found.append((name_of(path), block))
    return found


# --- Generated parts -------------------------------------------------------------------------------------------------


@each_page
def test_what_a_page_takes_from_the_code_is_what_the_code_says(path):
    before = text_of(path)
    assert generate.written(before) == before, f"{path.name} is stale; run python docs/generate.py"


def test_every_region_is_closed_and_has_a_producer():
    for path in PAGES:
        text = text_of(path)
        opened = re.findall(r"<!-- generated: ([\w-]+)", text)
        assert len(opened) == text.count("<!-- end -->") == len(generate.REGION.findall(text)), path.name
        assert set(opened) <= set(generate.PRODUCERS) | set(generate.MEASURED), path.name


def test_what_takes_minutes_says_its_command_and_its_day():
    for path in PAGES:
        for match in generate.REGION.finditer(text_of(path)):
            if match["name"] in generate.MEASURED:
                assert re.search(
                    r"Printed by `(helix-sim|python) [^`]+`, helix-sim [\d.]+, \d{4}-\d\d-\d\d", match[0]
                ), path.name


def test_a_stale_page_is_noticed():
    page = "<!-- generated: exits -->\n\n| old |\n\n<!-- end -->\n\n"
    page += "```console\n$ helix-sim --version\nhelix-sim 0.0\n```\n"
    again = generate.written(page)
    assert "| old |" not in again
    assert f"helix-sim {helix_sim.__version__}" in again


def test_the_claims_on_the_papers_page_are_todays():
    from helix_sim.paper import reproduce
    from helix_sim.specs.load import load_timing

    timing = load_timing("paper")
    report = reproduce.claims(reproduce.search(timing), timing, vary=False)
    region = next(
        match[0] for match in generate.REGION.finditer(text_of(DOCS / "paper.md")) if match["argument"] == "paper"
    )
    for claim in report.claims:
        assert f"| {claim.claim} | {claim.paper:g} | {claim.ours:.3g} |" in region


# --- Commands --------------------------------------------------------------------------------------------------------


def commands_in_code():
    """Every helix-sim command line of the pages: in blocks of shell, in indented ones, and in prose."""
    for path in PAGES:
        text = re.sub(r"\\\n\s*", " ", text_of(path))
        for line in re.findall(
            r"^(?:    |\$ )?(helix-sim [\w-]+[^\n]*)$|`(helix-sim [a-z][\w-]*(?: [^`]*)?)`", text, re.M
        ):
            yield path.name, (line[0] or line[1]).split("#")[0].split(" > ")[0].split(" 2> ")[0]


def test_every_command_on_the_pages_has_its_verb_and_options():
    commands = typer.main.get_command(app).commands
    tried = 0
    for page, line in commands_in_code():
        words = line.split()[1:]
        if words[0].startswith("-"):
            continue
        assert words[0] in commands, f"{page}: no verb {words[0]}"
        known = {name for option in commands[words[0]].params for name in (*option.opts, *option.secondary_opts)}
        given = {word.split("=")[0] for word in words[1:] if re.fullmatch(r"--[a-z][\w-]*(=.*)?", word)}
        assert given <= known | {"--help"}, f"{page}: {line}: no option {given - known}"
        tried += 1
    assert tried > 60


def test_every_verb_has_its_section_with_an_example_and_all_of_its_options():
    text = text_of(DOCS / "reference" / "cli.md")
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    every = typer.main.get_command(app).commands
    commands = {name: command for name, command in every.items() if not command.hidden}
    assert list(sections) == list(commands)
    for name, command in commands.items():
        section = sections[name]
        assert f"\nhelix-sim {name}" in section, f"{name} has no example"
        shown = [param for param in command.params if not getattr(param, "hidden", False)]
        for param in shown:
            row = (
                f"`{param.name.upper().replace('_', '-')}`"
                if param.param_type_name == "argument"
                else f"`{param.opts[0]}`"
            )
            assert f"| {row}" in section, f"{name} does not list {row}"
            assert " ".join(str(param.help).split()) in section, f"{name} {row}: its help is missing"


@pytest.mark.parametrize(
    "path", [path for path in PAGES if path.parent.name not in ("model", "reference")], ids=name_of
)
def test_python_on_a_page_prints_what_it_says(path):
    """Blocks of one page go on from each other; those of docstrings are tested where the docstrings stand."""
    blocks = re.findall(r"^```pycon\n(.*?)^```$", text_of(path), re.DOTALL | re.MULTILINE)
    test = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, path.name, str(path), 0)
    assert not doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test).failed


def test_some_pages_have_python_to_try():
    assert {page for page, _ in code_blocks("pycon")} >= {"README.md", "docs/start.md", "docs/how-to/search.md"}


# --- YAML ------------------------------------------------------------------------------------------------------------


def test_every_key_of_every_kind_of_file_says_what_it_is_and_its_unit():
    silent = []
    for kind in FILES:
        schema = json_schema(kind)
        for title, record in {kind: schema, **schema["$defs"]}.items():
            for key, field in record.get("properties", {}).items():
                if not re.search(r"\S.* \[[^\[\]]+\]$", field.get("description", "")):
                    silent.append(f"{kind}: {title}.{key}")
    assert not silent, "no description with its unit in brackets: " + ", ".join(silent)


def test_every_key_of_every_kind_of_file_is_on_its_page():
    for kind in FILES:
        page = DOCS / "reference" / "yaml" / f"{'sweep' if kind == 'families' else kind}.md"
        text = text_of(page)
        for title, (about, fields) in generate.yaml_records(kind).items():
            if kind == "families" and title == "families":
                continue  # two keys, shown as the file itself
            assert about, f"{title} has no docstring"
            for field in fields:
                assert f"| `{field.key}` |" in text, f"{page.name} lacks {title}.{field.key}"
                assert field.text.replace("|", "\\|") in text


@pytest.mark.parametrize(("page", "block"), code_blocks("yaml"))
def test_yaml_on_the_pages_is_right(page, block):
    content = yaml.safe_load(block)
    if content.get("kind") in set(FILES) - {"families"}:
        check_content(content, page)


# --- The library -----------------------------------------------------------------------------------------------------


def test_every_public_name_is_on_the_page_of_the_library_with_a_docstring():
    headings = re.findall(r"^### (\w+)$", text_of(DOCS / "reference" / "api.md"), re.MULTILINE)
    assert sorted(headings) == sorted(helix_sim.__all__)
    for name in helix_sim.__all__:
        if callable(getattr(helix_sim, name)):
            assert getattr(helix_sim, name).__doc__, name


def test_every_exit_code_and_every_reason_is_on_its_page():
    text = text_of(DOCS / "reference" / "exit-codes.md")
    assert {f"`{each.name}`" for each in [*Exit, *Reason]} <= set(re.findall(r"`[A-Z_]+`", text))


# --- Words -----------------------------------------------------------------------------------------------------------

PLAIN = {"unit", "layout was", "layout is", "why", "change", "name", "file", "claim", "ours", "paper", "count", "what"}
PLAIN |= {"panels", "tokens/s/GPU was", "kind", "path", "problems", "remarks"}
"""Headings of columns that are plain English where they stand."""


def printed_words() -> set[str]:
    """Headings of every table that the command line prints, and the keys of its rows of plain data."""
    found = set()
    files = [*(ROOT / "helix_sim" / "cli").glob("*.py"), ROOT / "helix_sim" / "gate" / "verdict.py"]
    for path in files:
        for node in ast.walk(ast.parse(text_of(path))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "new_table":
                found |= {leaf.value for arg in node.args for leaf in ast.walk(arg) if _is_text(leaf)}
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "columns":
                found |= {leaf.value for leaf in ast.walk(node.value) if _is_text(leaf)}
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "append" and path.parent.name == "cli":
                keys = [key for arg in node.args if isinstance(arg, ast.Dict) for key in arg.keys if key is not None]
                found |= {key.value for key in keys if _is_text(key)}
    return {word.removeprefix(">").strip() for word in found if word.strip(" >") and not word.startswith("{")}


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


MUST_DEFINE = """
TTL, TPOT, ITL, interactivity, throughput, users, TPA, KVP, DP, TPF, EP, PP, HOP-B, chunks, Medha, Helix,
wire, binds, latency, math, hbm, link, hidden, share, effective batch, hypervolume, stopped by, frontier,
family, group, extrapolated, 80 % interval, reserve, resident, capacity, host, lost, runner-up, knob,
replicas, idle GPUs,
baseline, held, moved, probe, timing, machine, setting, class, held out, bias, target, peer, half, id, block,
executor, op, times, context, batch, layout, domain, tray, stage, mix, dropped, dispatch, combine, weights,
activations, KV cache, curve, points
"""


def defined() -> str:
    """What the glossary defines: its headings, bold words and code, as one text of words."""
    text = text_of(DOCS / "reference" / "glossary.md")
    words = re.findall(r"^### (.+)$|\*\*(.+?)\*\*|`(.+?)`|^(TTL.*|Token-to-token.*|ITL.*)$", text, re.MULTILINE)
    return " ¦ ".join(part for group in words for part in group if part).lower()


def test_the_glossary_defines_every_word_of_the_list():
    missing = [word for word in re.split(r",\s*", MUST_DEFINE.strip()) if word.lower() not in defined()]
    assert not missing, missing


def test_the_glossary_defines_every_heading_that_the_command_line_prints():
    words = printed_words()
    assert {"lost", "binds", "stopped by", "hypervolume"} <= words
    missing = sorted(word for word in words - PLAIN if word.lower() not in defined())
    assert not missing, missing


def test_the_glossary_defines_what_can_bind_and_every_shipped_family():
    from helix_sim.specs.load import shipped_families
    from helix_sim.timing.roofline import TERMS

    headings = re.findall(r"^### (.+)$", text_of(DOCS / "reference" / "glossary.md"), re.MULTILINE)
    assert set(TERMS) <= set(headings)
    assert all(f"`{name}`" in text_of(DOCS / "reference" / "glossary.md") for name in shipped_families())


# --- Links and paths -------------------------------------------------------------------------------------------------


def slug(heading: str) -> str:
    """The anchor of a heading, as the site and GitHub make it."""
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", plain)).strip("-")


@each_page
def test_every_link_leads_somewhere(path):
    text = re.sub(r"^```.*?^```$", "", text_of(path), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), f"{path.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", text_of(there), re.MULTILINE)
            assert anchor in {slug(heading) for heading in headings}, f"{path.name}: {target}"


@each_page
def test_every_path_and_function_that_a_page_names_is_there(path):
    text = text_of(path)
    for name in re.findall(
        r"`((?:helix_sim|tests|docs|notebooks|sweeps|model_specs|hardware_profiles)/[\w./-]*)`", text
    ):
        assert (ROOT / name).exists(), f"{path.name}: {name}"
    for function, file in re.findall(r"`([\w.]+)`\s+in\s+`(helix_sim/[\w/]+\.py)`", text):
        tree = ast.parse(text_of(ROOT / file))
        named = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        named |= {target.id for node in tree.body for target in _targets(node)}
        assert function.split(".")[-1] in named, f"{path.name}: {function} in {file}"


def _targets(node: ast.stmt) -> list[ast.Name]:
    found = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return [each for each in found if isinstance(each, ast.Name)]


def test_every_page_is_in_the_navigation():
    named = set(re.findall(r"[\w/-]+\.md", text_of(ROOT / "mkdocs.yml")))
    assert named == {str(path.relative_to(DOCS)) for path in PAGES if path != ROOT / "README.md"}


def test_the_readme_is_one_screen():
    assert len(text_of(ROOT / "README.md").splitlines()) < 80


# --- The site --------------------------------------------------------------------------------------------------------


class _Asked(HTMLParser):
    """What a page of the site loads: scripts, styles, pictures, fonts."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "link") and given.get("rel") not in (
            "canonical",
            "next",
            "prev",
        ):
            self.urls += [url for url in (given.get("src"), given.get("href")) if url]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material", reason="the extra `docs` is not installed")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    return folder


def test_the_site_builds_without_a_warning_and_has_every_page(site):
    pages = [path.relative_to(DOCS).with_suffix(".html") for path in PAGES if path != ROOT / "README.md"]
    assert all((site / page).is_file() for page in pages)


def test_the_site_asks_for_no_network(site):
    for path in site.rglob("*.html"):
        asked = _Asked()
        asked.feed(text_of(path))
        assert asked.urls
        assert not [url for url in asked.urls if re.match(r"(https?:)?//", url)], path.name
    for path in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", text_of(path)), path.name


def test_the_site_carries_no_program(site):
    assert not list(site.rglob("*.py"))

"""The report as a reader meets it: one file, driven in a headless browser, its numbers those of the library."""

import base64
import contextlib
import gzip
import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from helix_sim.core.errors import SpecError
from helix_sim.core.layout import AXES, Layout
from helix_sim.output import report
from helix_sim.output.plot import COLOURS, DRAWN
from helix_sim.search.sweep import run_sweep
from helix_sim.specs.load import load_sweep
from helix_sim.step import evaluate_step, op_rows
from helix_sim.timing.roofline import TERMS

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
MOST_BYTES = 6e6

SMALL = """
kind: sweep
name: small
description: "a few hundred layouts, A&B </script><b>not markup</b>"
model: llama-3.1-8b
machine: gb200-nvl72
timing: paper
precision: {weights: fp4, kv: fp4, math: fp4}
contexts: [1M, 128K]
gpus: {from: 1, to: 8}
batch: {dense_to: 8, growth: 1.5, to: 64}
chunks: [1, batch]
families: [tp, pp, helix]
groups: {baseline: [tp, pp], all-helix: [helix]}
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "small.yaml"
    path.write_text(SMALL)
    return load_sweep(path)


@pytest.fixture(scope="module")
def result(sweep):
    return run_sweep(sweep)


@pytest.fixture(scope="module")
def written(sweep, tmp_path_factory):
    pytest.importorskip("plotly", reason="the extra `report` is not installed")
    path = tmp_path_factory.mktemp("report") / "report.html"
    report.write_report(sweep, path)
    return path


def expected_rows(result, context, family, index):
    """The library's own op table of a point of a frontier."""
    planned, point = result.plan, result.frontiers[context][family].point(index)
    layout = Layout(**{axis: point[axis] for axis in AXES})
    return op_rows(evaluate_step(planned.setting, layout, context))


# --- The file --------------------------------------------------------------------------------------------------------


def test_two_reports_are_the_same_bytes(sweep, written, tmp_path):
    report.write_report(sweep, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == written.read_bytes()
    assert written.stat().st_size < MOST_BYTES


def test_the_page_names_no_file_but_itself(written):
    page = written.read_text()
    own = page[: page.index('<script id="data"')] + page[page.rindex("<script>") :]
    assert not re.search(r"(src|href)=[\"'](?!data:,)", own)
    assert "default-src 'none'" in own
    packed = re.search(r'type="text/plain">([^<]*)<', page)[1]
    assert json.loads(gzip.decompress(base64.b64decode(packed)))["name"] == "small"


def test_each_points_ops_are_those_of_the_library_and_sum_to_its_ttl(result):
    for context in result.sweep.contexts:
        for family in result.sweep.families:
            points = report.family_points(result, family, context)
            for i in range(len(points["x"])):
                spent = sum(us[i] - hidden[i] for us, hidden in zip(points["us"], points["hidden_us"], strict=True))
                assert spent == pytest.approx(points["ttl_ms"][i] * 1e3, rel=1e-4)
                for op, row in enumerate(expected_rows(result, context, family, i)):
                    assert points["us"][op][i] * 1e-6 == pytest.approx(row["seconds"], rel=1e-5)
                    assert points["hidden_us"][op][i] * 1e-6 == pytest.approx(row["hidden_s"], rel=1e-5)
                    assert row["binds"] == (TERMS[int(mark)] if (mark := points["binds"][op][i]) != "-" else "-")


@pytest.mark.parametrize("timing", ["paper", "gb200-vllm"])
def test_a_points_memory_stands_beside_what_its_own_layout_may_fill(sweep, timing):
    fp8 = sweep.precision.model_copy(update={"kv": "fp8"})
    fewer = {"timing": timing, "contexts": [131072], "groups": {}, "precision": fp8}
    result = run_sweep(sweep.model_copy(update=fewer))
    points = report.family_points(result, "tp", 131072)
    curve = result.frontiers[131072]["tp"]
    for i, shown in enumerate(points["to_fill_GB"]):
        layout = Layout(**{axis: curve.point(i)[axis] for axis in AXES})
        memory = evaluate_step(result.plan.setting, layout, 131072).memory
        assert shown == pytest.approx(float(memory.fillable) / 1e9, rel=1e-5)
    assert (shown == pytest.approx(result.plan.machine.memory_bytes / 1e9, rel=1e-5)) == (timing == "paper")


def test_dropped_layouts_and_those_that_run_are_all_there_are(result):
    found = report.content(result, [])
    assert sum(row["total"] for row in found["dropped"]) + found["run"] == result.layouts
    assert all(sum(row["families"].values()) == row["total"] for row in found["dropped"])


def test_every_constant_comes_with_its_source(result):
    constants = report.content(result, [])["constants"]
    assert all(re.match("datasheet|measured|assumed", row["source"]) for row in constants)
    assert {"hbm_bandwidth_GBps", "kernel.latency_us", "collective.latency_us"} <= {row["name"] for row in constants}


def test_a_sweep_that_drafts_names_its_draft_what_it_yields_and_each_points_length(sweep):
    drafting = {"draft": "llama-3.1-8b-eagle3", "draft_tokens": [0, 1, 3], "contexts": [128_000]}
    found = run_sweep(sweep.model_copy(update=drafting))
    page = report.content(found, [])
    assert {"draft": "llama-3.1-8b-eagle3"}.items() <= {
        each["kind"]: each["name"] for each in page["provenance"]["inputs"]
    }.items()
    yields = {row["name"]: row["value"] for row in page["constants"] if row["of"] == "draft llama-3.1-8b-eagle3"}
    assert yields == {"tokens of a step, draft_tokens 1": 1.7296, "tokens of a step, draft_tokens 3": 2.6049}
    points = page["contexts"][0]["curves"]["helix"]
    assert max(points["draft_tokens"]) > 0
    for i, ttl_ms in enumerate(points["ttl_ms"]):
        exposed = sum(us[i] - hidden[i] for us, hidden in zip(points["us"], points["hidden_us"], strict=True))
        assert exposed / 1e3 == pytest.approx(ttl_ms, rel=1e-4)


def test_a_paper_sweep_brings_its_claims_and_no_others():
    _, claims = report.search(load_sweep("paper-llama-3.1-405b"))
    assert [claim["id"] for claim in claims] == ["llama_interactivity", "llama_throughput", "hopb_off_llama"]


def test_a_users_own_sweep_has_no_claims(sweep):
    assert report.search(sweep)[1] == []


@pytest.mark.parametrize("family", COLOURS)
def test_every_colour_is_seen_on_the_dark_ground(family):
    assert report.contrast(report.lightened(COLOURS[family]), report.DARK_GROUND) >= report.LEAST_CONTRAST


def test_a_folder_in_the_files_place_is_one_sentence(sweep, tmp_path):
    with pytest.raises(SpecError, match="is a folder; name a file"):
        report.write_report(sweep, tmp_path)


def test_without_the_plotting_library_it_says_what_to_install(tmp_path):
    code = "import sys; sys.modules['plotly'] = None; from helix_sim.cli import main; main()"
    arguments = ["report", "paper-deepseek-r1", "--out", str(tmp_path / "r.html")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert shown.returncode == 2
    assert len(shown.stderr.splitlines()) == 1
    assert "pip install 'helix-sim[report]'" in shown.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_verb_says_what_it_wrote(tmp_path):
    pytest.importorskip("plotly", reason="the extra `report` is not installed")
    (tmp_path / "small.yaml").write_text(SMALL)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "helix_sim", "report", "small.yaml", "--out", "new/r.html", "--json"]
    shown = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["bytes"] == (tmp_path / "new" / "r.html").stat().st_size


# --- In a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield running
        running.close()


@contextlib.contextmanager
def opened(browser, path, **settings):
    """The report in a page of its own; `page.problems` and `page.asked` list errors and requests."""
    context = browser.new_context(**({"viewport": {"width": 1200, "height": 900}} | settings))
    page = context.new_page()
    page.problems, page.asked = [], []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda said: page.problems.append(said.text) if said.type in ("error", "warning") else None)
    context.set_default_timeout(120_000)  # a machine may be busy
    context.on("request", lambda request: page.asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    yield page
    assert page.problems == []
    assert page.asked == [path.as_uri()]
    context.close()


@pytest.fixture
def page(browser, written):
    with opened(browser, written) as shown:
        yield shown


def show_only(page, family):
    """Toggle every curve off but one, so that no other lies over its points."""
    for button in page.locator("#families button").all():
        if button.get_attribute("data-family") != family:
            button.click()


def place_of(page, family, index):
    """Where a point of a family lies in the window."""
    page.locator("#plot").scroll_into_view_if_needed()
    return page.evaluate(
        """([family, i]) => {
            const {xaxis, yaxis} = plot._fullLayout, box = plot.getBoundingClientRect();
            const trace = plot.data.find(trace => trace.meta === family);
            return [box.x + xaxis._offset + xaxis.d2p(trace.x[i]), box.y + yaxis._offset + yaxis.d2p(trace.y[i])];
        }""",
        [family, index],
    )


def lines_drawn(page):
    """Curves of the plot that are visible."""
    return set(page.evaluate("plot.data.filter(t => t.meta && t.visible === true).map(t => t.meta)"))


def test_hover_shows_the_layout_its_latency_memory_and_what_binds(page, result):
    show_only(page, "helix")
    curve = result.frontiers[1_000_000]["helix"]
    for index in (0, len(curve) - 1):
        page.mouse.move(*place_of(page, "helix", index))
        page.wait_for_selector(".hoverlayer .hovertext")
        shown, point = page.locator(".hoverlayer").text_content(), curve.point(index)
        assert f"{point['gpus']} GPUs" in shown
        assert f"KVP {point['kvp']}" in shown
        assert f"batch {point['batch']}" in shown
        assert float(re.search(r"TTL ([\d.]+) ms", shown)[1]) == pytest.approx(point["ttl_s"] * 1e3, rel=1e-3)
        assert float(re.search(r"memory ([\d.]+) of", shown)[1]) == pytest.approx(
            point["resident_bytes"] / 1e9, rel=1e-3
        )
        assert re.search(r"binds: (HBM|latency|links|arithmetic) \d+", shown)
        page.mouse.move(2, 2)
        page.wait_for_selector(".hoverlayer .hovertext", state="detached")


def test_toggle_hides_a_family_and_brings_it_back(page):
    button = page.locator("#families button[data-family=tp]")
    before = lines_drawn(page)
    assert "tp" in before
    button.click()
    assert lines_drawn(page) == before - {"tp"}
    assert page.locator("#families button[data-family=tp]").get_attribute("aria-pressed") == "false"
    page.locator("#families button[data-family=tp]").click()
    assert lines_drawn(page) == before


def test_two_clicks_compare_op_breakdowns_that_are_the_librarys(page, result):
    show_only(page, "helix")
    last = len(result.frontiers[1_000_000]["helix"]) - 1
    for index in (0, last):
        page.mouse.click(*place_of(page, "helix", index))
        page.wait_for_timeout(400)  # two clicks in quick succession are one double click
    sides = [{row["op"]: row for row in expected_rows(result, 1_000_000, "helix", index)} for index in (0, last)]
    rows = page.locator("#ops tbody tr[data-op]").all()
    assert [row.get_attribute("data-op") for row in rows] == [
        op for op in sides[0] if any(side[op]["seconds"] for side in sides)
    ]
    for row in rows:
        op, cells = row.get_attribute("data-op"), row.locator("td[data-us]").all()
        for side, cell in zip(sides, cells, strict=True):
            assert float(cell.get_attribute("data-us")) * 1e-6 == pytest.approx(side[op]["seconds"], rel=1e-5)
            assert float(cell.get_attribute("data-hidden-us")) * 1e-6 == pytest.approx(side[op]["hidden_s"], rel=1e-5)
            assert cell.get_attribute("data-binds") == side[op]["binds"]
            spent = (side[op]["seconds"] - side[op]["hidden_s"]) * 1e6
            read = cell.evaluate("cell => [...cell.childNodes].find(n => n.nodeType === 3).textContent")
            assert float(read.replace(",", "")) == pytest.approx(spent, rel=1e-3, abs=6e-4)


def test_a_third_click_begins_a_new_comparison(page, result):
    show_only(page, "helix")
    assert page.locator("#ops td[data-us]").count() % 2 == 0
    page.mouse.click(*place_of(page, "helix", 0))
    page.wait_for_selector("#compare >> text=click another")


def test_axes_switch_between_log_and_linear(page):
    kinds = "[plot._fullLayout.xaxis.type, plot._fullLayout.yaxis.type]"
    assert page.evaluate(kinds) == ["log", "log"]
    page.locator("#log-x").click()
    assert page.evaluate(kinds) == ["linear", "log"]
    page.locator("#log-y").click()
    assert page.evaluate(kinds) == ["linear", "linear"]


def test_another_measure_is_drawn_against_and_its_axis_says_so(page, result):
    machine = result.plan.machine
    for column in ("usd_per_million_tokens", "joules_per_token", "tokens_per_s_gpu"):
        page.locator("#against").select_option(value=column)
        drawn = page.evaluate("plot.data.find(trace => trace.meta === 'helix').y")
        throughput = result.frontiers[1_000_000]["helix"].throughput
        wanted = getattr(machine, column)(throughput) if column != "tokens_per_s_gpu" else throughput
        assert drawn == pytest.approx(wanted.tolist(), rel=1e-5)
        assert page.evaluate("plot._fullLayout.yaxis.title.text") == DRAWN[column]


def test_another_context_shows_its_own_frontiers(page, result):
    page.locator("#context").select_option(label="128K tokens")
    shown = page.evaluate("plot.data.find(trace => trace.meta === 'helix').x")
    assert shown == pytest.approx(result.frontiers[128_000]["helix"].interactivity.tolist(), rel=1e-5)


def test_names_are_text_and_never_markup(page):
    assert page.locator("h1").text_content() == "a few hundred layouts, A&B </script><b>not markup</b>"
    assert page.locator("h1 b").count() == 0


def test_no_button_sends_the_chart_away(page):
    page.locator("#plot").hover()
    titles = page.evaluate("[...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title)")
    wanted = ["download plot as a png", "zoom", "pan", "zoom in", "zoom out", "reset axes"]
    assert [title.lower() for title in titles] == wanted


def ground_and_lines(page):
    """Backgrounds of page and plot, and the colours of its lines."""
    return page.evaluate(
        """() => ({
            page: getComputedStyle(document.body).backgroundColor,
            plot: document.querySelector("#plot .main-svg").style.background,
            lines: plot.data.filter(trace => trace.meta).map(trace => trace.line.color),
        })"""
    )


def test_light_and_dark_follow_the_reader_and_change_at_once(browser, written):
    with opened(browser, written, color_scheme="light") as page:
        light = ground_and_lines(page)
        assert light["page"] == light["plot"] == "rgb(255, 255, 255)"
        assert light["lines"] == [COLOURS[name] for name in ("tp", "pp", "helix", "baseline", "helix")]
        page.emulate_media(color_scheme="dark")
        page.wait_for_selector("#plot .main-svg[style*='rgb(21, 24, 29)']")
        dark = ground_and_lines(page)
        assert dark["page"] == dark["plot"] == "rgb(21, 24, 29)"
        assert all(report.contrast(line, report.DARK_GROUND) >= report.LEAST_CONTRAST for line in dark["lines"])


@pytest.mark.parametrize("width", [360, 390])
def test_a_phones_width_needs_no_sideways_scroll(browser, written, width):
    phone = {"viewport": {"width": width, "height": 844}, "has_touch": True, "is_mobile": True}
    with opened(browser, written, **phone) as page:
        page.locator("details summary").tap()
        assert page.locator("#constants td").count() > 20
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("#plot .main-svg").first.bounding_box()["width"] <= width


def test_a_tap_on_a_phone_chooses_one_point_and_a_second_another(browser, written):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    with opened(browser, written, **phone) as page:
        page.touchscreen.tap(*place_of(page, "helix", 0))
        page.wait_for_selector("#compare >> text=click another")
        page.wait_for_timeout(500)  # a browser says a tap again, as a mouse's click
        assert "click another" in page.locator("#compare").text_content()
        page.touchscreen.tap(*place_of(page, "helix", 5))
        page.wait_for_selector("#compare >> text=click another", state="detached")

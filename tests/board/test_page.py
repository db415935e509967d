"""The page in a real browser, inside TensorBoard: it paints what was logged, and stays on this machine."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import contextmanager

import numpy as np
import pytest
from board.conftest import HOSTILE, NAN_STEP, Server, log_values, some_values

from gradlab.board.file_source import FileSource
from gradlab.events import EventWriter
from gradlab.frame import Frame, Schema, Series
from gradlab.runs.folder import RunFolder
from gradlab.sinks import TensorBoardSink

pytestmark = [pytest.mark.browser, pytest.mark.slow]
NOT_FINITE = {"light": [240, 20, 110], "dark": [255, 61, 139]}


@contextmanager
def opened(chromium, url, **options):
    """A page; afterwards nothing must have gone to another machine and nothing must have gone wrong."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, **options)
    page = context.new_page()
    wrong, far = [], []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if is_ours(message) else None)
    page.on("request", lambda request: far.append(request.url) if not near(request.url) else None)
    page.goto(url)
    try:
        yield page
        assert wrong == []
        assert far == []
    finally:
        context.close()


def is_ours(message):
    """Whether a message is an error; TensorBoard itself asks in vain for its fonts below a path prefix."""
    url = message.location.get("url", "")
    return message.type == "error" and "/font-roboto/" not in url and not url.endswith("/favicon.ico")


def near(url):
    return re.match(r"https?://127\.0\.0\.1[:/]|(data|blob|file|about):", url) is not None


def tab(page):
    """The frame of the tab, once it is there."""
    page.wait_for_function(
        "[...document.querySelectorAll('iframe')].some(f => f.contentDocument?.querySelector('main'))"
    )
    return next(frame for frame in page.frames if "plugin_entry" in frame.url)


def painted(frame):
    """Wait for a heat map; returns how many colours it has."""
    frame.wait_for_selector("canvas.heat")
    count = """() => {
        const canvas = document.querySelector("canvas.heat");
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return new Set(new Uint32Array(data.buffer)).size;
    }"""
    frame.wait_for_function(f"({count})() > 10")
    return frame.evaluate(count)


def colour_at(frame, step, num_steps, row, num_rows):
    """The colour of a cell, [r, g, b]."""
    place = f"""() => {{
        const canvas = document.querySelector("canvas.heat");
        const x = Math.floor(({step} + 0.5) / {num_steps} * canvas.width);
        const y = Math.floor(({row} + 0.5) / {num_rows} * canvas.height);
        return [...canvas.getContext("2d").getImageData(x, y, 1, 1).data].slice(0, 3);
    }}"""
    return frame.evaluate(place)


def hover(page, frame, step, num_steps, row, num_rows):
    """Move to a cell; returns the tip's text."""
    canvas = frame.locator("canvas.heat")
    box = canvas.bounding_box()
    page.mouse.move(
        box["x"] + (step + 0.5) / num_steps * box["width"], box["y"] + (row + 0.5) / num_rows * box["height"]
    )
    frame.wait_for_selector(".tip", state="visible")
    return frame.locator(".tip").first.inner_text()


def shown_number(text):
    """The number in a text of the page."""
    return float(re.sub("−", "-", re.search(r"^[−\d.][\d.,e−-]*$", text, re.M).group()).replace(",", ""))


@pytest.fixture(scope="module")
def truth(logdir):
    """What was logged of weight_grad.norm in the trained run: [steps, sites]."""
    source = FileSource(logdir / "trained", "trained")
    tag = next(tag for tag in source.list("gradlab")["trained"] if "/weight_grad.norm/" in tag and "/x" not in tag)
    return source.read("gradlab", "trained", tag).values


def test_the_flow_paints_and_hovering_gives_the_logged_values(chromium, server, truth):
    with opened(chromium, server.url("&p.gradlab.run=trained")) as page:
        frame = tab(page)
        painted(frame)
        for step, row in ((0, 0), (10, 2), (59, 3)):
            text = hover(page, frame, step, 60, row, 4)
            assert f"step {step}\n" in text
            assert shown_number(text) == pytest.approx(float(truth[step, row]), rel=1e-3)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_step_that_was_not_finite_is_seen_in_both_themes(chromium, server, theme):
    query = "?darkMode=true" if theme == "dark" else ""
    with opened(chromium, server.url("&p.gradlab.run=trained", query=query)) as page:
        frame = tab(page)
        painted(frame)
        assert frame.evaluate("document.body.dataset.theme") == theme
        assert colour_at(frame, NAN_STEP, 60, 1, 4) == NOT_FINITE[theme]
        assert colour_at(frame, NAN_STEP - 2, 60, 1, 4) != NOT_FINITE[theme]
        assert "not finite" in hover(page, frame, NAN_STEP, 60, 1, 4)
        assert frame.locator(".marks .tick").count() == 1


def test_the_theme_can_be_changed_while_it_is_open(chromium, server):
    with opened(chromium, server.url("&p.gradlab.run=trained")) as page:
        frame = tab(page)
        painted(frame)
        page.evaluate("document.body.classList.add('dark-mode')")
        frame.wait_for_function("document.body.dataset.theme === 'dark'")
        assert colour_at(frame, NAN_STEP, 60, 1, 4) == NOT_FINITE["dark"]


def test_a_finding_leads_to_its_step_and_site(chromium, server):
    with opened(chromium, server.url("&p.gradlab.run=trained")) as page:
        frame = tab(page)
        painted(frame)
        frame.locator(".finding", has_text="GL702").click()
        frame.wait_for_selector(".side .site-name")
        assert frame.locator(".side .site-name").inner_text() in ("2.bias", "0.weight")
        frame.locator(".marks .mark").first.click()
        assert f"step {NAN_STEP}" in frame.locator(".side .sub").inner_text()
        assert f"p.gradlab.step={NAN_STEP}" in page.url


def test_a_site_opens_with_all_its_lines(chromium, server):
    with opened(chromium, server.url("&p.gradlab.run=trained&p.gradlab.view=layer&p.gradlab.site=0.weight")) as page:
        frame = tab(page)
        frame.wait_for_selector(".js-plotly-plot .main-svg")
        names = frame.evaluate("document.querySelector('.chart').data.map(t => t.name).filter(Boolean)")
        assert set(names) == {"weight_grad.norm", "weight.norm", "update.norm", "update_ratio", "train/loss", "lr"}
        assert "CS231n" in frame.locator(".guide").inner_text()
        kinds = frame.evaluate("document.querySelector('.chart').data.map(t => t.type)")
        assert "heatmap" in kinds


def test_two_runs_are_subtracted(chromium, server):
    with opened(chromium, server.url("&p.gradlab.run=trained")) as page:
        frame = tab(page)
        painted(frame)
        frame.get_by_label("Compared with").select_option("other")
        frame.wait_for_function("document.querySelector('.flow-title').innerText.includes('log2 ratio')")
        assert "×" in hover(page, frame, 10, 50, 0, 4)


def test_sites_are_found_by_a_glob_and_blocks_fold(chromium, server):
    with opened(chromium, server.url("&p.gradlab.run=hostile")) as page:
        frame = tab(page)
        painted(frame)
        frame.get_by_label("Sites").fill("blocks.0.*")
        frame.wait_for_function("document.querySelector('.flow-facts').innerText.startsWith('2 of 4')")
        frame.get_by_label("Sites").fill("nothing*")
        frame.wait_for_function("document.querySelector('.flow-head').innerText.includes('No site fits')")
        frame.get_by_text("Show all sites").click()
        frame.get_by_text("Fold all").click()
        frame.wait_for_function("document.querySelector('canvas.heat').ariaLabel.includes('3 rows')")


def test_the_keyboard_reaches_every_cell(chromium, server, truth):
    with opened(chromium, server.url("&p.gradlab.run=trained")) as page:
        frame = tab(page)
        painted(frame)
        frame.locator("canvas.heat").focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowDown"):
            page.keyboard.press(key)
        said = frame.locator(".said").inner_text()
        assert said.startswith("0.bias, step 2, ")
        assert shown_number(said.split(", ")[2]) == pytest.approx(float(truth[2, 1]), rel=1e-3)
        page.keyboard.press("Enter")
        frame.wait_for_selector("#gl-tab-layer[aria-selected=true]")


def test_the_slider_shows_the_block_of_another_step(chromium, server):
    with opened(chromium, server.url("&p.gradlab.run=trained&p.gradlab.view=jacobian")) as page:
        frame = tab(page)
        frame.wait_for_selector("canvas.matrix")
        assert "40 (3 of 3)" in frame.locator(".at").inner_text()
        frame.locator("input[type=range]").focus()
        page.keyboard.press("ArrowLeft")
        frame.wait_for_function("document.querySelector('.at').innerText.startsWith('20 ')")
        page.wait_for_function("location.hash.includes('p.gradlab.step=20')")
        frame.wait_for_selector(".js-plotly-plot .main-svg")


def test_runs_stand_side_by_side_with_what_differs(chromium, server):
    with opened(chromium, server.url("&p.gradlab.view=runs")) as page:
        frame = tab(page)
        frame.wait_for_selector(".run-card")
        assert frame.locator(".run-card").count() == 3
        assert "optimizer.lr" in frame.locator("table.plain thead").inner_text()


def test_hostile_names_are_text(chromium, server):
    with opened(chromium, server.url("&p.gradlab.run=hostile")) as page:
        frame = tab(page)
        painted(frame)
        frame.wait_for_selector(".finding")
        assert f"{HOSTILE} is bad" in frame.locator(".finding-text").inner_text()
        frame.locator(".finding").click()
        frame.wait_for_selector(".side .site-name")
        frame.get_by_text("Open this site").click()
        frame.wait_for_selector(".js-plotly-plot .main-svg")
        assert frame.locator("h2.site-name").first.inner_text() == f"blocks.1.{HOSTILE}"
        assert page.title() != "owned"
        assert frame.evaluate("document.images.length") == 0


def test_what_the_address_asks_for_and_is_not_there_is_said(chromium, server):
    with opened(chromium, server.url("&p.gradlab.run=gone&p.gradlab.metric=weight_grad.nrom")) as page:
        frame = tab(page)
        painted(frame)
        notes = frame.locator(".notes").inner_text()
        assert "The run “gone” is not here; another one is shown." in notes


def test_a_run_without_jacobians_or_profiles_says_so(chromium, server):
    with opened(chromium, server.url("&p.gradlab.run=hostile&p.gradlab.view=jacobian")) as page:
        frame = tab(page)
        frame.wait_for_selector(".empty-title")
        assert frame.locator(".empty-title").inner_text() == "No Jacobians in this run"
    with opened(chromium, server.url("&p.gradlab.run=trained&p.gradlab.view=profile")) as page:
        frame = tab(page)
        frame.wait_for_function("document.querySelector('.empty-title')?.innerText === 'No profile of this run'")


def test_a_window_of_the_profiler_shows_all_its_parts(chromium, server):
    with opened(chromium, server.url("&p.gradlab.run=hostile&p.gradlab.view=profile")) as page:
        frame = tab(page)
        frame.wait_for_selector(".empty-title")
        assert frame.locator(".empty-title").inner_text() == "This window has no summary"
        frame.get_by_label("Window").select_option("step_000003")
        frame.wait_for_selector(".icicle div")
        titles = frame.locator(".card h2").all_inner_texts()
        assert titles == [
            "Time by step",
            "Time by module",
            "Operators",
            "Memory at its peak",
            "Device: A device",
            "Kernels",
            "2 ranks",
        ]
        text = frame.locator(".scrolls").inner_text()
        for part in (
            "Straggler-bound. Rank 1 is late.",
            "step 2 took 40 ms",
            "5.00 MB on cuda:0",
            "blocks.0.fc",
            "61 %",
        ):
            assert part in text
        frame.get_by_role("button", name="backward").click()
        frame.wait_for_function("document.querySelector('[aria-pressed=true]').innerText === 'backward'")
        assert "Save for Perfetto" in frame.locator(".links").inner_text()


@pytest.mark.parametrize("arguments", [(), ("--load_fast=false", "--path_prefix=/foo/tb")])
def test_it_grows_with_the_run(chromium, tmp_path, arguments):
    sites = ("a.0.weight", "a.1.weight")
    sink = TensorBoardSink(EventWriter(tmp_path / "logs" / "run"))
    values = some_values(60, 2)

    def log(first, last):
        for step in range(first, last):
            series = Series(Schema("weight_grad.norm", sites), values[step])
            sink.frame(Frame(step, 1e9 + step, {"weight_grad.norm": series}))
        sink.flush()

    log(0, 20)
    prefix = "/foo/tb" if arguments else ""
    server = Server(tmp_path / "logs", *arguments)
    try:
        server.wait(f"{prefix}/data/plugin/gradlab/index")
        with opened(chromium, server.url(prefix=prefix)) as page:
            frame = tab(page)
            frame.wait_for_function("document.querySelector('.flow-facts')?.innerText.includes('steps 0 – 19')")
            log(20, 60)
            frame.wait_for_function("document.querySelector('.flow-facts')?.innerText.includes('steps 0 – 59')")
            assert colour_at(frame, 30, 60, 0, 2) == NOT_FINITE["light"]
    finally:
        sink.close()
        server.stop()


def test_a_logdir_without_gradlab_data_says_how_to_begin(chromium, tmp_path):
    writer = EventWriter(tmp_path / "logs" / "run")
    writer.scalars({"loss": 1.0}, 0)
    writer.close()
    server = Server(tmp_path / "logs")
    try:
        server.wait("/data/plugin/gradlab/index")
        with opened(chromium, f"http://127.0.0.1:{server.port}/data/plugin_entry.html?name=gradlab") as page:
            page.wait_for_selector(".empty-title")
            assert page.locator(".empty-title").inner_text() == "No gradlab data here yet"
    finally:
        server.stop()


def test_the_report_opens_without_a_server_or_a_network(chromium, tmp_path, logdir, truth):
    run = RunFolder.create(tmp_path / "runs", "net")
    for file in (logdir / "trained").iterdir():
        (run.events / file.name).write_bytes(file.read_bytes())
    run.record.write_text("{}")
    html = tmp_path / "report.html"
    command = [sys.executable, "-m", "gradlab", "show", "@1", "--runs", str(tmp_path / "runs"), "--html", str(html)]
    subprocess.run(command, check=True, capture_output=True)
    with opened(chromium, html.as_uri(), offline=True) as page:
        painted(page)
        text = hover(page, page, 10, 60, 2, 4)
        assert shown_number(text) == pytest.approx(float(truth[10, 2]), rel=1e-3)
        assert colour_at(page, NAN_STEP, 60, 1, 4) == NOT_FINITE["light"]
        page.get_by_role("tab", name="Layer").click()
        page.wait_for_selector(".js-plotly-plot .main-svg")
        page.get_by_role("tab", name="Jacobians").click()
        page.wait_for_selector("canvas.matrix")
        assert page.get_by_role("tab", name="Runs").count() == 0


def test_an_overview_of_a_long_run_shows_a_single_bad_step(chromium, tmp_path):
    values = np.full((9000, 3), 0.1, np.float32)
    values[4321, 1] = np.nan
    log_values(tmp_path / "logs" / "run", values, ("a", "b", "c"))
    server = Server(tmp_path / "logs")
    try:
        server.wait("/data/plugin/gradlab/index")
        with opened(chromium, server.url()) as page:
            frame = tab(page)
            frame.wait_for_selector(".marks .tick")
            assert frame.locator(".marks .tick").count() == 1
            assert "blocks of 32" in frame.locator(".flow-facts").inner_text()
            text = hover(page, frame, 4321, 9000, 1, 3)
            assert "not finite" in text
    finally:
        server.stop()

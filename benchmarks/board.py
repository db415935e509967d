"""How soon the Gradients tab is painted: 20 runs of 200 layers by 5,000 steps, beside the same data as scalars.

    python benchmarks/board.py [--runs N] [--steps N] [--long N]

Everything is measured in one Chromium, in turns. `tab` counts from the moment at which TensorBoard's own page has made
the tab's frame to the first complete picture (flow, loss, findings); `page` counts from the navigation, and so holds
TensorBoard's own start. The server has loaded all data before. "Time Series" is TensorBoard's own tab on the same
values as one scalar a layer, of fewer runs: it counts to its first cards, a few of 200 a screen.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from environment import write_result
from playwright.sync_api import Browser, Page, sync_playwright

from gradlab.events import EventWriter
from gradlab.frame import Schema

SITES = tuple(f"encoder.layers.{i // 4}.{('qkvo')[i % 4]}.weight" for i in range(200))
METRIC = "weight_grad.norm"
ROUNDS = 5
HOVERS = 60
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PAINTED = """() => {
    const frames = [...document.querySelectorAll("iframe")];
    const frame = frames.find((one) => one.contentDocument?.querySelector("canvas.heat"));
    const canvas = frame?.contentDocument.querySelector("canvas.heat");
    if (!canvas || !canvas.width || !frame.contentDocument.querySelector(".side section + section")) return null;
    const { data } = canvas.getContext("2d").getImageData(canvas.width >> 1, 0, 1, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size > 5 ? performance.now() : null;
}"""
FRAME = """() => {
    const frames = [...document.querySelectorAll("iframe")];
    return frames.some((one) => one.contentDocument?.querySelector("script, main")) ? performance.now() : null;
}"""
CARDS = """() => {
    const cards = [...document.querySelectorAll("card-view, scalar-card")];
    const lines = document.querySelectorAll("line-chart canvas, line-chart svg path, scalar-card canvas");
    return cards.length && lines.length ? performance.now() : null;
}"""
HOVER = """async (moves) => {
    const frames = [...document.querySelectorAll("iframe")];
    const frame = frames.find((one) => one.contentDocument?.querySelector("canvas.heat"));
    const canvas = frame.contentDocument.querySelector("canvas.heat");
    const box = canvas.getBoundingClientRect();
    const times = [];
    for (let i = 0; i < moves; i += 1) {
        const [x, y] = [((i * 37) % 97) / 97 * box.width, ((i * 53) % 89) / 89 * box.height];
        const place = { clientX: box.left + x, clientY: box.top + y };
        const event = new frame.contentWindow.PointerEvent("pointermove", place);
        const start = performance.now();
        canvas.dispatchEvent(event);
        frame.contentDocument.querySelector(".tip").getBoundingClientRect();
        times.push(performance.now() - start);
        await new Promise((next) => frame.contentWindow.requestAnimationFrame(next));
    }
    return times;
}"""


def write_vectors(folder: Path, num_steps: int, seed: int, sites: tuple[str, ...] = SITES) -> None:
    """A run as gradlab logs it."""
    writer, schema = EventWriter(folder), Schema(METRIC, sites)
    for step, row in enumerate(numbers(num_steps, len(sites), seed)):
        writer.vectors([(schema, row)], step, 1.5e9 + step)
        if step % 10 == 0:
            writer.scalars({"train/loss": float(row[0])}, step, 1.5e9 + step)
    writer.close()


def write_scalars(folder: Path, num_steps: int, seed: int) -> None:
    """The same values as one scalar a layer."""
    writer = EventWriter(folder)
    for step, row in enumerate(numbers(num_steps, len(SITES), seed)):
        writer.scalars({f"{METRIC}/{site}": float(value) for site, value in zip(SITES, row, strict=True)}, step, 1.5e9)
    writer.close()


def numbers(num_steps: int, num_sites: int, seed: int) -> Iterator[np.ndarray]:
    """Rows [sites] float32 of a smooth course with noise."""
    random = np.random.default_rng(seed)
    level = random.normal(-3, 1.5, num_sites)
    for start in range(0, num_steps, 1000):
        steps = np.arange(start, min(start + 1000, num_steps))[:, None]
        noise = random.normal(0, 0.4, (len(steps), num_sites))
        yield from np.exp(level - 2 * steps / num_steps + noise).astype(np.float32)


@contextlib.contextmanager
def tensorboard(logdir: Path, *arguments: str) -> Iterator[int]:
    """TensorBoard on a logdir; the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    process = subprocess.Popen([*command, "--port", str(port), *arguments], **quiet)
    try:
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def loaded(port: int, path: str, text: str, times: int, deadline: float = 1800) -> float:
    """Seconds until an answer of the server holds `text` so many times."""
    began = time.monotonic()
    while time.monotonic() - began < deadline:
        with contextlib.suppress(URLError, OSError):
            answer = urlopen(f"http://127.0.0.1:{port}{path}", timeout=60).read().decode()
            if answer.count(text) >= times:
                return time.monotonic() - began
        time.sleep(0.25)
    raise TimeoutError(path)


def milliseconds(page: Page, script: str) -> float:
    """The page's clock when `script` first gives a time."""
    return float(page.wait_for_function(script, polling=10, timeout=120_000).json_value())


def paint(browser: Browser, url: str) -> dict[str, float]:
    """One opening of the tab, in milliseconds; a new context, so that nothing is in a cache."""
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        page = context.new_page()
        page.goto(url, wait_until="commit")
        frame = milliseconds(page, FRAME)
        done = milliseconds(page, PAINTED)
        hovers = page.evaluate(HOVER, HOVERS)
        return {"page": done, "tab": done - frame, "hover": statistics.median(hovers), "slow_hover": max(hovers)}


def cards(browser: Browser, url: str) -> dict[str, float]:
    """One opening of Time Series."""
    with browser.new_context(viewport={"width": 1280, "height": 800}) as context:
        page = context.new_page()
        page.goto(url, wait_until="commit")
        return {"page": milliseconds(page, CARDS)}


def row(name: str, found: list[dict[str, float]], load: float, note: str) -> dict[str, str | float | None]:
    def median(key: str) -> float | None:
        return round(statistics.median(one[key] for one in found), 1) if key in found[0] else None

    return {
        "variant": name,
        "page ms": median("page"),
        "tab ms": median("tab"),
        "hover ms": median("hover"),
        "slowest hover ms": median("slow_hover"),
        "load s": round(load, 1),
        "note": note,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--long", type=int, default=1_000_000, help="steps of the long run, of 20 layers")
    parser.add_argument("--scalar-runs", type=int, default=3, help="runs logged as scalars, which are slow to load")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gradlab-board-") as name:
        rows = measure(Path(name), options)
    settings = {"runs": options.runs, "steps": options.steps, "layers": len(SITES), "long_steps": options.long}
    write_result("board", rows, "tensorboard", "tensorboard-data-server", "playwright", "plotly", **settings)


def measure(root: Path, options: argparse.Namespace) -> list[dict[str, str | float | None]]:
    """All variants, in turns where their servers can live side by side."""
    for run in range(options.runs):
        write_vectors(root / "many" / f"run{run:02}", options.steps, run)
    few = SITES[:20]
    write_vectors(root / "short" / "run", options.steps, 0, few)
    write_vectors(root / "long" / "run", options.long, 0, few)
    for run in range(options.scalar_runs):
        write_scalars(root / "scalars" / f"run{run:02}", options.steps, run)
    last = f'"last_step": {options.steps - 1}'
    index, tags = "/data/plugin/gradlab/index", "/data/plugin/scalars/tags"
    with sync_playwright() as playwright, contextlib.ExitStack() as stack:
        browser = stack.enter_context(
            playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)  # type: ignore[arg-type]
        )
        ports = {
            key: stack.enter_context(tensorboard(root / folder, *arguments))
            for key, folder, arguments in (
                ("fast", "many", ("--load_fast=true",)),
                ("short", "short", ()),
                ("long", "long", ()),
                ("scalars", "scalars", ()),
            )
        }
        loads = {
            "fast": loaded(ports["fast"], index, last, 2 * options.runs),
            "short": loaded(ports["short"], index, last, 2),
            "long": loaded(ports["long"], index, f'"last_step": {options.long - 1}', 2),
            "scalars": loaded(ports["scalars"], tags, SITES[-1], options.scalar_runs),
        }
        time.sleep(3)
        found = rounds(browser, ports)
    slow, slow_load = slow_loader(root, index, last, 2 * options.runs)
    size = f"{options.runs} runs, {len(SITES)} layers, {options.steps:,} steps"
    return [
        row("Gradients tab, fast loader", found["fast"], loads["fast"], size),
        row("Gradients tab, slow loader", slow, slow_load, size),
        row("Gradients tab, one run", found["short"], loads["short"], f"20 layers, {options.steps:,} steps"),
        row("Gradients tab, one long run", found["long"], loads["long"], f"20 layers, {options.long:,} steps"),
        row(
            "Time Series, scalars",
            found["scalars"],
            loads["scalars"],
            f"{options.scalar_runs} runs, to the first cards",
        ),
    ]


def rounds(browser: Browser, ports: dict[str, int]) -> dict[str, list[dict[str, float]]]:
    """Each variant in turn, the first round left out: it fills the server's own caches."""
    found: dict[str, list[dict[str, float]]] = {key: [] for key in ports}
    for number in range(ROUNDS + 1):
        for key, port in ports.items():
            base = f"http://127.0.0.1:{port}/"
            one = cards(browser, f"{base}#timeseries") if key == "scalars" else paint(browser, f"{base}#gradlab")
            if number:
                found[key].append(one)
    return found


def slow_loader(root: Path, index: str, text: str, times: int) -> tuple[list[dict[str, float]], float]:
    """The same 20 runs through TensorBoard's Python loader, once it has loaded them."""
    with tensorboard(root / "many", "--load_fast=false") as port, sync_playwright() as playwright:
        load = loaded(port, index, text, times)
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        url = f"http://127.0.0.1:{port}/#gradlab"
        found = [paint(browser, url) for _ in range(ROUNDS + 1)][1:]
        browser.close()
    return found, load


if __name__ == "__main__":
    main()

"""A logged run that was really trained, and runs of plain numbers; TensorBoard as an application and as a server."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import pytest
import torch
from board.windows import write_windows
from torch import nn

import gradlab
from gradlab.events import EventWriter
from gradlab.finding import Finding
from gradlab.frame import ABSENT, Frame, Schema, Series
from gradlab.sinks import TensorBoardSink

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # TensorBoard's own copy of html5lib
    import tensorboard.plugin_util  # noqa: F401

HOSTILE = "<img src=x onerror=document.title='owned'>"
NAN_STEP = 41
DEADLINE = 120.0


def log_training(folder: Path, *, num_steps: int = 60, lr: float = 1e-2) -> None:
    """Train a small net for `num_steps`, with an input that is not finite at NAN_STEP; gradients and a Jacobian."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    sink = TensorBoardSink(EventWriter(folder))
    sink.writer.hparams({"optimizer": {"lr": lr}, "seed": 0})
    monitor = gradlab.watch(
        model,
        optimizer,
        taps=[
            gradlab.Tap("*", of="weight_grad", stats=["norm", "hist"]),
            gradlab.Tap("*", of=["weight", "update"], every=5),
            gradlab.Tap("*", of=["output", "output_grad"], stats=["norm", "zeros"], every=5),
        ],
        jacobians=[gradlab.JacobianSlice(of="2", wrt="0:in", rows=3, every=20)],
        sinks=[sink],
    )
    for step in range(num_steps):
        x = torch.randn(4, 6)
        if step == NAN_STEP:
            x[0, 0] = torch.nan
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        _step_without_nan(model, optimizer, step)
        sink.scalars({"train/loss": loss.item(), "lr": lr}, step, 1e9 + step)
    monitor.close()


def _step_without_nan(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """The optimizer's step; after the poisoned one the weights are put back, so that training goes on."""
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    if step == NAN_STEP:
        with torch.no_grad():
            for parameter, old in zip(model.parameters(), before, strict=True):
                parameter.copy_(old)


def log_values(folder: Path, values: np.ndarray, sites: tuple[str, ...], *, first: int = 0, metric="weight_grad.norm"):
    """Write [steps, sites] as they are, as a run of plain numbers; returns the writer's sink, closed."""
    sink = TensorBoardSink(EventWriter(folder))
    schema = Schema(metric, sites)
    for step, row in enumerate(np.asarray(values, np.float32), first):
        sink.frame(Frame(step, 1e9 + step, {metric: Series(schema, row)}))
    sink.close()
    return sink


def some_values(num_steps: int, num_sites: int) -> np.ndarray:
    """Lognormal numbers with a NaN, an infinity, a zero and a site that did not run for a while."""
    values = np.random.default_rng(0).lognormal(-3, 1, (num_steps, num_sites)).astype(np.float32)
    values[num_steps // 2, 0], values[num_steps // 2 + 1, 1] = np.nan, np.inf
    values[3, 1] = 0.0
    values[: num_steps // 3, num_sites - 1] = ABSENT
    return values


@pytest.fixture(scope="session")
def logdir(tmp_path_factory) -> Path:
    """A log directory with a trained run, another, one of plain numbers with hostile names, and one without gradlab."""
    root = tmp_path_factory.mktemp("logs")
    log_training(root / "trained")
    log_training(root / "other", lr=1e-3, num_steps=50)
    sites = ("blocks.0.attn.weight", "blocks.0.mlp.weight", f"blocks.1.{HOSTILE}", "head.weight")
    sink = TensorBoardSink(EventWriter(root / "hostile"))
    schema = Schema("weight_grad.norm", sites)
    for step, row in enumerate(some_values(90, 4)):
        sink.frame(Frame(step, 1e9 + step, {"weight_grad.norm": Series(schema, row)}))
    sink.finding(
        Finding(first_step=12, name="nonfinite", sites=(sites[2],), message=f"{HOSTILE} is bad", severity="error"), 1e9
    )
    sink.close()
    write_windows(root / "hostile")
    other = EventWriter(root / "plain")
    other.scalars({"loss": 1.0}, 0)
    other.close()
    return root


CAUSE = Finding(
    code="GL301",
    name="step-too-large",
    sites=("blocks.0.attn",),
    first_step=5,
    message="the steps are too large.",
    evidence={"update.norm / weight.norm": 0.5},
    remedy="Divide the learning rate by 10.",
)
SYMPTOM = Finding(code="GL401", name="dead", first_step=8, sites=("head",), message="head is dead.", severity="error")
OVER = Finding(code="GL702", name="nonfinite", first_step=12, message="a number is not finite.", severity="error")


def log_findings(folder: Path) -> None:
    """A run of 90 steps: a cause that goes on, a symptom whose cause is found later, and something that is over."""
    sites = ("blocks.0.attn.weight", "blocks.0.mlp.weight", "head.weight")
    sink = TensorBoardSink(EventWriter(folder))
    states = {
        8: [SYMPTOM],
        9: [CAUSE, replace(SYMPTOM, explained_by="GL301")],
        12: [OVER],
        13: [replace(OVER, last_step=12)],
        89: [replace(CAUSE, last_step=89), replace(SYMPTOM, explained_by="GL301", last_step=89)],
    }
    for step, row in enumerate(np.random.default_rng(0).lognormal(-3, 1, (90, 3)).astype(np.float32)):
        series = {metric: Series(Schema(metric, sites), row) for metric in ("weight_grad.norm", "update.norm")}
        sink.frame(Frame(step, 1e9 + step, series))
        for finding in states.get(step, []):
            sink.finding(finding, 1e9 + step)
    sink.close()


class Server:
    """TensorBoard in a process of its own."""

    def __init__(self, logdir: Path, *arguments: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = logdir.parent / f"{logdir.name}.tensorboard.log"
        command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((entry_point(logdir.parent), *sys.path))}
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), "--reload_interval", "1", *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def url(self, hash_: str = "", *, prefix: str = "", query: str = "") -> str:
        return f"http://127.0.0.1:{self.port}{prefix}/{query}#gradlab{hash_}"

    def get(self, path: str) -> bytes:
        with urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return answer.read()

    def wait(self, path: str = "/data/environment") -> None:
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            try:
                self.get(path)
            except (URLError, ConnectionError, TimeoutError):
                assert self.process.poll() is None, self.log.read_text()
                time.sleep(0.1)
            else:
                return
        raise AssertionError(f"TensorBoard did not come up: {self.log.read_text()[-2000:]}")

    def stop(self) -> None:
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue


def entry_point(folder: Path) -> str:
    """A folder that makes the plugin known to a Python whose installed gradlab may be older than this tree."""
    from importlib.metadata import entry_points

    if any(one.name == "gradlab" for one in entry_points(group="tensorboard_plugins")):
        return ""
    info = folder / "entry" / "gradlab_plugin-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: gradlab-plugin\nVersion: 0\n")
    (info / "entry_points.txt").write_text("[tensorboard_plugins]\ngradlab = gradlab.board.loader:GradlabLoader\n")
    return str(info.parent)


@pytest.fixture(scope="session")
def server(logdir) -> Iterator[Server]:
    """TensorBoard on `logdir`, loaded."""
    one = Server(logdir)
    try:
        one.wait("/data/plugin/gradlab/index")
        deadline = time.monotonic() + DEADLINE
        while one.get("/data/plugin/gradlab/index").count(b'"last_step"') < 4:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield one
    finally:
        one.stop()


@pytest.fixture(scope="session")
def chromium() -> Iterator[SimpleNamespace]:
    """A started browser, or a skip that says why there is none."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("needs Chromium; `apt-get install chromium` brings Debian's")
    playwright = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
    flags += ["--disable-background-networking", "--disable-component-update"]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()

"""Scripts that know nothing of gradlab, run bare and attached in processes of their own."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradlab.runs.find import all_runs
from gradlab.runs.folder import RunFolder

MODEL = """
import sys
import torch
import torch.nn.functional as F
from torch import nn

torch.manual_seed(0)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x):
        return self.fc2(F.relu(self.fc1(x)))

def train(net, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(net(torch.randn(4, 8)), torch.randint(0, 3, (4,))).backward()
        optimizer.step()

"""

_OURS = re.compile(r"^(gradlab: .*|.*GradlabWarning: .*)\n", re.M)


@dataclass(frozen=True)
class Ended:
    """A process that has ended."""

    code: int
    stdout: str
    stderr: str
    folder: Path

    @property
    def said(self) -> list[str]:
        """The lines in which gradlab says what could not be watched."""
        return [line for line in self.stderr.splitlines() if line.startswith("gradlab: ")]

    @property
    def run(self) -> RunFolder:
        """The one run that there is."""
        (run,) = all_runs(self.folder / "runs")
        return run

    @property
    def event_files(self) -> list[Path]:
        """All event files of that run."""
        return sorted(self.run.events.rglob("events.out.*"))

    @property
    def layers(self) -> dict[str, Any]:
        """The gradient norm of each layer in the summary."""
        summary = json.loads(self.run.summary.read_text())
        return {layer["site"]: layer["gradient_norm"] for layer in summary["layers"]}


class Script:
    """A script in a folder, and ways to run it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, code: str, *, model: str = MODEL) -> Script:
        """The script's text, after that of the model."""
        (self.folder / "train.py").write_text(model + code)
        return self

    def start(self, *command: str, **options: Any) -> subprocess.Popen[str]:
        """Start a command in the folder."""
        root = str(Path(__file__).parents[1])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, **options.pop("env", {})}
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def call(self, *command: str, stdin: str = "", env: dict[str, str] | None = None) -> Ended:
        """Run a command to its end."""
        process = self.start(*command, env=env or {})
        try:
            stdout, stderr = process.communicate(stdin, timeout=180)
        finally:
            process.kill()
        return Ended(process.returncode, stdout, stderr, self.folder)

    def bare(self, *arguments: str, **options: Any) -> Ended:
        """Run it without gradlab."""
        return self.call(sys.executable, "train.py", *arguments, **options)

    def attached(self, *arguments: str, flags: tuple[str, ...] = (), **options: Any) -> Ended:
        """Run it under `gradlab attach`."""
        return self.call(sys.executable, "-m", "gradlab", "attach", *flags, "train.py", *arguments, **options)


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def without_ours(stderr: str) -> str:
    """What a script wrote to standard error, without gradlab's lines and the summary at the end."""
    return _OURS.sub("", stderr).split("\ntrain  ")[0]

"""TensorBoard on chosen runs: a logdir made of links, the server's process, and a useful address.

Needs neither torch nor TensorFlow; TensorBoard runs in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

from gradlab.errors import MachineError
from gradlab.runs.folder import RunFolder

_START_SECONDS = 60.0
_STOP_SECONDS = 5.0
SCALAR_CARDS = ("train/loss", "gradlab/global/weight_grad.norm")
"""The scalars that the address pins, where the model and the taps bring them."""


def link_runs(logdir: Path, runs: Sequence[RunFolder]) -> None:
    """Make `logdir/<name>/<id>` a link to the event files of each run; those that are there stay."""
    for run in runs:
        link = logdir / run.path.parent.name / run.id
        link.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            link.symlink_to(run.events.resolve(), target_is_directory=True)


def address(port: int, *, images: Sequence[tuple[str, str]] = ()) -> str:
    """The address of the Gradients tab; in the Time Series tab the cards that are worth a look are pinned.

    Args:
        port: the server's.
        images: pairs of run and tag, as TensorBoard names them.
    """
    cards: list[dict[str, object]] = [{"plugin": "scalars", "tag": tag} for tag in SCALAR_CARDS]
    for run, tag in images:
        # Without this prefix TensorBoard ignores the card and says nothing.
        cards.append({"plugin": "images", "tag": tag, "runId": f"defaultExperimentId/{run}", "sample": 0})
    pinned = quote(json.dumps(cards, separators=(",", ":")), safe="")
    return f"http://127.0.0.1:{port}/?pinnedCards={pinned}#gradlab"


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving(logdir: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """TensorBoard on `logdir` for the time of a `with` block, once it answers.

    It gets a process group of its own, which is ended with the block: TensorBoard's loader and the profiler tab start
    processes that would outlive it otherwise.

    Raises:
        MachineError: where it does not come up.
    """
    log = logdir / ".tensorboard.log"
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
    with log.open("wb") as output:
        server = subprocess.Popen(
            [*command, "--port", str(port)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_up(server, port, log)
        yield server
    finally:
        _end_group(server)


def _wait_until_up(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return once the server answers."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{port}/data/environment", timeout=5):
            return
        time.sleep(0.1)
    last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
    raise MachineError("TensorBoard did not start; ask `gradlab doctor`. Its last words:\n" + "\n".join(last))


def _end_group(server: subprocess.Popen[bytes]) -> None:
    """End the server and everything that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(_STOP_SECONDS)

"""TensorBoard on runs: links, the address, and a server that leaves nothing behind."""

import json
import os
import sys
import time
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import pytest

from gradlab.errors import MachineError
from gradlab.events import EventWriter
from gradlab.launch import tensorboard
from gradlab.launch.tensorboard import address, free_port, link_runs, serving
from gradlab.runs.folder import RunFolder


def make_run(root, name):
    run = RunFolder.create(root, name)
    writer = EventWriter(run.events)
    writer.scalars({"train/loss": 0.5}, 0)
    writer.close()
    return run


def test_runs_are_linked_by_name_and_id_and_linking_again_adds_the_new_ones(tmp_path):
    first = make_run(tmp_path / "runs", "digits")
    link_runs(tmp_path / "logdir", [first])
    second = make_run(tmp_path / "runs", "text")
    link_runs(tmp_path / "logdir", [second, first])
    for run in (first, second):
        assert (tmp_path / "logdir" / run.name / run.id).resolve() == run.events.resolve()


def test_the_address_opens_time_series_with_pinned_cards():
    url = urlsplit(address(6006, images=[("digits/20261101-080000-abcd", "gradlab/jacobian/x")]))
    assert (url.scheme, url.netloc, url.fragment) == ("http", "127.0.0.1:6006", "gradlab")
    assert json.loads(parse_qs(url.query)["pinnedCards"][0]) == [
        {"plugin": "scalars", "tag": "train/loss"},
        {"plugin": "scalars", "tag": "gradlab/global/weight_grad.norm"},
        {
            "plugin": "images",
            "tag": "gradlab/jacobian/x",
            "runId": "defaultExperimentId/digits/20261101-080000-abcd",
            "sample": 0,
        },
    ]


def members(group):
    """The living processes of a process group: those that have ended may wait for init to take note."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            alive = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
            if alive and os.getpgid(int(entry)) == group:
                found.append(int(entry))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def test_the_server_shows_the_runs_and_leaves_no_process(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nsleep 600 &\nexec {sys.executable} "$@"\n')  # a child that would outlive it
    python.chmod(0o755)
    monkeypatch.setattr(tensorboard.sys, "executable", str(python))
    run = make_run(tmp_path / "runs", "digits")
    logdir = tmp_path / "logdir"
    link_runs(logdir, [run])
    port = free_port()
    with serving(logdir, port) as server:
        with urlopen(f"http://127.0.0.1:{port}/data/runs", timeout=60) as answer:
            assert json.load(answer) == [f"digits/{run.id}"]
        group = server.pid
        assert len(members(group)) > 1
    deadline = time.monotonic() + 60
    while members(group) and time.monotonic() < deadline:
        time.sleep(0.01)  # one that was killed is there until it has had a core to end on
    assert members(group) == []


def test_a_server_that_does_not_start_says_why(tmp_path):
    with pytest.raises(MachineError, match="TensorBoard did not start"), serving(tmp_path, 1 << 17):
        pass


def test_a_server_that_ends_early_gives_its_last_words(tmp_path, monkeypatch):
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho no module named tensorboard\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setattr(tensorboard.sys, "executable", str(script))
    message = r"ask `gradlab doctor`\. Its last words:\nno module named tensorboard"
    with pytest.raises(MachineError, match=message), serving(tmp_path, free_port()):
        pass

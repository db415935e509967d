"""The end of a training in a plain loop: printed where an event file was asked for, and nowhere else."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gradlab
from gradlab.monitor.loop_monitor import LoopMonitor
from gradlab.sinks import FindingsFile, MemorySink
from gradlab.sinks.findings_file import read_findings


def trained(make: Any = gradlab.watch, **options: Any) -> gradlab.Monitor:
    """A small classifier with a softmax too many, after a few steps; its monitor is closed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(-1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = make(model, optimizer, **options)
    for _ in range(8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.randn(6, 4)), torch.randint(0, 3, (6,))).backward()
        optimizer.step()
    monitor.close()
    return monitor


def test_with_a_logdir_it_prints_layers_findings_and_the_command_of_the_board(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(logdir=tmp_path / "run")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[1:3] == [f"Sequential  {tmp_path / 'run'}", "8 steps"]
    assert lines[3].split() == ["layer", "shape", "parameters", "gradient", "norm"]
    assert lines[4].split()[:5] == ["0.weight", "8", "x", "4", "32"]
    assert any(line.startswith("warning GL201 since step 0: the outputs go through a softmax") for line in lines)
    assert lines[-2:] == ["open it in TensorBoard with:", f"  tensorboard --logdir {tmp_path / 'run'}"]


def test_with_sinks_alone_or_in_a_loop_of_a_framework_nothing_is_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained(sinks=MemorySink())
    trained(make=LoopMonitor, logdir=tmp_path / "run")
    assert capsys.readouterr() == ("", "")


def test_a_terminal_that_takes_nothing_is_no_reason_to_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise OSError("gone")

    monkeypatch.setattr(sys, "stderr", Broken())
    assert trained(logdir=tmp_path / "run").is_closed


def test_a_finding_that_goes_on_is_handed_out_once_more_at_the_end(tmp_path: Path) -> None:
    sink, told = MemorySink(), []
    monitor = trained(sinks=[sink, FindingsFile(tmp_path / "findings.jsonl")])
    told = [(one.first_step, one.last_step) for one in sink.findings if one.code == "GL201"]
    assert told[0] == (0, 0) and told[-1] == (0, 7)
    assert read_findings(tmp_path / "findings.jsonl") == list(sink.findings)
    assert all(isinstance(reason, str) for reason in monitor.abstained.values())

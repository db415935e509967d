"""Muting: hooks record nothing while a block is open, however many there are and whichever thread opened them."""

from __future__ import annotations

import threading

import torch
from torch import nn

import gradlab
from gradlab.hooks import mute
from gradlab.hooks.interpreter import must_not_record


def test_no_hook_records_while_any_block_is_open() -> None:
    with mute.muting(), mute.muting():
        pass
    assert mute.depth == 0 and not must_not_record()
    with mute.muting():
        with mute.muting():
            assert mute.depth > 0
        assert mute.depth > 0 and must_not_record()


def test_a_muted_forward_leaves_no_number() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3)), torch.randn(2, 3)
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    with gradlab.watch(model, optimizer, taps=[gradlab.Tap("0", of="output")], strict=True) as monitor:
        output = model(x)
        with mute.muting():
            model(x * 100)
        output.sum().backward()
        optimizer.step()
        assert abs(monitor.latest()["output.norm"]["0"] - output.norm().item()) < 1e-5


def test_muting_counts_every_thread() -> None:
    def mute_often() -> None:
        for _ in range(2000):
            with mute.muting():
                pass

    threads = [threading.Thread(target=mute_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert mute.depth == 0

"""Threads: what runs on another one disturbs nothing, and forwards of several threads make one batch."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hooks.example import Net, batch, seeded
from torch import Tensor, nn

import gradlab
from gradlab import Tap


def test_an_actor_on_another_thread_disturbs_nothing_and_is_not_disturbed() -> None:
    def train(with_actor: bool) -> tuple[Any, dict[str, Tensor], list[BaseException]]:
        model = seeded(Net)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        failures: list[BaseException] = []
        stop = threading.Event()
        started = threading.Event()

        def act() -> None:
            try:
                x = batch(99)
                with torch.no_grad():
                    while not stop.is_set():
                        model(x)
                        started.set()
            except BaseException as error:
                failures.append(error)
                started.set()

        frames: list[Any] = []
        taps = [Tap("*", of=["output", "output_grad"], stats=["norm", "std"]), Tap("*", of=["weight_grad"])]
        actor = threading.Thread(target=act)
        with gradlab.watch(model, optimizer, taps=taps, performance=True, strict=True) as monitor:
            if with_actor:
                actor.start()
                started.wait()
            for step in range(60):
                optimizer.zero_grad()
                model(batch(step)).square().mean().backward()
                optimizer.step()
                frames.append({name: dict(series) for name, series in monitor.latest().items()})
            stop.set()
            if with_actor:
                actor.join()
        return frames, model.state_dict(), failures

    frames, weights, failures = train(with_actor=True)
    assert failures == []
    bare, bare_weights, _ = train(with_actor=False)
    assert frames == bare
    assert all(torch.equal(weights[name], bare_weights[name]) for name in weights)


def test_threads_that_each_run_a_forward_for_one_backward_are_one_batch() -> None:
    """As pipelines and parameter servers do: the forwards run side by side, the backward on the main thread."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    inputs = [batch(seed).double() for seed in range(4)]
    outputs: dict[int, Tensor] = {}
    inside = threading.Barrier(4)

    def wait(module: nn.Module, args: Any) -> None:
        if threading.current_thread() is not threading.main_thread():
            inside.wait()  # all threads are in the middle of their forwards at once

    handle = model[1].register_forward_pre_hook(wait)

    def forward(number: int) -> None:
        outputs[number] = model(inputs[number])

    taps = [Tap("*", of=["output", "output_grad"]), Tap("*", of="weight_grad")]
    with gradlab.watch(model, optimizer, taps=taps, strict=True) as monitor:
        for _ in range(2):
            threads = [threading.Thread(target=forward, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            optimizer.zero_grad()
            torch.stack([outputs[number].square().sum() for number in range(4)]).sum().backward()
            optimizer.step()
        logged = monitor.latest()
    handle.remove()
    whole = torch.cat(inputs)
    hidden = model[0](whole)
    out = model[2](torch.tanh(hidden))
    (grad,) = torch.autograd.grad(out.square().sum(), hidden)
    assert sorted(logged["output.norm"]) == ["0", "1", "2", "output"]
    assert logged["output.norm"]["0"] == pytest.approx(hidden.norm().item(), rel=1e-6)
    assert logged["output_grad.norm"]["0"] == pytest.approx(grad.norm().item(), rel=1e-6)

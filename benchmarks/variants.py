"""Ways of watching a training step, gradlab's and those that people use instead: what the cost benchmarks compare.

A variant is attached to a subject once and gives the step to run. What a variant needs beyond gradlab's own
dependencies is in the `bench` extra; `available` leaves out what is not installed and says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from subjects import Subject

import gradlab
from gradlab import Tap

Step = Callable[[], None]
BASE = "unwatched"
LATER = 400
"""So far is training when the cost of the diagnosis is measured: the first steps are looked at more often."""
WARM_UP = 3
"""Steps before anything is measured."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way of watching."""

    attach: Callable[[Subject], Step]
    """Starts watching a fresh subject, and gives its training step."""
    period: int = 1
    """After how many steps the cost repeats."""
    share: int = 1
    """Its share of the time spent measuring: more where the difference to nothing is small."""
    needs: str | None = None
    """The package that it shows."""
    turn: Callable[[], AbstractContextManager[None]] = nullcontext
    """What is around several steps in a row, outside the measurement."""


def unwatched(subject: Subject) -> Step:
    """Nothing but training."""
    return subject.step


def with_taps(*taps: Tap, performance: bool = False) -> Callable[[Subject], Step]:
    """gradlab with these taps, writing an event file; the times of the steps (`perf/*`) are a variant of their own."""

    def watched(subject: Subject) -> Step:
        folder = tempfile.mkdtemp()
        options = {"taps": taps, "logdir": folder, "performance": performance, "diagnose": False, "strict": True}
        gradlab.watch(subject.model, subject.optimizer, **options)
        return subject.step

    return watched


def by_default(subject: Subject) -> Step:
    """gradlab as `watch(model, optimizer, logdir=...)` watches: its default taps, and the diagnosis; some way in."""
    folder = tempfile.mkdtemp()
    gradlab.watch(subject.model, subject.optimizer, logdir=folder, performance=False, first_step=LATER, strict=True)
    return subject.step


def diagnosis_alone(subject: Subject) -> Step:
    """gradlab's diagnosis without a tap that is due, some way in."""
    never = Tap("*", of="weight_grad", every=10**9)
    gradlab.watch(subject.model, subject.optimizer, taps=never, first_step=LATER, strict=True)
    return subject.step


def everything(every: int = 1) -> tuple[Tap, ...]:
    """Norms of every module output and functional op, of its gradient, and of every parameter's gradient."""
    return Tap("*", of=["output", "output_grad"], every=every), Tap("*", of="weight_grad", every=every)


def wandb_watch(subject: Subject) -> Step:
    """`wandb.watch` of the gradients, logged every step, offline."""
    import wandb

    os.environ["WANDB_SILENT"] = "true"
    run = wandb.init(mode="offline", dir=tempfile.mkdtemp(), reinit="finish_previous")
    run.watch(subject.model, log="gradients", log_freq=1)

    def step() -> None:
        subject.step()
        run.log({})

    return step


def lightning_grad_norm(subject: Subject) -> Step:
    """Lightning's `grad_norm` before each optimizer step, as its documentation shows; nothing is logged."""
    from pytorch_lightning.utilities import grad_norm

    def step() -> None:
        subject.optimizer.zero_grad()
        subject.loss().backward()
        grad_norm(subject.model, norm_type=2)
        subject.optimizer.step()

    return step


def detect_anomaly(subject: Subject) -> Step:
    """`torch.autograd.detect_anomaly` around each step."""

    def step() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is slow
            with torch.autograd.detect_anomaly():
                subject.step()

    return step


def full_backward_hooks(subject: Subject) -> Step:
    """The norm of each module's output gradient, read on the host, in `register_full_backward_hook`.

    Raises:
        RuntimeError: where a module's output is changed in place, which these hooks forbid.
    """
    norms: list[float] = []

    def hook(module: Any, grad_input: Any, grad_output: Any) -> None:
        norms.extend(g.norm().item() for g in grad_output if g is not None)

    for module in subject.model.modules():
        module.register_full_backward_hook(hook)

    def step() -> None:
        norms.clear()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the model's input needs no gradient
            subject.step()

    return step


def torchlens_trace(subject: Subject) -> Step:
    """TorchLens: a trace of the forward and the backward with every op's output and gradient, each step."""
    import torchlens

    capture = torchlens.options.CaptureOptions(save_grads=True)

    def step() -> None:
        subject.optimizer.zero_grad()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trace = torchlens.trace(subject.model, subject.x, capture=capture)
            trace.log_backward(subject.criterion(trace[trace.output_layers[0]].out))
        subject.optimizer.step()

    return step


@contextlib.contextmanager
def wrapped_by_torchlens() -> Iterator[None]:
    """TorchLens wraps every function of torch for good on its first trace: undone, or others would pay for it."""
    from torchlens.backends.torch.wrappers import unwrap_torch, wrap_torch

    wrap_torch()
    try:
        yield
    finally:
        unwrap_torch()


VARIANTS: dict[str, Variant] = {
    BASE: Variant(attach=unwatched),
    "unwatched again": Variant(attach=unwatched, share=3),
    "gradlab: by default": Variant(attach=by_default, share=3, period=40),
    "gradlab: diagnosis alone": Variant(attach=diagnosis_alone, share=3, period=40),
    "gradlab: parameter gradients": Variant(attach=with_taps(Tap("*", of="weight_grad")), share=3),
    "gradlab: everything": Variant(attach=with_taps(*everything()), share=3),
    "gradlab: everything, every 10th step": Variant(attach=with_taps(*everything(10)), share=3, period=10),
    "gradlab: nothing due": Variant(attach=with_taps(*everything(10**9)), share=3),
    "gradlab: times of steps alone": Variant(attach=with_taps(*everything(10**9), performance=True), share=3),
    "wandb.watch gradients": Variant(attach=wandb_watch, needs="wandb"),
    "Lightning grad_norm": Variant(attach=lightning_grad_norm, share=3, needs="pytorch_lightning"),
    "detect_anomaly": Variant(attach=detect_anomaly),
    "full backward hooks": Variant(attach=full_backward_hooks),
    "TorchLens trace": Variant(attach=torchlens_trace, needs="torchlens", turn=wrapped_by_torchlens),
}


def available(names: Sequence[str]) -> list[str]:
    """The named variants, the base first, without those whose package is not installed: each left out says so."""
    kept = [BASE]
    for name in names:
        package = VARIANTS[name].needs
        if package is not None and importlib.util.find_spec(package) is None:
            print(f"{name}: left out, {package} is not installed (pip install 'gradlab[bench]')")
        elif name != BASE:
            kept.append(name)
    return kept


def attached(name: str, subject: Subject) -> Step | str:
    """The warmed-up step of a variant, or, where it cannot train this model, why."""
    variant = VARIANTS[name]
    step = variant.attach(subject)
    try:
        with variant.turn():
            for _ in range(WARM_UP):
                step()
    except RuntimeError as error:
        return str(error).splitlines()[0].partition(". ")[0]
    return step

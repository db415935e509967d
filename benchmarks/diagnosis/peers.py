"""The rules of other tools, written again from their papers and documentation, on the trainings of the corpus.

smdebug (the built-in rules of SageMaker Debugger, as documented), AutoTrainer (Zhang et al., 2021) and UMLAUT (Schoop
et al., 2021), with the thresholds that they publish, on the signals that plain training scripts have: their rules on
accuracy need a metric that these scripts do not compute. Each rule says which faults of ours it can mean: one that
stands for several counts as right for any of them.
"""

from __future__ import annotations

import json
import math
import os
import runpy
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from run import Training, wait_for


@dataclass
class Record:
    """What the rules look at, one list entry a step."""

    losses: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    """Norm of the gradient of the first matrix."""
    last: list[float] = field(default_factory=list)
    mean_abs: list[float] = field(default_factory=list)
    """The smallest mean magnitude of a parameter's gradient."""
    zeros: list[float] = field(default_factory=list)
    """The largest share of exact zeros in a gradient."""
    ratio: list[float] = field(default_factory=list)
    """The largest norm of an update by that of its weights, and below it the smallest."""
    smallest_ratio: list[float] = field(default_factory=list)
    finite: list[bool] = field(default_factory=list)
    unchanged: list[bool] = field(default_factory=list)
    """Whether a parameter is as it was (rtol 1e-5)."""
    rates: list[float] = field(default_factory=list)
    largest_input: float = 0.0
    dropout: float = 0.0


Said = list[tuple[str, tuple[str, ...]]]
"""Each (rule, the codes that it can mean)."""


def in_a_row(values: list[Any], wanted: Callable[[Any], bool], count: int) -> bool:
    """Whether so many values in a row are as wanted."""
    run = 0
    for value in values:
        run = run + 1 if wanted(value) else 0
        if run >= count:
            return True
    return False


def smdebug(one: Record) -> Said:
    """Defaults of the documented rules: thresholds as they are given, three steps in a row where they say nothing."""
    said: Said = []
    if in_a_row(one.mean_abs, lambda v: v < 1e-7, 3):
        said.append(("VanishingGradient", ("GL401", "GL402", "GL305", "GL403", "GL406", "GL106")))
    if not all(one.finite):
        said.append(("ExplodingTensor", ("GL301", "GL405", "GL701", "GL702")))
    if in_a_row(one.ratio, lambda v: v > 10, 1) or in_a_row(one.smallest_ratio, lambda v: v < 1e-8, 3):
        said.append(("WeightUpdateRatio", ("GL301", "GL302")))
    if in_a_row(one.unchanged, bool, 3):
        said.append(("UnchangedTensor", ("GL101", "GL104", "GL106", "GL108", "GL403")))
    windows = [one.losses[at : at + 10] for at in range(0, len(one.losses) - 20, 10)]
    later = [one.losses[at + 10 : at + 20] for at in range(0, len(one.losses) - 20, 10)]
    if any(sum(b) / len(b) >= sum(a) / len(a) for a, b in zip(windows, later, strict=True)):
        said.append(("LossNotDecreasing", ()))
    return said


def autotrainer(one: Record) -> Said:
    """Gradient vanish, gradient explode, dying ReLU; slow convergence and oscillation on the loss."""
    said: Said = []
    pairs = list(zip(one.first, one.last, strict=True))
    if in_a_row(pairs, lambda p: p[1] > 0 and p[0] / p[1] < 1e-3 and p[0] < 1e-4, 3):
        said.append(("vanish", ("GL402", "GL305")))
    if in_a_row(pairs, lambda p: p[0] > 70 or not math.isfinite(p[0]), 1):
        said.append(("explode", ("GL301", "GL405", "GL701", "GL702", "GL510", "GL511")))
    if in_a_row(one.zeros, lambda v: v >= 0.7, 3):
        said.append(("dying ReLU", ("GL401",)))
    changes = [b - a for a, b in pairwise(one.losses)]
    swings = sum(1 for a, b in pairwise(changes) if a * b < 0 and abs(a) > 0.05)
    if changes and swings / len(changes) >= 0.25:
        said.append(("oscillating loss", ("GL301", "GL306")))
    if len(one.losses) > 50 and one.losses[0] - min(one.losses) < 0.01 * abs(one.losses[0]):
        said.append(("slow convergence", ("GL302", "GL502", "GL501")))
    return said


def umlaut(one: Record) -> Said:
    """Learning rate out of range, input out of range, dropout above one half, a loss that is not a number."""
    said: Said = []
    if max(one.rates, default=0) > 0.01:
        said.append(("learning rate is high", ("GL301",)))
    if 0 < max(one.rates, default=1) < 1e-7:
        said.append(("learning rate is low", ("GL302",)))
    if one.largest_input > 1:
        said.append(("input exceeds its range", ("GL510",)))
    if one.dropout > 0.5:
        said.append(("high dropout", ("GL207",)))
    if not all(map(math.isfinite, one.losses)):
        said.append(("NaN loss", ("GL301", "GL701", "GL702", "GL405")))
    return said


PEERS: Mapping[str, Callable[[Record], Said]] = {"smdebug": smdebug, "AutoTrainer": autotrainer, "UMLAUT": umlaut}


@cache
def peer_outcomes(training: Training) -> Mapping[str, Said]:
    """What the rules of each peer say to a training."""
    with tempfile.TemporaryDirectory(prefix="corpus-") as folder:
        child = os.fork()
        if child == 0:
            _record_here(training, Path(folder))
        wait_for(child, 300.0)
        file = Path(folder) / "record.json"
        record = Record(**json.loads(file.read_text())) if file.exists() else Record()
    return {name: rules(record) for name, rules in PEERS.items()}


def _record_here(training: Training, folder: Path) -> None:
    """In the forked process: run the script with recording hooks, write the record, and leave."""
    import torch
    from torch import nn
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    record, before = Record(), dict[int, Any]()
    backward = torch.autograd.backward

    def noted(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        loss = tensors if isinstance(tensors, torch.Tensor) else tensors[0]
        if loss.numel() == 1:
            record.losses.append(loss.item())
        return backward(tensors, *args, **kwargs)

    def parameters(optimizer: Any) -> list[Any]:
        return [p for group in optimizer.param_groups for p in group["params"]]

    def pre(optimizer: Any, args: Any, kwargs: Any) -> None:
        grads = [p.grad for p in parameters(optimizer) if p.grad is not None and not p.grad.is_sparse]
        matrices = [g for g in grads if g.dim() > 1]
        if matrices:
            record.first.append(matrices[0].norm().item())
            record.last.append(matrices[-1].norm().item())
            record.mean_abs.append(min(g.abs().mean().item() for g in grads))
            record.zeros.append(max((g == 0).float().mean().item() for g in matrices))
            record.finite.append(all(bool(g.isfinite().all()) for g in grads))
        before.update({id(p): p.detach().clone() for p in parameters(optimizer)})

    def post(optimizer: Any, args: Any, kwargs: Any) -> None:
        pairs = [(p.detach(), before[id(p)]) for p in parameters(optimizer) if id(p) in before and p.dim() > 1]
        ratios = [((p - q).norm() / q.norm()).item() for p, q in pairs if q.norm() > 0]
        if ratios:
            record.ratio.append(max(ratios))
            record.smallest_ratio.append(min(ratios))
            record.unchanged.append(any(torch.allclose(p, q, rtol=1e-5, atol=0.0) for p, q in pairs))
        record.rates.append(max(float(group["lr"]) for group in optimizer.param_groups))

    def called(module: nn.Module, args: Any) -> None:
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d) and record.largest_input == 0.0:
            record.largest_input = args[0].detach().abs().max().item()
        if isinstance(module, nn.Dropout) and module.training:
            record.dropout = max(record.dropout, module.p)

    code = 1
    try:
        with open(folder / "output", "w", encoding="utf-8") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        torch.autograd.backward = noted
        register_optimizer_step_pre_hook(pre)
        register_optimizer_step_post_hook(post)
        nn.modules.module.register_module_forward_pre_hook(called)
        os.chdir(folder)
        sys.argv = [str(training.script), *training.arguments]
        sys.path.insert(0, str(training.script.parent))
        runpy.run_path(str(training.script), run_name="__main__")
        code = 0
    except SystemExit:
        code = 0
    finally:
        (folder / "record.json").write_text(json.dumps(vars(record)))
        os._exit(code)

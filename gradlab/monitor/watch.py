"""`gradlab.watch`: the function that makes a Monitor, with the same arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from gradlab.arguments import named_options
from gradlab.diagnose.options import Diagnose
from gradlab.jacobians.options import Measurement
from gradlab.monitor.monitor import Monitor
from gradlab.nonfinite.guard import NonFinite
from gradlab.profiling.options import Profile
from gradlab.sinks import Sink
from gradlab.taps.rule import Tap


@named_options
def watch(
    model: nn.Module,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    *,
    taps: Tap | Sequence[Tap] | None = None,
    jacobians: Measurement | Sequence[Measurement] = (),
    probe: Any = None,
    profile: Profile | None = None,
    profile_dir: str | Path | None = None,
    performance: bool | None = None,
    nonfinite: NonFinite | None = None,
    scaler: Any = None,
    sinks: Sink | Sequence[Sink] = (),
    logdir: str | Path | None = None,
    across_ranks: bool | None = None,
    diagnose: Diagnose | bool = True,
    strict: bool = False,
    history: int = 1000,
    first_step: int = 0,
    closes_sinks: bool = True,
) -> Monitor:
    """Watch a model in any training loop: `gradlab.watch(model, optimizer, logdir="runs/mlp")`, and nothing else.

    Steps are counted by the optimizer. The arguments are those of `Monitor`, which it returns; `close()` lets go.
    """
    return Monitor(
        model,
        optimizer,
        taps=taps,
        jacobians=jacobians,
        probe=probe,
        profile=profile,
        profile_dir=profile_dir,
        performance=performance,
        nonfinite=nonfinite,
        scaler=scaler,
        sinks=sinks,
        logdir=logdir,
        across_ranks=across_ranks,
        diagnose=diagnose,
        strict=strict,
        history=history,
        first_step=first_step,
        closes_sinks=closes_sinks,
    )

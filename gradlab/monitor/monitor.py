"""The Monitor, the one object that users hold: it watches a model from its creation to `close()`.

Belongs here: what users ask of it, which parts it is made of, and how it begins and ends. Does not: what happens at the
edges of a step (`training_step`), how results go out (`delivery`), and who keeps it alive (`lifetime`).
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradlab.arguments import NAME, check_argument, named_options, one_of
from gradlab.diagnose.options import Diagnose
from gradlab.distributed import rank_in_group, world_size
from gradlab.errors import CopyError, TapError, warn
from gradlab.finding import Finding
from gradlab.frame import Series
from gradlab.identity import WeakIdentityDict
from gradlab.jacobians.options import Measurement
from gradlab.monitor.delivery import Delivery
from gradlab.monitor.lifetime import Lifetime
from gradlab.monitor.options import check_options
from gradlab.monitor.process_end import follow, forget, living
from gradlab.monitor.series_folder import event_file_sink, folder_for, is_written_here
from gradlab.monitor.training_step import TrainingStep, Unit
from gradlab.nonfinite.guard import Guard, NonFinite
from gradlab.perf.phases import Phase
from gradlab.profiling.options import ON_DEMAND, Profile
from gradlab.sinks import Sink
from gradlab.sites.names import parameter_names, unwrapped
from gradlab.taps.rule import DEFAULT_TAPS, Tap
from gradlab.taps.unmatched import check_taps
from gradlab.torch_arguments import OPTIMIZER
from gradlab.values import few

_watched: WeakIdentityDict = WeakIdentityDict()
"""A weak reference to the monitor of each model that is watched."""
_NO_COPY = (
    "a Monitor cannot be copied, pickled or saved, as it is tied to one model in one process: keep it out of what is "
    "(a local variable in place of model.monitor), and watch the copy by a monitor of its own."
)


class Monitor:
    """Watches one model: attaches on creation, lets go without a trace on `close()`; a context manager.

    A monitor that nobody keeps lives as long as the model and the given optimizers do. One that is never closed ends by
    itself, with everything handed out, when Python ends, or when nobody keeps it and the model or the last of the given
    optimizers is gone (`gradlab.monitor.process_end` has every case). A child process made by fork has no part in it.

    Args:
        model: the model, wrapped (DDP, compile) or not.
        optimizer: the optimizer or optimizers whose steps are counted, of torch.optim, around one of these, or of any
            other kind that has a `step`; any of torch.optim that owns the model's parameters where left out. With
            several, a step ends when each has stepped once, or one of them steps again.
        taps: what to watch; where left out the gradient norm of every parameter, on each of the first 100 steps and
            then on every tenth.
        jacobians: what to log of Jacobians: `JacobianSlice`, `DepthGrowth`, `Sharpness`. Replays run on the first
            samples that the model sees (or on `probe`).
        probe: the probe batch, [samples, ...] or what else the model takes; or several, as a mapping from names.
        profile: windows of torch.profiler, written into `profile_dir`; left out, there are only those asked for by
            `gradlab profile`.
        profile_dir: the folder of the windows, the same one on all ranks; `profile` in `logdir` where left out.
        performance: log where the time of steps goes (`perf/*`); left out, where there is a sink.
        nonfinite: what to do before an update whose gradients are not finite: name the op, leave out the update, save
            the batch. Costs one host read a step; left out, frames tell for free which site was first.
        scaler: the GradScaler in use; found by itself where its `step` is what calls the optimizer.
        sinks: where results go.
        logdir: a folder for a TensorBoard event file, added to the sinks; `close()` then prints the end of the
            training. Where it has the series of another training already, a folder beside it is taken (`runs/x-2`),
            which one line says, unless `first_step` goes on with it.
        across_ranks: in a distributed run, log the numbers of all ranks together, sharded parameters (FSDP2) included,
            by one collective a logged step, on a gloo group of gradlab's own. Every rank has to watch, with the same
            taps; rank 0 writes. False: each rank by itself, with a `logdir` of its own. Left out: likewise, but rank 0
            alone writes into `logdir`.
        diagnose: which rules look for what is wrong with the training, and what is done about what they find, as a
            `Diagnose`; False: none.
        strict: raise where a tap, a rule or a sink fails, instead of one warning and going on without it.
        history: how many frames are kept for `history()`.
        first_step: the number of the next optimizer step, where training is resumed.
        closes_sinks: whether `close()` closes the sinks too.
    Raises:
        TapError: a pattern that matches nothing.
        UsageError: `diagnose` asks for a reaction that cannot be had here.
    """

    _is_open = False
    """Whether it watches: from the end of `__init__` until it is closed."""
    _unit: Unit = "optimizer step"
    """What `perf/*` and profile windows count."""
    _prints_its_end = True
    """Whether `close()` prints what there is to say, where an event file is written into a given `logdir`."""
    _reacts_itself = True
    """Whether it acts on findings by itself; else the loop's framework has it do so."""

    @named_options
    def __init__(
        self,
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
    ) -> None:
        kept = check_options("watch()", locals())
        self.model = model
        self.strict = strict
        self._inner = unwrapped(model)
        rules: tuple[Tap, ...] = DEFAULT_TAPS if kept["taps"] is None else kept["taps"]
        check_taps(rules, parameter_names(model))
        self._delivery = Delivery(
            kept["sinks"], strict=strict, history=kept["history"], diagnose=_chosen(kept["diagnose"])
        )
        self._training_step = TrainingStep(
            model,
            rules,
            optimizers=kept["optimizer"],
            jacobians=kept["jacobians"],
            probe=probe,
            scaler=scaler,
            across_ranks=bool(across_ranks),
            strict=strict,
            number=kept["first_step"],
            unit=self._unit,
            delivery=self._delivery,
        )
        self._training_step.reacts_itself = self._reacts_itself
        self._closes_sinks = closes_sinks
        self._lifetime = Lifetime(self._inner, self._training_step.optimizers)
        self._close_earlier()
        self.logdir = _series_folder(logdir, kept["first_step"], across_ranks)
        """Where the event file is, if there is one: `logdir`, or a folder beside it."""
        self._make_parts(nonfinite, profile, profile_dir)
        own: list[Sink] = []
        if self.logdir is not None and is_written_here(self.logdir, across_ranks=across_ranks):
            own.append(event_file_sink(self.logdir))
            self._delivery.sinks += own
        self._writes_file = bool(own)
        try:
            if performance or (performance is None and self.sinks):
                self._training_step.measure_performance()
            self._attach()
        except BaseException:
            for sink in own:
                sink.close()
            raise

    def _close_earlier(self) -> None:
        """A model has one monitor: the one before ends, as where a cell of a notebook is run again."""
        ref = _watched.get(self._inner)
        earlier = ref() if ref is not None else None
        if earlier is not None and not earlier.is_closed:
            earlier.close()
            warn("this model was watched already: its earlier monitor has been closed, and a new one goes on.")

    def _make_parts(self, nonfinite: NonFinite | None, profile: Profile | None, profile_dir: str | Path | None) -> None:
        """The parts that write files: the guard and the profiler."""
        step = self._training_step
        windows = Path(profile_dir) if profile_dir else self.logdir / "profile" if self.logdir else None
        if windows is not None:
            from gradlab.profiling.profiler import Profiler

            step.profiler = Profiler(
                profile or ON_DEMAND,
                windows,
                self.model,
                optimizers=step.way_back.weakly(step.optimizers),
                on_window=self._delivery.report,
                rank=rank_in_group(),
                world_size=world_size(),
                strict=self.strict,
            )
            self.on_finding = step.profiler.finding_reported
        elif profile is not None:
            raise TapError("profile= needs logdir=, the folder for its trace files.")
        step.reacting.check(has_profiler=step.profiler is not None, saves_checkpoints=not self._reacts_itself)
        step.guard = Guard(self.model, nonfinite, self.logdir) if nonfinite else None

    def _attach(self) -> None:
        self._is_open = True
        _watched[self._inner] = weakref.ref(self)
        self._lifetime.begin(self)
        follow(self, keeping=[sink for sink in self.sinks if getattr(sink, "owns_file", False)])
        self._training_step.attach()

    @property
    def step(self) -> int:
        """The number of the optimizer step under way, counted from 0."""
        return self._training_step.number

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What is watched."""
        return self._training_step.engine.taps

    @property
    def inner(self) -> nn.Module:
        """The model inside its wrappers, whose names the sites have."""
        return self._inner

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """The optimizers whose steps are counted."""
        return self._training_step.optimizers()

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """Where results go, without those that were switched off."""
        return tuple(self._delivery.sinks)

    @property
    def matrix_precision(self) -> torch.dtype | str | None:
        """In which the model's matrices are multiplied; None where `perf/*` is off or has not seen a step yet."""
        performance = self._training_step.performance
        return performance.precision if performance is not None else None

    @property
    def on_finding(self) -> Callable[[Finding], None] | None:
        """Called with each new finding."""
        return self._delivery.on_finding

    @on_finding.setter
    def on_finding(self, function: Callable[[Finding], None] | None) -> None:
        self._delivery.on_finding = function

    def add_optimizer(self, optimizer: Optimizer) -> None:
        """Count the steps of one more optimizer. It takes the place of those that own some of the same parameters."""
        self._training_step.steps.add(check_argument("monitor.add_optimizer()", "optimizer", OPTIMIZER, optimizer))
        self._lifetime.add(optimizer)

    def stepping(self) -> AbstractContextManager[None]:
        """Count what runs in a `with` block as one step: for updates that no optimizer of torch.optim makes.

            loss.backward()
            with monitor.stepping():
                for p in model.parameters():
                    p.data -= 0.1 * p.grad

        Gradients, weights and the update are read at its edges; optimizers that step inside are part of the one step.
        Where the backward itself updates parameters (LOMO), it belongs into the block.
        """
        return self._training_step.steps.stepping()

    def close(self) -> None:
        """Let go of the model: no hook and no reference stays. Hands out what is still under way, closes the sinks.

        Where a `logdir` was given it prints the end of the training to stderr: a table of layers, the findings, and the
        command that opens TensorBoard. With `sinks` alone nothing is printed.
        """
        self._close(failed=False)

    def _close(self, *, failed: bool) -> None:
        if self._begin_end():
            self._training_step.close(sinks_too=self._closes_sinks, failed=failed)
            if self._prints_its_end and self._writes_file:
                self._print_end()

    def _print_end(self) -> None:
        """A terminal that takes nothing, or a Python that is shutting down, is no reason to fail."""
        with contextlib.suppress(Exception):
            from gradlab.monitor.ending import print_training_end

            print_training_end(
                self._inner,
                self.latest(),
                self.findings,
                num_steps=self.step,
                logdir=Path(self.logdir or "."),
                precision=self.matrix_precision,
            )

    def _begin_end(self) -> bool:
        """From now on nobody keeps this monitor or tells it that the process ends; whether it was open until now."""
        if not self._is_open:
            return False
        self._is_open = False
        forget(self)
        if (ref := _watched.get(self._inner)) is not None and ref() is self:
            del _watched[self._inner]
        self._lifetime.end()
        return True

    @property
    def is_closed(self) -> bool:
        """Whether it has let go of the model."""
        return not self._is_open

    def __del__(self) -> None:
        """Nobody has it any more, nor has anybody the model or its optimizers."""
        with contextlib.suppress(Exception):  # Python would print a traceback, and nobody could catch it
            self.end()

    # What `process_end` calls.

    def end(self) -> None:
        """Close, without waiting for other ranks for long: the process ends, or nobody has this monitor any more."""
        if self._is_open:
            self._training_step.leave_ranks()
        self.close()

    def flush(self) -> None:
        """Hand out what is under way, and make it readable by others."""
        self._delivery.deliver(wait=True)
        self._delivery.close(sinks_too=False)

    def go_on(self) -> None:
        """The process was not over, as where an exec has failed."""

    def abandon(self) -> None:
        """Let go of the model and of the sinks without handing anything out: in a child process made by fork."""
        if self._begin_end():
            self._training_step.abandon()

    # What any object has.

    def __repr__(self) -> str:
        closed = ", closed" if self.is_closed else ""
        taps = few(map(repr, self.taps)) or "none"
        where = few(sink.name for sink in self.sinks) or "history() alone"
        return f"Monitor({type(self._inner).__name__}, step {self.step}{closed}; taps: {taps}; results go to: {where})"

    def __copy__(self) -> NoReturn:
        raise CopyError(_NO_COPY)

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise CopyError(_NO_COPY)

    def __reduce__(self) -> NoReturn:
        raise CopyError(_NO_COPY)

    def __enter__(self) -> Monitor:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        profiler = self._training_step.profiler
        if isinstance(error, torch.OutOfMemoryError) and profiler is not None:
            self.report(profiler.out_of_memory(error).finding)
        if error is not None:
            self._training_step.leave_ranks()
        self.close()

    # What people ask for.

    def latest(self) -> dict[str, Series]:
        """The newest series of every metric: `latest()["output_grad.norm"]["encoder/relu"]` is a float."""
        return self._delivery.latest()

    def history(self, metric: str, site: str) -> tuple[np.ndarray, np.ndarray]:
        """The logged steps of one value: ([n] int64 steps, [n] float32 values), oldest first.

        Raises:
            UnknownNameError: (a KeyError) no such metric, or no such site in it; the message has the near misses.
        """
        return self._delivery.history(metric, site)

    def sites(self) -> list[str]:
        """The sites that taps have met so far, in forward order, then the parameters. Before a step: the parameters.

        `gradlab.sites_of(model, x)` lists all that a forward shows, with shapes and the place of each op.
        """
        return self._training_step.engine.sites()

    def tensor(self, site: str) -> Tensor:
        """The tensor of a kept site (`keep=True`) in the last forward.

        Raises:
            TapError: the site is not kept, or has not been seen in this step.
        """
        return self._training_step.engine.tensor(check_argument("monitor.tensor()", "site", NAME, site))

    def grad(self, site: str) -> Tensor | None:
        """The gradient of a kept site after the backward (`retain_grad`), or that of a parameter; None before."""
        parameter = self._training_step.engine.parameters.get(check_argument("monitor.grad()", "site", NAME, site))
        return parameter.grad if parameter is not None else self.tensor(site).grad

    def keep(self, site: str) -> None:
        """Keep the tensor at a site, with its gradient, from the next forward on."""
        self._training_step.engine.keep(check_argument("monitor.keep()", "site", NAME, site), self.step)

    @property
    def findings(self) -> list[Finding]:
        """All findings so far, oldest first."""
        self._delivery.deliver()
        return list(self._delivery.findings)

    @property
    def abstained(self) -> Mapping[str, str]:
        """By code of each rule that could not tell when it was last asked: what was missing."""
        return dict(self._delivery.abstained)

    # What people hand to it.

    def report(self, finding: Finding, wall_time: float | None = None) -> None:
        """Add a finding and hand it to the sinks."""
        self._delivery.report(finding, wall_time)

    def log(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        """Hand named numbers to the sinks."""
        self._delivery.scalars(values, step, wall_time)

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Count what runs in a `with` block as a phase of the step: `with monitor.phase("data"): batch = read()`."""
        check_argument("monitor.phase()", "name", one_of(*get_args(Phase)), name)
        performance = self._training_step.performance
        return performance.phase(name) if performance is not None else nullcontext()


def _chosen(diagnose: Diagnose | bool) -> Diagnose | None:
    """The rules to ask, as the environment changes them; None: none."""
    if not diagnose:
        return None
    return (diagnose if isinstance(diagnose, Diagnose) else Diagnose()).with_environment()


def _series_folder(logdir: str | Path | None, first_step: int, across_ranks: bool | None) -> Path | None:
    """`logdir`, or a free folder beside it; with several ranks always `logdir`, which they have to agree on."""
    if logdir is None or (world_size() > 1 and across_ranks is not False):
        return None if logdir is None else Path(logdir)
    taken = []
    for one in living():
        if isinstance(one, Monitor) and one.logdir is not None:
            if one._lifetime.is_over:
                one.close()
            else:
                taken.append(one.logdir)
    return folder_for(Path(logdir), first_step=first_step, taken=taken)

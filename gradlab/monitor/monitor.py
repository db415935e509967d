"""The Monitor: the one object that users hold. It attaches taps to a model, counts steps, feeds sinks and diagnosis.

What taps do on a step is their engine's (`taps.engine`); here are the edges of a step, who is told of them, and who
gets the frame that comes of it.
"""

from __future__ import annotations

import contextlib
import gc
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradlab.arguments import NAME, check_argument, named_options, one_of
from gradlab.distributed import rank_in_group, world_size
from gradlab.errors import CopyError, TapError, warn
from gradlab.frame import Finding, Series
from gradlab.hooks.call_hooks import Hook
from gradlab.hooks.interpreter import must_not_record, outside_modes, own_ops
from gradlab.identity import WeakIdentityDict
from gradlab.jacobians.options import Measurement
from gradlab.monitor.delivery import Delivery, Pending
from gradlab.monitor.options import check_options
from gradlab.monitor.process_end import Owner, WayBack, follow, forget, living
from gradlab.monitor.series_folder import folder_for
from gradlab.monitor.steps import Steps
from gradlab.nonfinite.guard import Guard, NonFinite
from gradlab.optimizers import parameters_of
from gradlab.perf.performance import Performance
from gradlab.perf.phases import Phase
from gradlab.profiling.options import ON_DEMAND, Profile
from gradlab.sinks import Sink
from gradlab.sites.names import parameter_names, unwrapped
from gradlab.stats.parts import PartError
from gradlab.taps.engine import Engine, check_taps
from gradlab.taps.rule import Tap
from gradlab.torch_arguments import OPTIMIZER
from gradlab.values import few

if TYPE_CHECKING:
    from gradlab.jacobians.scheduled import Schedule
    from gradlab.taps.across_ranks.group import RankGroup

_watched: WeakIdentityDict = WeakIdentityDict()
"""A weak reference to the monitor of each model that is watched."""

_NO_COPY = (
    "a Monitor cannot be copied, pickled or saved, as it is tied to one model in one process: keep it out of what is "
    "(a local variable in place of model.monitor), and watch the copy by a monitor of its own."
)


class _TakeProbe(Hook):
    """Shows a monitor what goes into the model. A copy of the model has no part in it."""

    __slots__ = ("monitor",)

    def __init__(self, monitor: WayBack) -> None:
        self.monitor = monitor

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module is self.monitor.model and not must_not_record():
            with own_ops():
                self.monitor.take_probe(args, kwargs)


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
        taps: what to watch; the gradient norm of every parameter where left out.
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
        logdir: a folder for a TensorBoard event file, added to the sinks. Where it has the series of another training
            already, a folder beside it is taken (`runs/x-2`), which one line says, unless `first_step` goes on with it.
        across_ranks: in a distributed run, log the numbers of all ranks together, sharded parameters (FSDP2) included,
            by one collective a logged step, on a gloo group of gradlab's own. Every rank has to watch, with the same
            taps; rank 0 writes. False: each rank by itself, with a `logdir` of its own. Left out: likewise, but rank 0
            alone writes into `logdir`.
        strict: raise where a tap or a sink fails, instead of one warning and going on without it.
        history: how many frames are kept for `history()`.
        first_step: the number of the next optimizer step, where training is resumed.
        closes_sinks: whether `close()` closes the sinks too.
    Raises:
        TapError: a pattern that matches nothing.
    """

    _is_open = False
    """Whether it watches: from the end of `__init__` until it is closed."""

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
        strict: bool = False,
        history: int = 1000,
        first_step: int = 0,
        closes_sinks: bool = True,
    ) -> None:
        kept = check_options("watch()", locals())
        all_sinks: list[Sink] = list(kept["sinks"])
        self.model = model
        self.strict = strict
        self.step: int = kept["first_step"]
        """The number of the optimizer step under way, counted from 0."""
        self.on_model_changed: Callable[[], None] | None = None
        """Called when the model has been found to have other modules or parameters than before."""
        self._inner = unwrapped(model)
        rules: tuple[Tap, ...] = (Tap("*", of="weight_grad"),) if kept["taps"] is None else kept["taps"]
        check_taps(rules, parameter_names(model))
        me = self._way_back = WayBack(self)
        self._engine = Engine(
            model,
            rules,
            scaler=scaler,
            rank_group=_rank_group() if across_ranks and world_size() > 1 else None,
            strict=strict,
            optimizers=lambda: me().optimizers,
            on_failure=lambda site, error: me()._tap_failed(site, error),
            on_backward=lambda traces: me()._steps.backward_ended(leaves_traces=traces),
            on_step_in_backward=lambda: me()._steps.end(),
            on_skipped=lambda count: me()._report_skipped(count, before=me().step),
        )
        self._steps = Steps(kept["optimizer"], lambda: me()._engine.current_parameters(), cast(Any, me))
        self._engine.on_model_changed = lambda: me()._model_changed()
        self._is_prompt = any(getattr(sink, "prompt", False) for sink in all_sinks)
        self._delivery = Delivery(all_sinks, strict=strict, history=kept["history"])
        self._delivery.on_loss = lambda error: me()._tap_failed("", error)
        self._closes_sinks = closes_sinks
        self._handles: list[RemovableHandle] = []
        self._warned: set[str] = set()
        self._owner: Owner | None = None
        self._optimizers_alive: list[weakref.ref[Any]] = []
        self._jacobians = self._schedule(kept["jacobians"], probe) if kept["jacobians"] else None
        self._end_earlier()
        self.logdir = self._folder(logdir, kept["first_step"], across_ranks)
        """Where the event file is, if there is one: `logdir`, or a folder beside it."""
        windows = Path(profile_dir) if profile_dir else self.logdir / "profile" if self.logdir else None
        self._profiler = _profiler(profile, windows, self)
        if self._profiler is not None:
            self.on_finding = self._profiler.finding_reported
        self._tripwire = Guard(model, nonfinite, self.logdir) if nonfinite else None
        own = []
        if self.logdir is not None and (across_ranks is False or _writes(self.logdir, told=bool(across_ranks))):
            own.append(_tensorboard(self.logdir))
            self._delivery.sinks += own
        try:
            self._performance = self._always_on() if performance or (performance is None and self.sinks) else None
            self._attach()
        except BaseException:
            for sink in own:
                sink.close()
            raise

    def _end_earlier(self) -> None:
        """A model has one monitor: the one before ends, as where a cell of a notebook is run again."""
        ref = _watched.get(self._inner)
        earlier = ref() if ref is not None else None
        if earlier is not None and not earlier.is_closed:
            earlier.close()
            warn("this model was watched already: its earlier monitor has been closed, and a new one goes on.")

    def _folder(self, logdir: str | Path | None, first_step: int, across_ranks: bool | None) -> Path | None:
        if logdir is None or (world_size() > 1 and across_ranks is not False):
            return None if logdir is None else Path(logdir)
        taken = []
        for one in living():
            if isinstance(one, Monitor) and one.logdir is not None:
                if one._is_forsaken():
                    one.close()
                else:
                    taken.append(one.logdir)
        return folder_for(Path(logdir), first_step=first_step, taken=taken)

    def _attach(self) -> None:
        self._is_open = True
        _watched[self._inner] = weakref.ref(self)
        self._owner = Owner(self, self._inner)
        for one in self._steps.optimizers:
            self._live_with(one)
        follow(self, keeping=[sink for sink in self.sinks if getattr(sink, "owns_file", False)])
        self._steps.attach()
        if self._jacobians is not None:
            self._jacobians.begin(self.step)
            if self._jacobians.wants():
                self._handles.append(self.model.register_forward_pre_hook(_TakeProbe(self._way_back), with_kwargs=True))
        self._engine.attach()
        if self._tripwire is not None:
            self._tripwire.attach()
        if self._performance is not None:
            self._performance.attach()
        if self._profiler is not None:
            self._profiler.begin(self.step)
        self._engine.arm(self.step)

    @property
    def taps(self) -> tuple[Tap, ...]:
        """What is watched."""
        return self._engine.taps

    @property
    def inner(self) -> nn.Module:
        """The model inside its wrappers, whose names the sites have."""
        return self._inner

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """The optimizers whose steps are counted."""
        return self._steps.optimizers

    @property
    def sinks(self) -> tuple[Sink, ...]:
        """Where results go, without those that were switched off."""
        return tuple(self._delivery.sinks)

    @property
    def on_finding(self) -> Callable[[Finding], None] | None:
        """Called with each new finding."""
        return self._delivery.on_finding

    @on_finding.setter
    def on_finding(self, function: Callable[[Finding], None] | None) -> None:
        self._delivery.on_finding = function

    def add_optimizer(self, optimizer: Optimizer) -> None:
        """Count the steps of one more optimizer. It takes the place of those that own some of the same parameters."""
        self._steps.add(check_argument("monitor.add_optimizer()", "optimizer", OPTIMIZER, optimizer))
        self._live_with(optimizer)

    def stepping(self) -> AbstractContextManager[None]:
        """Count what runs in a `with` block as one step: for updates that no optimizer of torch.optim makes.

            loss.backward()
            with monitor.stepping():
                for p in model.parameters():
                    p.data -= 0.1 * p.grad

        Gradients, weights and the update are read at its edges; optimizers that step inside are part of the one step.
        Where the backward itself updates parameters (LOMO), it belongs into the block.
        """
        return self._steps.stepping()

    def _live_with(self, optimizer: Any) -> None:
        """When this and all other given optimizers are gone, only who has this monitor keeps it."""
        me = self._way_back
        with contextlib.suppress(TypeError):  # an object of somebody's own without weak references lives on
            self._optimizers_alive.append(weakref.ref(optimizer, lambda _: _tell_death(me)))
        if self._owner is None and self._is_open:
            self._owner = Owner(self, self._inner)

    def _is_forsaken(self) -> bool:
        """Whether the optimizers that were given are gone."""
        return bool(self._optimizers_alive) and all(ref() is None for ref in self._optimizers_alive)

    def _optimizer_died(self) -> bool:
        """A given optimizer is gone; whether that is why this monitor is kept no longer."""
        for one in self._steps.optimizers:  # another may have taken its place
            self._live_with(one)
        if not self._is_forsaken() or self._owner is None:
            return False
        owner, self._owner = self._owner, None
        owner.let_go()
        return True

    def abandon(self) -> None:
        """Let go of the model and of the sinks without handing anything out: in a child process made by fork."""
        if self._begin_end():
            self._delivery.abandon()
            self._detach()
            if self._performance is not None:
                self._performance.abandon()

    def close(self) -> None:
        """Let go of the model: no hook and no reference stays. Hands out what is still under way, closes the sinks."""
        if not self._begin_end():
            return
        self._way_back.held = self
        try:
            self._steps.unstepped.closing()
            self._detach()  # which waits for other ranks, where there are any
            self._delivery.deliver(wait=True)
            if self._performance is not None:
                self._performance.close()
            if self._profiler is not None:
                self._profiler.close()
            self._delivery.close(sinks_too=self._closes_sinks)
        finally:
            self._way_back.held = None

    def _begin_end(self) -> bool:
        """From now on nobody keeps this monitor or tells it of anything; whether it was open until now."""
        if not self._is_open:
            return False
        self._is_open = False
        forget(self)
        if (ref := _watched.get(self._inner)) is not None and ref() is self:
            del _watched[self._inner]
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.let_go()
        self._optimizers_alive.clear()
        return True

    def end(self) -> None:
        """Close, without waiting for other ranks for long: the process ends, or nobody has this monitor any more."""
        if self._is_open and self._engine.rank_group is not None:
            self._engine.rank_group.leave(seconds=1.0)
        self.close()

    def flush(self) -> None:
        """Hand out what is under way, and make it readable by others."""
        self._delivery.deliver(wait=True)
        self._delivery.close(sinks_too=False)

    def go_on(self) -> None:
        """The process was not over, as where an exec has failed."""

    def __del__(self) -> None:
        """Nobody has it any more, nor has anybody the model or its optimizers."""
        with contextlib.suppress(Exception):  # Python would print a traceback, and nobody could catch it
            self.end()

    def _detach(self) -> None:
        self._engine.detach()
        if self._jacobians is not None:
            self._jacobians.close()
        if self._tripwire is not None:
            self._tripwire.close()
        self._steps.detach()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    @property
    def is_closed(self) -> bool:
        """Whether it has let go of the model."""
        return not self._is_open

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
        if isinstance(error, torch.OutOfMemoryError) and self._profiler is not None:
            self.report(self._profiler.out_of_memory(error).finding)
        if error is not None and self._engine.rank_group is not None:
            self._engine.rank_group.leave(seconds=1.0)
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
        return self._engine.sites()

    def tensor(self, site: str) -> Tensor:
        """The tensor of a kept site (`keep=True`) in the last forward.

        Raises:
            TapError: the site is not kept, or has not been seen in this step.
        """
        return self._engine.tensor(check_argument("monitor.tensor()", "site", NAME, site))

    def grad(self, site: str) -> Tensor | None:
        """The gradient of a kept site after the backward (`retain_grad`), or that of a parameter; None before."""
        parameter = self._engine.parameters.get(check_argument("monitor.grad()", "site", NAME, site))
        return parameter.grad if parameter is not None else self.tensor(site).grad

    def keep(self, site: str) -> None:
        """Keep the tensor at a site, with its gradient, from the next forward on."""
        self._engine.keep(check_argument("monitor.keep()", "site", NAME, site), self.step)

    @property
    def findings(self) -> list[Finding]:
        """All findings so far, oldest first."""
        self._delivery.deliver()
        return list(self._delivery.findings)

    # The edges of a step.

    def in_backward(self, optimizer: Optimizer, *, has_stepped: bool) -> None:
        """An optimizer is about to step, or has stepped, while the backward goes on, with which the step will end."""
        with own_ops():
            self._engine.in_backward(optimizer, has_stepped=has_stepped)

    def optimizer_begins(self) -> None:
        """An optimizer's `step` has been entered; called by the steps' count, as are those that follow."""
        if self._performance is not None:
            self._performance.optimizer_begins()

    def update_begins(self, optimizer: Optimizer) -> None:
        """An optimizer's `step` has been entered: read the weights."""
        if self._engine.is_armed:
            try:
                with own_ops():  # an optimizer may step inside of a forward whose ops are being watched
                    self._engine.update_begins()
            except Exception as error:
                self._tap_failed("", error)

    def before_update(self, optimizer: Optimizer) -> None:
        """The gradients are complete: read them, clipped and scaled as they are."""
        if not self._engine.is_armed and self._tripwire is None:
            return
        try:
            scale = self._engine.scale.now()
            with own_ops():
                self._engine.before_update(optimizer, scale)
            if self._tripwire is not None and scale is None:  # a GradScaler skips such steps by itself
                finding = self._tripwire.look(parameters_of(optimizer), self.step)
                if finding is not None:
                    self.report(finding)
        except Exception as error:
            self._tap_failed("", error)

    def after_update(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped: read the update."""
        if self._performance is not None:
            self._performance.optimizer_ended()
        with own_ops():
            self._engine.after_update(optimizer)
        if self._tripwire is not None:
            self._tripwire.updated()

    def step_ended(self) -> None:
        """Close the frame of this step, send it on its way, and get ready for the next step."""
        try:
            with own_ops():
                self._send_frame()
        except Exception as error:
            self._tap_failed("", error)
        if self._tripwire is not None:
            self._tripwire.step_ended()
        ended, self.step = self.step, self.step + 1
        if self._steps.are_counted:
            self._engine.arm(self.step)  # not outside of modes: in a forward under way, one is ours
        with outside_modes():  # what is measured between steps is none of a counter's around the loop
            self._hand_out(ended)

    def _hand_out(self, ended: int) -> None:
        self._delivery.deliver(hurry=self._is_prompt)
        if self._jacobians is not None:
            self._jacobians.end(ended)
            if self._steps.are_counted:
                self._jacobians.begin(self.step)
        if self._performance is not None:
            self._performance.step_ended(ended)
        if self._profiler is not None:
            waited = self._performance.data_seconds if self._performance is not None else None
            self._profiler.step(ended, data_seconds=waited)

    def _model_changed(self) -> None:
        """Its optimizers and its work may be others by now, too."""
        self._steps.parameters_changed()
        if self._performance is not None:
            self._performance.model_changed()
        if self.on_model_changed is not None:
            self.on_model_changed()

    def step_missed(self) -> None:
        """The loop has counted a step that no optimizer was seen to make: end it with what there is of it."""
        if self._steps.are_counted:
            self._steps.unstepped.missed()
            self._steps.end()

    def skip_to(self, step: int) -> None:
        """Go on with this step: the loop has counted updates that were left out, as a GradScaler leaves them out."""
        if step <= self.step or not self._steps.are_counted:
            return
        self._report_skipped(step - self.step, before=step)
        self.step = step
        self._engine.arm(step)
        if self._jacobians is not None:
            self._jacobians.begin(step)

    def _report_skipped(self, count: int, *, before: int) -> None:
        what = f"{count} updates were" if count > 1 else "an update was"
        finding = Finding(
            step=self.step,
            kind="skipped_update",
            site="",
            message=f"{what} left out before step {before}: the gradients were thrown away, as by a GradScaler "
            f"where they overflow.",
            evidence={"updates": count},
            advice="A few while the loss scale finds its place are as they should be; if they go on, lower the scale.",
            severity="info",
        )
        self.report(finding)

    def _send_frame(self) -> None:
        taken = self._engine.take(self.step)
        if taken is not None:
            self._delivery.send(Pending(self.step, time.time(), taken.plan, taken.copy, taken.scaled))
            self._engine.report_unmatched(taken.plan)

    # Handing out.

    def report(self, finding: Finding, wall_time: float | None = None) -> None:
        """Add a finding and hand it to the sinks."""
        self._delivery.report(finding, wall_time)

    def log(self, values: Mapping[str, float], step: int, wall_time: float) -> None:
        """Hand named numbers to the sinks."""
        self._delivery.scalars(values, step, wall_time)

    def phase(self, name: Phase) -> AbstractContextManager[None]:
        """Count what runs in a `with` block as a phase of the step: `with monitor.phase("data"): batch = read()`."""
        check_argument("monitor.phase()", "name", one_of(*get_args(Phase)), name)
        return self._performance.phase(name) if self._performance is not None else nullcontext()

    def _always_on(self) -> Performance:
        me = self._way_back
        pause = self._profiler.pause if self._profiler is not None else None
        log = cast(Any, lambda values, step, wall_time: me().log(values, step, wall_time))
        return Performance(self.model, log, on_evaluation=pause, strict=self.strict)

    def _tap_failed(self, site: str, error: BaseException) -> None:
        """A tap raised: its site is left alone from now on. Without a site, nothing more can be trusted: let go."""
        what = f"the tap at {site!r}" if site else "the step"
        if isinstance(error, PartError):
            what = f"{' and '.join(error.parts)} of {site!r}"
        if self.strict and isinstance(error, TapError):
            raise error
        if self.strict:
            raise TapError(f"{what} failed: {error}") from error
        if what in self._warned:
            return
        self._warned.add(what)
        if site:
            warn(f"{what} was switched off: {error}")
        else:
            self._detach()
            warn(f"watching was switched off: {type(error).__name__}: {error}")

    # Jacobians.

    def _schedule(self, jacobians: Sequence[Measurement], probe: Any) -> Schedule:
        """What measures Jacobians; imported only where there are any."""
        from gradlab.jacobians.scheduled import Schedule

        me = self._way_back
        hand_out = self._delivery.jacobian
        return Schedule(
            jacobians, self.model, probe, hand_out, lambda title, error: me()._jacobian_failed(title, error)
        )

    def take_probe(self, args: Any, kwargs: Any) -> None:
        """Take what goes into a forward as the probe batch, where one is wanted."""
        if self._jacobians is not None and self._jacobians.wants():
            from gradlab.jacobians.inputs import inputs_of_call

            self._jacobians.use_probe(inputs_of_call(args, kwargs))

    def wants_probe(self, name: str = "train") -> bool:
        """Whether something is to be measured on a probe batch of this name that is not there yet."""
        return self._jacobians is not None and self._jacobians.wants(name)

    def use_probe(self, samples: Any, name: str = "train") -> None:
        """Take the first samples of a batch, as the model's forward takes it, as a probe batch."""
        if self._jacobians is not None:
            self._jacobians.use_probe(samples, name)

    def _jacobian_failed(self, title: str, error: Exception) -> None:
        if self.strict:
            raise error
        warn(f"{title} was switched off: {error}")


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
        strict=strict,
        history=history,
        first_step=first_step,
        closes_sinks=closes_sinks,
    )


def _tell_death(way_back: WayBack) -> None:
    """An optimizer is gone: with it goes a monitor that nobody else keeps, and what would keep its model longer."""
    monitor = way_back()
    is_over = monitor is not None and monitor._optimizer_died()
    del monitor
    if is_over:
        gc.collect()  # hooks that have been taken off are full of cycles


def _writes(logdir: str | Path, *, told: bool) -> bool:
    """Whether this rank writes for all: rank 0 does. Unless the user has been told, rank 1 says so."""
    rank = rank_in_group()
    if rank == 1 and not told:
        warn(
            f"rank 0 alone writes into {logdir}, what it sees itself; across_ranks=True makes its numbers those of all "
            f"ranks, across_ranks=False lets each rank write, into a logdir of its own."
        )
    return rank == 0


def _rank_group() -> RankGroup:
    """The way to the other ranks; imported only where there are any."""
    from gradlab.taps.across_ranks.group import RankGroup

    return RankGroup()


def _tensorboard(logdir: Path) -> Sink:
    from gradlab.events import EventWriter
    from gradlab.sinks import TensorBoardSink

    return TensorBoardSink(EventWriter(logdir))


def _profiler(profile: Profile | None, folder: Path | None, monitor: Monitor) -> Any:
    if folder is None:
        if profile is not None:
            raise TapError("profile= needs logdir=, the folder for its trace files.")
        return None
    from gradlab.profiling.profiler import Profiler

    me = monitor._way_back
    return Profiler(
        profile or ON_DEMAND,
        folder,
        monitor.model,
        optimizers=lambda: me().optimizers,
        on_window=lambda finding: me().report(finding),
        rank=rank_in_group(),
        world_size=world_size(),
        strict=monitor.strict,
    )

"""What a monitor does at the edges of a training step: read taps, look at gradients, time, profile, measure Jacobians.

Belongs here: which part is called at which moment of a step, and in which order. Does not: when these moments are
(`steps`), what the parts do (`taps.engine`, `nonfinite.guard`, `perf`, `profiling`, `jacobians`), and where results go
(`delivery`).

Whoever calls from a hook refers back to here weakly (`lifetime.WayBack`): hooks live as long as the model or torch do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradlab.diagnose.context import Context
from gradlab.distributed import world_size
from gradlab.errors import TapError, warn
from gradlab.facts.collection import Facts
from gradlab.finding import Finding
from gradlab.hooks.call_hooks import Hook
from gradlab.hooks.interpreter import must_not_record, outside_modes, own_ops
from gradlab.hooks.own_ranges import own_range
from gradlab.jacobians.options import DepthGrowth, Measurement, Sharpness
from gradlab.monitor.delivery import Delivery, Pending
from gradlab.monitor.lifetime import WayBack
from gradlab.monitor.reacting import Reacting
from gradlab.monitor.steps import Steps
from gradlab.optimizers import parameters_of
from gradlab.perf.performance import Performance
from gradlab.stats.parts import PartError
from gradlab.taps.engine import Engine
from gradlab.taps.rule import Tap

if TYPE_CHECKING:
    from gradlab.jacobians.scheduled import Schedule
    from gradlab.nonfinite.guard import Guard
    from gradlab.profiling.profiler import Profiler
    from gradlab.taps.across_ranks.group import RankGroup

Unit = Literal["optimizer step", "batch"]
"""What `perf/*` and profile windows count: steps of the optimizer, or batches of a loop that says when each begins and
ends and names the phases of a step itself."""


class TakeProbe(Hook):
    """Takes what goes into the model as the probe batch. A copy of the model has no part in it."""

    __slots__ = ("step",)

    def __init__(self, step: WayBack) -> None:
        self.step = step

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module is self.step.model and not must_not_record():
            with own_ops():
                self.step.take_probe(args, kwargs)


class TrainingStep:
    """The parts of one monitor, and the step that is under way. `Steps` calls it at the edges of each step.

    Args:
        model: the model, wrapped or not.
        taps: the rules.
        optimizers: those that were given, of any kind; None counts any that trains the model.
        jacobians: what to measure of Jacobians.
        probe: the probe batch or batches, where they were given.
        scaler: the GradScaler, where it was given.
        across_ranks: whether numbers are those of all ranks together.
        strict: raise where a part fails, instead of one warning and going on without it.
        number: of the step that begins.
        unit: what `perf/*` and profile windows count.
        delivery: takes the results.
    Raises:
        TapError: a pattern that matches no parameter, or an optimizer that owns none of the model's.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: tuple[Tap, ...],
        *,
        optimizers: Any,
        jacobians: Sequence[Measurement],
        probe: Any,
        scaler: Any,
        across_ranks: bool,
        strict: bool,
        number: int,
        unit: Unit,
        delivery: Delivery,
    ) -> None:
        self.model = model
        self.number = number
        """The number of the optimizer step under way."""
        self.delivery = delivery
        self.guard: Guard | None = None
        self.profiler: Profiler | None = None
        self.performance: Performance | None = None
        """These three are made before `attach`, once the monitor knows the folder and the sinks of the results."""
        self.reacting = Reacting(delivery.reactions, strict=strict)
        """Carries out what is done about findings."""
        self.reacts_itself = True
        """Whether it acts on findings when a step has ended; else whoever runs the loop has it do so."""
        self.usual_loss: Callable[[Any], Any] | None = None
        """From the model to the training's loss, where a framework knows it."""
        self._unit = unit
        self._strict = strict
        self._handles: list[RemovableHandle] = []
        self._warned: set[str] = set()
        self.way_back = WayBack(self)
        weakly = self.way_back.weakly
        self.engine = Engine(
            model,
            taps,
            scaler=scaler,
            rank_group=_rank_group() if across_ranks and world_size() > 1 else None,
            strict=strict,
            optimizers=weakly(self.optimizers),
            on_failure=weakly(self.fail),
            on_backward=weakly(self._backward_ended),
            on_step_in_backward=weakly(self._ended_in_backward),
            on_skipped=weakly(self._updates_skipped),
        )
        self.steps = Steps(optimizers, weakly(self._parameters), cast(Any, self.way_back))
        self.engine.on_model_changed = weakly(self._model_changed)
        delivery.on_loss = weakly(self._frames_lost)
        self.jacobians = self._schedule(jacobians, probe) if jacobians else None
        self._facts = Facts(
            model,
            weakly(self._known_parameters),
            counted=weakly(self.optimizers),
            step=weakly(self._number_now),
            on_look=weakly(self._looked),
            on_failure=weakly(self._facts_failed),
        )

    def measure_once(self, measurement: DepthGrowth | Sharpness) -> None:
        """Measure something of Jacobians one time, on one of the next steps."""
        if self.jacobians is None:
            self.jacobians = self._schedule((), None)
            self.jacobians.begin(self.number)
        self.jacobians.usual_loss = self.usual_loss
        self.jacobians.measure_once(measurement)
        if self.jacobians.wants():
            self._handles.append(self.model.register_forward_pre_hook(TakeProbe(self.way_back), with_kwargs=True))

    def _schedule(self, jacobians: Sequence[Measurement], probe: Any) -> Schedule:
        """What measures Jacobians; imported only where there are any."""
        from gradlab.jacobians.scheduled import Schedule

        failed = self.way_back.weakly(self._jacobian_failed)
        return Schedule(jacobians, self.model, probe, self.delivery.jacobian, failed)

    # Beginning and end.

    def measure_performance(self) -> None:
        """Log the scalars `perf/*`, too."""
        pause = self.profiler.pause if self.profiler is not None else None
        scalars = self.delivery.scalars
        self.performance = Performance(self.model, scalars, on_evaluation=pause, strict=self._strict)

    def attach(self) -> None:
        """Put every part in place."""
        self.steps.attach()
        if self.jacobians is not None:
            self.jacobians.begin(self.number)
            if self.jacobians.wants():
                self._handles.append(self.model.register_forward_pre_hook(TakeProbe(self.way_back), with_kwargs=True))
        self.engine.attach()
        if self.delivery.diagnoses:
            self._facts.attach()
        if self.guard is not None:
            self.guard.attach()
        if self.performance is not None:
            if self._unit == "batch":
                self.performance.begin()
            else:
                self.performance.attach()
        if self.profiler is not None:
            self.profiler.begin(self.number)
        self.engine.arm(self.number)

    def detach(self) -> None:
        """Leave no hook on the model and its optimizers; with several ranks, let the others know and wait for them."""
        self.engine.detach()
        self._facts.detach()
        if self.jacobians is not None:
            self.jacobians.close()
        if self.guard is not None:
            self.guard.close()
        self.steps.detach()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def close(self, *, sinks_too: bool, failed: bool) -> None:
        """Detach, hand out what is under way, and finish the sinks (`sinks_too`: close them).

        `failed`: training ended by an error, so no warning says why there was no profile window.
        """
        self.way_back.held = self
        try:
            self.steps.missing.closing()
            self.delivery.deliver(wait=True)
            self._facts.end()
            self.detach()
            self.delivery.deliver(wait=True)
            if self.performance is not None:
                self.performance.close()
            if self.profiler is not None:
                self.profiler.close(failed=failed)
            self.reacting.end()
            self.delivery.close(sinks_too=sinks_too)
        finally:
            self.way_back.held = None

    def abandon(self) -> None:
        """Detach without handing anything out: in a child process made by fork."""
        self.delivery.abandon()
        self.detach()
        if self.performance is not None:
            self.performance.abandon()

    def leave_ranks(self) -> None:
        """Do not wait for other ranks for long, where there are any: this one ends."""
        if self.engine.rank_group is not None:
            self.engine.rank_group.leave(seconds=1.0)

    # The edges of a step, as `Steps` calls them.

    def update_begins(self, optimizer: Optimizer) -> None:
        """An optimizer's `step` has been entered: read the weights."""
        self._facts.update_begins(optimizer)
        if self.engine.is_armed:
            try:
                with own_ops():  # an optimizer may step inside of a forward whose ops are being watched
                    self.engine.update_begins()
            except Exception as error:
                self.fail("", error)

    def before_update(self, optimizer: Optimizer) -> None:
        """The gradients are complete: read them, clipped and scaled as they are."""
        scale = self.engine.scale.now()
        self._facts.before_update(optimizer, is_scaled=scale is not None)
        if not self.engine.is_armed and self.guard is None:
            return
        try:
            with own_ops():
                self.engine.before_update(optimizer, scale)
            if self.guard is not None and scale is None:  # a GradScaler skips such steps by itself
                finding = self.guard.look(parameters_of(optimizer), self.number)
                if finding is not None:
                    self.delivery.report(finding)
        except Exception as error:
            self.fail("", error)

    def optimizer_begins(self) -> None:
        """The gradients have been read, as far as they exist: the time of the optimizer's own `step` begins."""
        if self.performance is not None:
            self.performance.optimizer_begins()

    def after_update(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped: read the update."""
        if self.performance is not None:
            self.performance.optimizer_ended()
        self._facts.after_update(optimizer)
        with own_ops():
            self.engine.after_update(optimizer)
        if self.guard is not None:
            self.guard.updated()

    def in_backward(self, optimizer: Optimizer, *, has_stepped: bool) -> None:
        """An optimizer is about to step, or has stepped, while the backward goes on, with which the step will end."""
        self._facts.in_backward()
        with own_ops():
            self.engine.in_backward(optimizer, has_stepped=has_stepped)

    def step_ended(self) -> None:
        """Close the frame of this step, send it on its way, and get ready for the next step."""
        try:
            with own_ops():
                self._send_frame()
        except Exception as error:
            self.fail("", error)
        if self.guard is not None:
            self.guard.step_ended()
        self._facts.step_ended(self.number)
        ended, self.number = self.number, self.number + 1
        if self.steps.is_attached:
            self.engine.arm(self.number)  # not outside of modes: in a forward under way, one is ours
        with outside_modes():  # what is measured between steps is none of a counter's around the loop
            self._between_steps(ended)
        if self.reacts_itself and self.steps.is_attached:
            self.reacting.act(self)

    def _send_frame(self) -> None:
        taken = self.engine.take(self.number)
        if taken is not None:
            self.delivery.send(Pending(self.number, time.time(), taken.plan, taken.copy, taken.scaled))
            self.engine.report_unmatched(taken.plan)

    def _between_steps(self, ended: int) -> None:
        with own_range():  # not around the profiler, which may end its window inside
            self.delivery.deliver(hurry=self.delivery.is_prompt)
            if self.jacobians is not None:
                self.jacobians.end(ended)
                if self.steps.is_attached:
                    self.jacobians.begin(self.number)
        if self._unit == "batch":
            return
        if self.performance is not None:
            self.performance.step_ended(ended)
        if self.profiler is not None:
            waited = self.performance.data_seconds if self.performance is not None else None
            self.profiler.step(ended, data_seconds=waited)

    def skip_to(self, number: int) -> None:
        """Go on with this step: the updates before it were left out, as a GradScaler leaves them out."""
        if number <= self.number or not self.steps.is_attached:
            return
        self._report_skipped(number - self.number, before=number)
        self.number = number
        self.engine.arm(number)
        if self.jacobians is not None:
            self.jacobians.begin(number)

    def take_probe(self, args: Any, kwargs: Any) -> None:
        """Take what goes into a forward as the probe batch, where one is wanted."""
        if self.jacobians is not None and self.jacobians.wants():
            from gradlab.jacobians.inputs import inputs_of_call

            self.jacobians.use_probe(inputs_of_call(args, kwargs))

    # What the parts call.

    def optimizers(self) -> tuple[Optimizer, ...]:
        """The optimizers whose steps are counted."""
        return self.steps.optimizers

    def _parameters(self) -> dict[str, nn.Parameter]:
        return self.engine.current_parameters()

    def _backward_ended(self, leaves_traces: bool) -> None:
        self.steps.backward_ended(leaves_traces=leaves_traces)

    def _ended_in_backward(self) -> None:
        self.steps.end()

    def _model_changed(self) -> None:
        """It has other modules or parameters: its optimizers and its work may be others by now, too."""
        self.steps.parameters_changed()
        if self.performance is not None:
            self.performance.model_changed()

    def _known_parameters(self) -> dict[str, nn.Parameter]:
        return self.engine.parameters

    def _number_now(self) -> int:
        return self.number

    def _looked(self, context: Context) -> None:
        self.delivery.look(context)

    def _facts_failed(self, error: BaseException) -> None:
        if self._strict:
            raise error
        warn(f"the facts for the diagnosis are gathered no more: {type(error).__name__}: {error}")

    def _updates_skipped(self, count: int) -> None:
        self._report_skipped(count, before=self.number)

    def _report_skipped(self, count: int, *, before: int) -> None:
        what = f"{count} updates were" if count > 1 else "an update was"
        finding = Finding(
            code="GL704",
            name="skipped-update",
            first_step=self.number,
            message=f"{what} left out before step {before}: the gradients were thrown away, as by a GradScaler "
            f"where they overflow.",
            evidence={"updates": count},
            remedy="A few while the loss scale finds its place are as they should be; if they go on, lower the scale.",
            severity="info",
        )
        self.delivery.report(finding)

    # What fails.

    def fail(self, site: str, error: BaseException) -> None:
        """A tap raised: its site is left alone from now on. Without a site, nothing more can be trusted: detach."""
        what = f"the tap at {site!r}" if site else "the step"
        if isinstance(error, PartError):
            what = f"{' and '.join(error.parts)} of {site!r}"
        if self._strict and isinstance(error, TapError):
            raise error
        if self._strict:
            raise TapError(f"{what} failed: {error}") from error
        if what in self._warned:
            return
        self._warned.add(what)
        if site:
            warn(f"{what} was switched off: {error}")
        else:
            self.detach()
            warn(f"watching was switched off: {type(error).__name__}: {error}")

    def _frames_lost(self, error: BaseException) -> None:
        self.fail("", error)

    def _jacobian_failed(self, title: str, error: Exception) -> None:
        if self._strict:
            raise error
        warn(f"{title} was switched off: {error}")


def _rank_group() -> RankGroup:
    """The way to the other ranks; imported only where there are any."""
    from gradlab.taps.across_ranks.group import RankGroup

    return RankGroup()

"""The tap engine of one monitor: what is put in place on a step, what is read at its edges, the frame that comes of it.

What happens inside a forward and a backward is the recorder's; when a step begins and ends, and who gets its frame, is
the monitor's, which calls what is here outside of the modes of others (`interpreter.own_ops`).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from gradlab.errors import TapError, did_you_mean, shortlist
from gradlab.identity import is_among
from gradlab.optimizers import LossScale
from gradlab.sites.named import listeners
from gradlab.sites.names import module_names, parameter_names
from gradlab.taps.across_ranks.tensor_parallel import combinable
from gradlab.taps.backward.parameters import ParameterWatch, measurable
from gradlab.taps.backward.recorder import Recorder
from gradlab.taps.backward.sharded import gradient_reader, say_what_is_not_seen
from gradlab.taps.backward.steps_in_backward import StepsInBackward
from gradlab.taps.buffer.rows import Row
from gradlab.taps.buffer.transfer import HostCopy
from gradlab.taps.forward.modules import ModuleHooks
from gradlab.taps.forward.torchscript import scripting
from gradlab.taps.plan import Plan
from gradlab.taps.rule import Tap
from gradlab.taps.series import Copy
from gradlab.taps.structure import Structure, weights_are_lent
from gradlab.taps.unmatched import PatternReport

if TYPE_CHECKING:
    from gradlab.taps.across_ranks.group import RankGroup
    from gradlab.taps.across_ranks.reduce import RankReducer


class _Armed(NamedTuple):
    """What is in place while a plan is due."""

    plan: Plan
    hooks: ModuleHooks
    parameters: ParameterWatch
    reducer: RankReducer | None


class StepValues(NamedTuple):
    """The values of a step, on their way to the host."""

    plan: Plan
    copy: Copy
    scaled: frozenset[str]
    """The quantities that carry the loss scale."""


class _Listener:
    """Hears of named tensors for an engine, which the global list must not keep alive."""

    def __init__(self, engine: Engine) -> None:
        self._engine = weakref.ref(engine)

    def named(self, name: str, value: Tensor) -> Tensor:
        """A tensor was named with `gradlab.tap`."""
        engine = self._engine()
        return value if engine is None else engine.named(name, value)


def _weakly(method: Callable[[], None]) -> Callable[[], None]:
    """A bound method that does not keep its object alive."""
    ref = weakref.WeakMethod(method)

    def call() -> None:
        if (alive := ref()) is not None:
            alive()

    return call


class Engine:
    """The taps on one model.

    Args:
        model: the model, wrapped or not.
        taps: the rules.
        scaler: the GradScaler in use, where it is known.
        rank_group: the other ranks, where numbers are those of all.
        strict: raise where a pattern meets nothing.
        optimizers: gives those whose steps are counted.
        on_failure: called with a site ("" for all) and the error of its tap.
        on_backward: called at the end of each backward, with whether there is a sign of an update before it: gradients
            were thrown away, or are gone already.
        on_step_in_backward: called where a step has ended with its backward.
        on_skipped: called with the number of updates that were left out before this one.
    Raises:
        TapError: a pattern that matches no parameter, where it is for parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        taps: Sequence[Tap],
        *,
        scaler: Any,
        rank_group: RankGroup | None,
        strict: bool,
        optimizers: Callable[[], Sequence[Optimizer]],
        on_failure: Callable[[str, BaseException], None],
        on_backward: Callable[[bool], None],
        on_step_in_backward: Callable[[], None],
        on_skipped: Callable[[int], None],
    ) -> None:
        self.model = model
        self.taps = tuple(taps) if rank_group is None else combinable(taps, model)
        self.parameters = parameter_names(model)
        self._structure = Structure(model)
        self._is_sharded = False
        self.on_model_changed: Callable[[], None] | None = None
        """Called when the model has been found to have other modules or parameters than before."""
        self.rank_group = rank_group
        self._optimizers = optimizers
        self._failed = on_failure
        self._backward_noticed = on_backward
        self._step_ended = on_step_in_backward
        self._skipped = on_skipped
        self.scale = LossScale(scaler)
        self._first_scale: Tensor | None = None
        self._fused: set[str] = set()
        self._in_backward: StepsInBackward | None = None
        self._plans: dict[tuple[int, ...], _Armed] = {}
        self._armed: _Armed | None = None
        self._patterns = PatternReport(strict=strict)
        self._is_late = False
        """Whether a backward had ended when watching began, and no optimizer has stepped since."""
        self._listener = _Listener(self)
        # Hooks on parameters have the recorder, and must not keep the model alive by it: the optimizer has them too.
        self.recorder = Recorder(_weakly(self._backward_ended), on_failure)
        self._use(self.parameters)

    def attach(self) -> None:
        """Begin to listen, and let the other ranks know; `arm` puts taps in place."""
        self._is_late = any(p.is_leaf and p.grad is not None for p in self.parameters.values())
        if self.rank_group is not None:
            self.rank_group.announce()
        listeners.append(self._listener)
        scripting.attach()
        self.recorder.call_at_first_pass(_weakly(self._look_again))
        self.recorder.watch_parameters()

    def detach(self) -> None:
        """Leave no hook and no reference, and let the other ranks know."""
        self._disarm()
        if self.rank_group is not None:
            self.rank_group.leave()
        self.recorder.start(None)
        self.recorder.call_at_first_pass(None)
        self.recorder.ignore_parameters()
        self.recorder.forget_kept()
        if is_among(self._listener, listeners):
            listeners.remove(self._listener)
            scripting.detach()

    # What is in place.

    @property
    def is_armed(self) -> bool:
        """Whether something is due on this step."""
        return self._armed is not None

    def arm(self, step: int) -> None:
        """Put in place what is due on the step that begins."""
        due = tuple(number for number, rule in enumerate(self.taps) if rule.is_due(step))
        if not due:
            self._disarm()
            self.recorder.start(None)
            return
        armed = self._plans.get(due)
        if armed is None:
            plan = Plan([self.taps[number] for number in due])
            hooks = ModuleHooks(self.model, module_names(self.model), plan, self.recorder)
            armed = self._plans[due] = _Armed(
                plan, hooks, ParameterWatch(self._measurable(), plan, self._failed), self._reducer(plan)
            )
        if armed is not self._armed:
            self._disarm()
            armed.hooks.arm()
            armed.parameters.arm(self.recorder.backward_row)
            self._armed = armed
        armed.hooks.begin_step()
        self.recorder.start(armed.plan)

    def _disarm(self) -> None:
        if self._armed is not None:
            self._armed.hooks.disarm()
            self._armed.parameters.disarm()
            self._armed = None

    def _reducer(self, plan: Plan) -> RankReducer | None:
        if self.rank_group is None:
            return None
        from gradlab.taps.across_ranks.reduce import RankReducer

        return RankReducer(plan, lambda: self.parameters, self.rank_group)

    def _look_again(self) -> None:
        """At the first forward of a step: is the model what it was? It may have been sharded, grown or pruned by now.

        The weights of a sharded model are exchanged for whole ones while it runs, so that it is looked at once only.
        """
        try:
            if self._structure.has_changed() and not weights_are_lent():
                self._model_changed()
            if self._armed is not None:
                self._armed.parameters.follow_freezing(self.recorder.backward_row)
        except Exception as error:
            self._failed("", error)
        if self._is_sharded:
            self.recorder.call_at_first_pass(None)

    def _model_changed(self) -> None:
        """Other modules or parameters: they are watched from now on, under the names that they have now."""
        self._structure = Structure(self.model)
        self.recorder.ignore_parameters()
        self._use(parameter_names(self.model))
        self.recorder.watch_parameters()
        names, measured = module_names(self.model), self._measurable()
        for armed in self._plans.values():
            armed.parameters.disarm()
            armed.parameters.use(measured)
            armed.hooks.use(names)
        if self._armed is not None:
            self._armed.parameters.arm(self.recorder.backward_row)
        if self.on_model_changed is not None:
            self.on_model_changed()

    def current_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that the model has now; in a step whose forward was seen, those that it began with."""
        if not self.recorder.passes and not self._is_sharded and self._structure.has_changed():
            self._model_changed()
        return self.parameters

    def _use(self, parameters: dict[str, nn.Parameter]) -> None:
        self.parameters = parameters
        ones = list(parameters.values())
        self._is_sharded = any(hasattr(p, "_local_tensor") or getattr(p, "_fsdp_flattened", False) for p in ones)
        self.recorder.use(ones, gradient_reader(self.model, ones))
        say_what_is_not_seen(self.model, self.taps)

    def _measurable(self) -> dict[str, nn.Parameter]:
        with_shape = {name: p for name, p in self.parameters.items() if not is_lazy(p)}
        return measurable(with_shape, across_ranks=self.rank_group is not None)

    # What people ask for.

    def sites(self) -> list[str]:
        """The sites that taps have met so far, in forward order, then the parameters."""
        seen = (site for armed in self._plans.values() for site in armed.plan.targets)
        return [*dict.fromkeys(site for site in seen if site not in self.parameters), *self.parameters]

    def tensor(self, site: str) -> Tensor:
        """The tensor of a kept site in the last forward.

        Raises:
            TapError: the site is not kept, or has not been seen in this step.
        """
        kept = self.recorder.kept
        if site not in kept:
            raise TapError(
                f"no kept tensor at {site!r}.{did_you_mean(site, kept)} Kept now: {shortlist(kept)}. "
                f"A tap keeps a tensor with keep=True, from its forward until the next step's."
            )
        return kept[site]

    def keep(self, site: str, step: int) -> None:
        """Keep the tensor at a site, with its gradient, from the next forward on."""
        self.taps = (*self.taps, Tap(site, of="output_grad", keep=True))
        self._disarm()
        self.arm(step)

    # What happens in a step.

    def named(self, name: str, value: Tensor) -> Tensor:
        """A tensor was named with `gradlab.tap`."""
        if self._armed is not None:
            self._armed.hooks.named(name, value)
        return value

    def _backward_ended(self) -> None:
        if self._structure.is_lazy:  # they have got their shapes in the forward
            self._look_again()
        tasks = self.recorder.tasks
        self._backward_noticed(tasks.num_thrown_away > 0 or tasks.are_gone())
        if self._in_backward is not None:
            self._end_step_in_backward(self._in_backward)
        elif self._armed is not None:
            self._armed.parameters.backward_ended(self.recorder.step_row())

    def in_backward(self, optimizer: Optimizer, *, has_stepped: bool) -> None:
        """An optimizer is about to step, or has stepped, while the backward goes on, with which the step will end."""
        if self._in_backward is None:
            self._in_backward = StepsInBackward()
            self.recorder.notice_backward()
        if self._armed is not None:
            note = self._in_backward.after if has_stepped else self._in_backward.before
            try:
                note(optimizer, self._armed.parameters, self.recorder.step_row())
            except Exception as error:
                self._failed("", error)

    def _end_step_in_backward(self, steps: StepsInBackward) -> None:
        self._in_backward = None
        if self._armed is not None:
            steps.backward_ended(self._armed.parameters, self.recorder.step_row())
        if steps.is_all(tuple(self._optimizers())):
            self._step_ended()

    def update_begins(self) -> None:
        """An optimizer's `step` has been entered: read the weights as they are."""
        if self._armed is not None:
            self._armed.parameters.update_begins(self.recorder.step_row())

    def before_update(self, optimizer: Optimizer, scale: Tensor | None) -> None:
        """The gradients are complete: read them, clipped and scaled as they are."""
        armed = self._armed
        if armed is None:
            return
        row = self.recorder.step_row()
        if not self.recorder.tasks.committed:
            self._look_again()  # others may be called, or trained, by now than those that have shown nothing
            self.recorder.ignore_parameters()
            self.recorder.watch_parameters()
            if self._is_late:
                armed.parameters.look_back(row)
        self._is_late = False
        num_skipped = self.recorder.tasks.take_thrown_away()
        if scale is not None:
            self._note_scale(scale, optimizer, row, armed)
            if num_skipped:
                self._skipped(num_skipped)
        if getattr(optimizer, "grad_scale", None) is not None:
            self._fused.add("weight_grad@clipped")
        armed.parameters.before_update(row)

    def _note_scale(self, scale: Tensor, optimizer: Optimizer, row: Row, armed: _Armed) -> None:
        """A frame has one loss scale: where it changes between two optimizers, the later one's numbers are adapted."""
        if not row.numel[armed.plan.loss_scale.index]:
            row.write(armed.plan.loss_scale, scale)
            self._first_scale = scale.clone() if len(self._optimizers()) > 1 else scale
        elif self._first_scale is not None:
            factor = self._first_scale / scale
            armed.parameters.rescale(row, optimizer, factor)
            self.recorder.rescale(factor)

    def after_update(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped: read the update."""
        if self._armed is not None:
            try:
                self.recorder.optimizer_stepped()
                self._armed.parameters.after_update(self.recorder.step_row(), optimizer)
            except Exception as error:
                self._failed("", error)

    def take(self, step: int) -> StepValues | None:
        """Close the frame of a step and send it on its way; None where nothing was due.

        Raises:
            RanksError, TapError: the other ranks cannot be followed.
        """
        if self._armed is None:
            return None
        if self.rank_group is not None:
            self.rank_group.refuse_join(self.model)
        plan, reducer = self._armed.plan, self._armed.reducer
        own = HostCopy(*self.recorder.rows())
        copy: Copy = own if reducer is None else reducer.reduce(own, step)
        taken = StepValues(plan, copy, frozenset({"weight_grad", "weight_grad@micro", "output_grad", *self._fused}))
        self._fused.clear()
        self._armed.parameters.step_ended()
        for memory in plan.memories:
            memory.advance()
        return taken

    def report_unmatched(self, plan: Plan) -> None:
        """After the first frame of a rule: say which of its patterns met no tensor.

        Raises:
            TapError: so it is, and `strict`.
        """
        self._patterns.report(plan, self.parameters, self.model)

"""One attached process: it waits for optimizers, finds the models that they train, and watches those.

Belongs here: when a monitor is made, given another optimizer, and closed. Does not: how a model is found (`seek`), how
the end is noticed (`ending`), and what is written (`report`).
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from gradlab.attach.ending import Ending
from gradlab.attach.options import AttachOptions
from gradlab.attach.seek import FirstCall, owner_of, parameter_ids, touches
from gradlab.errors import voices
from gradlab.taps.identity import WeakIdentityDict
from gradlab.taps.rank import own_rank

if TYPE_CHECKING:
    from gradlab.attach.report import Report, Told
    from gradlab.monitor import Monitor
    from gradlab.sinks import Sink

_MOST_MODELS = 16
"""So many models of one process are watched; a script that makes a new one each step would drown in event files."""


def begin() -> None:
    """Called once in a process, when torch has been imported."""
    Session(AttachOptions.from_environment()).begin()


@dataclass(kw_only=True)
class Watched:
    """A model, and the monitor on it while there is an optimizer; neither of them is kept alive for its results."""

    label: str
    model: weakref.ref[nn.Module]
    monitor: Monitor | None
    optimizers: list[weakref.ref[Optimizer]] = field(default_factory=list)
    told: Told | None = None
    """What there is to say of it, since its last optimizer is gone."""
    sinks: tuple[Sink, ...] = ()
    """Where results go on, should another optimizer come."""


class Session:
    """All that is watched in this process."""

    def __init__(self, options: AttachOptions) -> None:
        self.options = options
        self.watched: list[Watched] = []
        self._known: WeakIdentityDict = WeakIdentityDict()
        """Optimizers whose model is watched, or of which is known that it cannot be."""
        self._waiting: list[weakref.ref[Optimizer]] = []
        """Optimizers that were made, and whose model has not been called since."""
        self._seek = FirstCall(self._called)
        self._report: Report | None = None
        self._ending = Ending(self._finish)
        self._said: set[str] = set()
        self._is_fork = False
        self._busy = False

    def begin(self) -> None:
        """Notice optimizers that are made, steps that they take, and the end of the process."""
        voices.append(self._say)
        self._follow_new_optimizers()
        register_optimizer_step_post_hook(self._stepped)
        self._ending.install()
        os.register_at_fork(after_in_child=self._forked)

    def _follow_new_optimizers(self) -> None:
        make = Optimizer.__init__

        @functools.wraps(make)
        def __init__(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            make(optimizer, *args, **kwargs)
            self._waiting.append(weakref.ref(optimizer))
            self._seek.begin()

        Optimizer.__init__ = __init__  # type: ignore[assignment, method-assign]

    # What happens in the script.

    def _called(self, module: nn.Module) -> None:
        """A module is about to be called, while there are optimizers whose model is not known yet."""
        if self._busy or torch.compiler.is_compiling():
            return
        waiting = [one for ref in self._waiting if (one := ref()) is not None]
        ours = [one for one in waiting if touches(module, parameter_ids([one]))]
        if ours:
            self._attach(ours, module, first_step=0)
        self._waiting = [ref for ref in self._waiting if (one := ref()) is not None and one not in self._known]
        if not self._waiting:
            self._seek.end()

    def _stepped(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer has stepped: one whose model was never called by then is watched from its second step on."""
        if optimizer not in self._known and not self._busy:
            self._attach([optimizer], None, first_step=1)

    def _attach(self, optimizers: Sequence[Optimizer], called: nn.Module | None, *, first_step: int) -> None:
        """Watch the model that some optimizers train; whatever goes wrong, the script goes on."""
        self._busy = True
        for one in optimizers:
            self._known[one] = True
        try:
            for group in _grouped(optimizers):
                self._attach_group(group, called, first_step)
        except Exception as error:
            self._say(f"{_names(optimizers)} is not watched: {error}")
        finally:
            self._busy = False

    def _attach_group(self, optimizers: Sequence[Optimizer], called: nn.Module | None, first_step: int) -> None:
        wanted = parameter_ids(optimizers)
        if called is not None and not touches(called, wanted):
            called = None
        watched = self._watched_with(wanted)
        model = owner_of(wanted, called) if watched is None else watched.model()
        if model is None:
            self._say(f"{_names(optimizers)} is not watched: its parameters are in no module.")
            return
        watched = watched or next((one for one in self.watched if one.model() is model), None)
        if watched is None or watched.monitor is None:
            watched = self._watch(watched, model, optimizers, called, first_step)
        elif watched.monitor is not None:
            for one in optimizers:
                watched.monitor.add_optimizer(one)
        if watched is not None:
            died = functools.partial(_tell_death, weakref.ref(self), watched)
            watched.optimizers += [weakref.ref(one, died) for one in optimizers]

    def _watched_with(self, wanted: set[int]) -> Watched | None:
        """What is watched already and has all these parameters."""
        for one in self.watched:
            model = one.model()
            if model is not None and wanted <= {id(p) for p in model.parameters()}:
                return one
        return None

    def _watch(
        self,
        before: Watched | None,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        called: nn.Module | None,
        first_step: int,
    ) -> Watched | None:
        """A new model is watched, or one whose earlier optimizers are gone."""
        from gradlab.monitor import Monitor
        from gradlab.taps.sites import unwrapped

        if before is None and len(self.watched) >= _MOST_MODELS:
            self._say(f"{_MOST_MODELS} models have been watched; those that follow are not.")
            return None
        as_called = called if called is not None and unwrapped(called) is model else model
        shared: dict[str, Any] = {
            "taps": self.options.taps,
            "across_ranks": self.options.across_ranks,
            "closes_sinks": False,
        }
        if before is not None and before.told is not None:
            step = before.told.steps + first_step
            before.monitor = Monitor(as_called, optimizers, sinks=before.sinks, first_step=step, **shared)
            return before
        label = _name(model) if not self.watched else f"{len(self.watched) + 1}-{_name(model)}"
        folder = self._folder()
        if folder is not None and self.watched:
            folder = folder / label
        monitor = Monitor(
            as_called,
            optimizers,
            jacobians=self.options.jacobians,
            profile=self.options.profile if folder is not None else None,
            profile_dir=folder / "profile" if folder is not None else None,
            logdir=folder if self._rank == 0 else None,  # one event file a training
            first_step=first_step,
            **shared,
        )
        watched = Watched(label=label, model=weakref.ref(model), monitor=monitor)
        self.watched.append(watched)
        return watched

    def _folder(self) -> Path | None:
        """Where the results of this process go; None where that is on another machine."""
        from gradlab.attach.report import Report
        from gradlab.profiling.window import ranks

        if self._report is None:
            self._report = Report(self.options, *ranks())
        return self._report.claim()

    def optimizer_died(self, watched: Watched) -> None:
        """Without an optimizer a model is not trained any more; holding on to it would cost its memory."""
        if any(ref() is not None for ref in watched.optimizers):
            return
        self._close(watched)
        gc.collect()  # a monitor is full of cycles that would keep the model for a while

    # The end.

    def _close(self, watched: Watched) -> None:
        """Take from a monitor what there is to say, and drop it."""
        from gradlab.attach.report import told_of

        monitor, watched.monitor, watched.optimizers = watched.monitor, None, []
        if monitor is None:
            return
        try:
            watched.sinks = monitor.sinks
            monitor.close()
            watched.told = told_of(monitor, watched.label, watched.told)
        except Exception as error:
            self._say(f"the results of {watched.label} are not complete: {error}")

    def _finish(self) -> None:
        """The process ends, in whatever way."""
        self._seek.end()
        try:
            for watched in self.watched:
                self._close(watched)
                for sink in watched.sinks:
                    sink.close()
            told = [one.told for one in self.watched if one.told is not None]
            code, reason = self._ending.code, self._ending.reason
            if self._report is not None and self._rank > 0:
                self._report.leave_word(code=code, reason=reason)
            elif self._report is not None and told:
                self._report.close(told, code=code, reason=reason)
            elif self._report is not None:
                self._report.discard()
            if self.options.is_command and not self._is_fork and (self._report is None or self._rank > 0):
                self._close_command()
        except Exception as error:
            self._say(f"the summary could not be made: {type(error).__name__}: {error}")

    def _close_command(self) -> None:
        from gradlab.attach.closing import close_command

        nothing = "no optimizer of torch.optim has trained a module in this script."
        end = self._ending
        close_command(self.options, code=end.code, reason=end.reason, nothing=nothing, failure=end.failure)

    def _forked(self) -> None:
        """In a child made by fork, such as a data worker: what the parent watches is none of its business."""
        for watched in self.watched:
            if watched.monitor is not None:
                watched.monitor.abandon()
        self.watched, self._waiting = [], []
        self._known = WeakIdentityDict()
        self._report = None
        self._is_fork = True
        self._busy = False
        self._seek.end()
        self._ending.begin_again()

    @property
    def _rank(self) -> int:
        """This process's rank; once it has results that of then, for the process group may be gone by now."""
        return self._report.rank if self._report is not None else own_rank()

    def _say(self, line: str) -> None:
        """One line for people, once, by rank zero."""
        if line not in self._said and self._rank == 0:
            self._said.add(line)
            print(f"gradlab: {line}", file=sys.stderr, flush=True)


def _tell_death(session: weakref.ref[Session], watched: Watched, optimizer: object) -> None:
    """The callback of a weak reference to an optimizer."""
    if (one := session()) is not None and watched in one.watched:
        one.optimizer_died(watched)


def _grouped(optimizers: Sequence[Optimizer]) -> list[list[Optimizer]]:
    """Optimizers that train one model together: all of them, unless no module has the parameters of all."""
    if len(optimizers) == 1 or owner_of(parameter_ids(optimizers), None) is not None:
        return [list(optimizers)]
    return [[one] for one in optimizers]


def _name(model: nn.Module) -> str:
    """The class of a model as the script has written it: `fully_shard` puts a class of its own on top."""
    kind = type(model)
    return kind.__bases__[-1].__name__ if kind.__name__ == f"FSDP{kind.__bases__[-1].__name__}" else kind.__name__


def _names(optimizers: Sequence[Optimizer]) -> str:
    return "the model of " + " and ".join(dict.fromkeys(type(one).__name__ for one in optimizers))

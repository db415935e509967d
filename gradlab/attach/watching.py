"""One attached process: it waits for optimizers, finds the models that they train, and watches those.

Belongs here: when a monitor is made, given another optimizer, and closed. Does not: how a model is found (`seek`), how
the end is noticed (`ending`), and what is written (`report`).
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

import gradlab
from gradlab.attach.exit_hooks import Ending
from gradlab.attach.model_search import Ages, FirstCall, ModelSearch, is_ready, touches
from gradlab.attach.options import AttachOptions
from gradlab.autograd_engine import is_in_backward
from gradlab.distributed import own_rank, rank_in_group, world_size
from gradlab.errors import voices
from gradlab.identity import WeakIdentityDict, is_among
from gradlab.monitor.process_end import follow
from gradlab.optimizers import parameter_ids
from gradlab.sites.names import unwrapped

if TYPE_CHECKING:
    from gradlab.attach.report import Report, Told
    from gradlab.monitor.monitor import Monitor
    from gradlab.sinks import Sink

_MOST_MODELS = 16
"""So many models of one process are watched; a script that makes a new one each step would drown in event files."""


def begin() -> None:
    """Called once in a process, when torch has been imported."""
    Session(AttachOptions.from_environment()).begin()


@dataclass(frozen=True)
class Made:
    """When and where a script has made an optimizer."""

    age: int
    """By the session's `Ages`."""
    place: str
    """`train.py, line 12`; "" where it was not the script's own."""


@dataclass(kw_only=True)
class Watched:
    """A model, and the monitor on it while there is an optimizer; neither of them is kept alive for its results."""

    label: str
    model: weakref.ref[nn.Module]
    monitor: Monitor | None
    began: float = field(default_factory=time.monotonic)
    optimizers: list[weakref.ref[Optimizer]] = field(default_factory=list)
    told: Told | None = None
    """What there is to say of it, since its last optimizer is gone."""
    sinks: tuple[Sink, ...] = ()
    """Where results go on, should another optimizer come."""

    def has(self, wanted: set[int]) -> bool:
        """Whether the model has all of some parameters."""
        model = self.model()
        return model is not None and wanted <= {id(p) for p in model.parameters()}


class Session:
    """All that is watched in this process."""

    def __init__(self, options: AttachOptions) -> None:
        self.options = options
        self.watched: list[Watched] = []
        self._known: WeakIdentityDict = WeakIdentityDict()
        """Optimizers whose model is watched, or of which is known that it cannot be."""
        self._waiting: list[weakref.ref[Optimizer]] = []
        """Optimizers that were made, and whose model has not been called since."""
        self._made: WeakIdentityDict = WeakIdentityDict()
        self._strange: dict[int, weakref.ref[nn.Module]] = {}
        """Modules that were called, and have nothing of the optimizers that are waiting."""
        self._ages = Ages()
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
        register_optimizer_step_pre_hook(self._about_to_step)
        self._ending.install()
        follow(self)
        os.register_at_fork(after_in_child=self._forked)

    def _follow_new_optimizers(self) -> None:
        make = Optimizer.__init__

        @functools.wraps(make)
        def __init__(optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
            make(optimizer, *args, **kwargs)
            self._ages.install()
            self._made[optimizer] = Made(self._ages.now, _place())
            self._waiting.append(weakref.ref(optimizer))
            self._strange.clear()
            self._seek.begin()

        Optimizer.__init__ = __init__  # type: ignore[assignment, method-assign]

    # What happens in the script.

    def _called(self, module: nn.Module) -> None:
        """A module is about to be called, while there are optimizers whose model is not known yet."""
        if torch.compiler.is_compiling() or self._busy:
            return
        strange = self._strange.get(id(module))
        if strange is not None and strange() is module:
            return
        waiting = self._alive()
        ours = [one for one in waiting if touches(module, parameter_ids([one]))]
        if ours:
            self._attach(ours, module)
        elif all(map(is_ready, waiting)):
            self._strange[id(module)] = weakref.ref(module)
        self._look_on()

    def _alive(self) -> list[Optimizer]:
        waiting = [one for ref in self._waiting if (one := ref()) is not None]
        return [one for one in waiting if one not in self._known]

    def _know(self, optimizers: Sequence[Optimizer]) -> None:
        for one in optimizers:
            self._known[one] = True

    def _look_on(self) -> None:
        """Follow calls as long as an optimizer waits."""
        self._waiting = [weakref.ref(one) for one in self._alive()]
        if not self._waiting:
            self._seek.end()
            self._strange.clear()

    def _about_to_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer begins its step, and its model has not been called by then: at last it is looked for.

        With a closure the model will be called for the first time within this step. Those that were made with the
        optimizer, as one for each part of a model, belong to its step.
        """
        if optimizer in self._known or self._busy or is_in_backward() or not is_ready(optimizer):
            return
        self._attach([optimizer, *(one for one in self._alive() if one is not optimizer and is_ready(one))], None)
        self._look_on()

    def _attach(self, optimizers: Sequence[Optimizer], called: nn.Module | None) -> None:
        """Watch what some optimizers train; whatever goes wrong, the script goes on.

        Args:
            optimizers: those that wait.
            called: a module that is about to be called and has parameters of all of them; where it is None, the first
                optimizer is about to step, and others are of interest as far as they train the same model.
        """
        self._busy = True
        try:
            self._know(optimizers if called is not None else optimizers[:1])
            left = [one for one in optimizers if not self._join(one)]
            if left and (called is not None or left[0] is optimizers[0]):
                self._search(left, called)
        except Exception as error:
            self._say(f"{self._model_of(optimizers)} is not watched: {error}")
        finally:
            self._busy = False

    def _join(self, optimizer: Optimizer) -> bool:
        """Count the steps of an optimizer with those of others, where a model has all of its parameters already."""
        wanted = parameter_ids([optimizer])
        watched = next((one for one in self.watched if one.has(wanted)), None)
        if watched is None or (model := watched.model()) is None:
            return False
        self._know([optimizer])
        if watched.monitor is None:
            self._watch(watched, model, [optimizer], model)
        else:
            watched.monitor.add_optimizer(optimizer)
            self._follow(watched, [optimizer])
        return True

    def _search(self, optimizers: Sequence[Optimizer], called: nn.Module | None) -> None:
        """Look for the models of some optimizers, and watch them."""
        if len(self.watched) >= _MOST_MODELS:
            self._say(f"{_MOST_MODELS} models have been watched; those that follow are not.")
            return
        search = ModelSearch(parameter_ids(optimizers), called, self._ages)
        asked = optimizers if called is not None else optimizers[:1]
        for one in asked:
            if not search.owned & parameter_ids([one]):
                self._say(f"{self._model_of([one])} is not watched: its parameters are in no module.")
        for model, ones in self._trainings(search, optimizers):
            if not any(is_among(one, asked) for one in ones):
                continue
            self._know(ones)
            as_called = model if called is None or unwrapped(called) is not model else called
            try:
                self._watch(None, model, ones, as_called)
            except Exception as error:
                self._say(f"{self._model_of(ones)} is not watched: {error}")

    def _trainings(
        self, search: ModelSearch, optimizers: Sequence[Optimizer]
    ) -> list[tuple[nn.Module, list[Optimizer]]]:
        """Models, each with its optimizers: one model for all of them where one has all parameters."""
        made = max(self._age(one) for one in optimizers)
        models = search.models_of(parameter_ids(optimizers), made)
        if len(models) == 1:
            return [(models[0], list(optimizers))]
        found: dict[int, tuple[nn.Module, list[Optimizer]]] = {}
        for one in optimizers:
            for model in search.models_of(parameter_ids([one]), self._age(one)):
                found.setdefault(id(model), (model, []))[1].append(one)
        return list(found.values())

    def _age(self, optimizer: Optimizer) -> int:
        made = self._made.get(optimizer)
        return self._ages.now if made is None else made.age

    def _model_of(self, optimizers: Sequence[Optimizer]) -> str:
        """Which model a sentence speaks of: that of optimizers, and where the script has made them."""
        names = [type(one).__name__ for one in optimizers]
        places = [made.place for one in optimizers if (made := self._made.get(one)) is not None and made.place]
        told = " and ".join(dict.fromkeys(names))
        return f"the model of {told}" + (f" (made in {' and '.join(dict.fromkeys(places))})" if places else "")

    def _watch(
        self, before: Watched | None, model: nn.Module, optimizers: Sequence[Optimizer], as_called: nn.Module
    ) -> None:
        """A new model is watched, or one whose earlier optimizers are gone."""
        from gradlab.monitor.monitor import Monitor

        shared: dict[str, Any] = {
            "taps": self.options.taps,
            "across_ranks": self.options.across_ranks,
            "closes_sinks": False,
        }
        if before is not None:
            step = before.told.steps if before.told is not None else 0
            before.monitor = Monitor(as_called, optimizers, sinks=before.sinks, first_step=step, **shared)
            self._follow(before, optimizers)
            return
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
            sinks=_event_file(folder) if folder is not None and self._rank == 0 else (),  # one a training
            first_step=self._report.first_step(len(self.watched)) if self._report is not None else 0,
            **shared,
        )
        self.watched.append(Watched(label=label, model=weakref.ref(model), monitor=monitor))
        self._follow(self.watched[-1], optimizers)

    def _follow(self, watched: Watched, optimizers: Sequence[Optimizer]) -> None:
        """Notice when the optimizers of a model are gone."""
        died = functools.partial(_tell_death, weakref.ref(self), watched)
        watched.optimizers += [weakref.ref(one, died) for one in optimizers]

    def _folder(self) -> Path | None:
        """Where the results of this process go; None where that is on another machine."""
        from gradlab.attach.report import Report

        if self._report is None:
            self._report = Report(self.options, rank_in_group(), world_size())
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
            watched.told = told_of(monitor, watched.label, watched.began, watched.told)
        except Exception as error:
            self._say(f"the results of {watched.label} are not complete: {error}")

    def end(self) -> None:
        """The process ends: `_finish` is called by what knows the exit code."""

    def abandon(self) -> None:
        """A child made by fork: see `_forked`."""

    def flush(self) -> None:
        """The process is about to become another program (`exec`), which goes on with this run if it trains."""
        from gradlab.attach.report import told_of

        if self._report is None or self._is_fork or self._ending.is_over:
            return
        told = []
        for one in self.watched:
            now = one.told if one.monitor is None else told_of(one.monitor, one.label, one.began, one.told)
            if now is not None:
                told.append(now)
        self._report.hand_on(told)

    def go_on(self) -> None:
        """It has stayed this program."""
        if self._report is not None:
            self._report.take_back()

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

        nothing = (
            "no optimizer of torch.optim has trained a module in this script; gradlab.watch(model, optimizer) in it "
            "follows any other that has a step."
        )
        end = self._ending
        close_command(self.options, code=end.code, reason=end.reason, nothing=nothing, failure=end.failure)

    def _forked(self) -> None:
        """In a child made by fork, such as a data worker: what the parent watches is none of its business."""
        for watched in self.watched:
            if watched.monitor is not None:
                watched.monitor.abandon()
        self.watched, self._waiting = [], []
        self._strange.clear()
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


def _name(model: nn.Module) -> str:
    """The class of a model as the script has written it: `fully_shard` puts a class of its own on top."""
    kind = type(model)
    return kind.__bases__[-1].__name__ if kind.__name__ == f"FSDP{kind.__bases__[-1].__name__}" else kind.__name__


def _event_file(folder: Path) -> tuple[Sink, ...]:
    from gradlab.events import EventWriter
    from gradlab.sinks import TensorBoardSink

    return (TensorBoardSink(EventWriter(folder)),)


def _place() -> str:
    """The line of the script, outside of torch and gradlab, that makes an optimizer."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_NOT_THE_SCRIPT):
        frame = frame.f_back
    if frame is None:
        return ""
    return f"{os.path.basename(frame.f_code.co_filename)}, line {frame.f_lineno}"


_NOT_THE_SCRIPT = tuple(os.path.dirname(one.__file__ or "-") + os.sep for one in (torch, gradlab))

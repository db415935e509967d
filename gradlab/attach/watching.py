"""One attached process: its optimizers, the models that they train, and the monitors on those.

Belongs here: when a monitor is made, given another optimizer, and closed. Does not: which optimizers there are
(`made_optimizers`), how a model is found (`model_search`), how the end is noticed (`exit_hooks`), and what is written
(`report`).
"""

from __future__ import annotations

import functools
import gc
import os
import sys
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from gradlab.attach.exit_hooks import ExitHooks
from gradlab.attach.made_optimizers import MadeOptimizers
from gradlab.attach.model_search import ModelSearch, has_any, is_ready
from gradlab.attach.module_hooks import ModuleCalls
from gradlab.attach.options import AttachOptions
from gradlab.attach.watched_model import WatchedModel, class_name
from gradlab.autograd_engine import is_in_backward
from gradlab.diagnose.options import Diagnose
from gradlab.distributed import own_rank, rank_in_group, world_size
from gradlab.errors import UsageError, voices
from gradlab.facts import loaded_parameters
from gradlab.identity import is_among
from gradlab.monitor.process_end import follow
from gradlab.optimizers import parameter_ids, parameters_of
from gradlab.sites.names import unwrapped

if TYPE_CHECKING:
    from gradlab.attach.report import Report
    from gradlab.sinks import Sink

_MOST_MODELS = 16
"""So many models of one process are watched; a script that makes a new one each step would drown in event files."""


def begin() -> None:
    """Called once in a process, when torch has been imported."""
    Session(AttachOptions.from_environment()).begin()


class Session:
    """The optimizers, models and monitors of this process. Nothing in it may raise into the script."""

    def __init__(self, options: AttachOptions) -> None:
        self.options = options
        self.watched: list[WatchedModel] = []
        self._optimizers = MadeOptimizers(self._optimizer_made)
        self._unrelated: dict[int, weakref.ref[nn.Module]] = {}
        """Modules that were called, and have nothing of the optimizers that are waiting."""
        self._calls = ModuleCalls(self._called)
        self._report: Report | None = None
        self._exit = ExitHooks(self._finish)
        self._printed: set[str] = set()
        self._is_fork = False
        self._is_busy = False

    def begin(self) -> None:
        """Notice optimizers that are made, steps that they take, and the end of the process."""
        voices.append(self._print)
        loaded_parameters.install()
        self._optimizers.install()
        register_optimizer_step_pre_hook(self._about_to_step)
        self._exit.install()
        follow(self)
        os.register_at_fork(after_in_child=self._after_fork)

    # What happens in the script.

    def _optimizer_made(self) -> None:
        self._unrelated.clear()
        self._calls.begin()

    def _called(self, module: nn.Module) -> None:
        """A module is about to be called, while there are optimizers whose model is not known yet."""
        if torch.compiler.is_compiling() or self._is_busy:
            return
        unrelated = self._unrelated.get(id(module))
        if unrelated is not None and unrelated() is module:
            return
        waiting = self._optimizers.waiting()
        ours = [one for one in waiting if has_any(module, parameter_ids([one]))]
        if ours:
            self._attach(ours, module)
        elif all(map(is_ready, waiting)):
            self._unrelated[id(module)] = weakref.ref(module)
        self._end_waiting()

    def _end_waiting(self) -> None:
        """Follow the calls of modules only as long as an optimizer waits."""
        if not self._optimizers.forget_settled():
            self._calls.end()
            self._unrelated.clear()

    def _about_to_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        """An optimizer begins its step, and its model has not been called by then: at last it is looked for.

        With a closure the model will be called for the first time within this step. Those that were made with the
        optimizer, as one for each part of a model, belong to its step.
        """
        if self._optimizers.is_settled(optimizer) or self._is_busy or is_in_backward() or not is_ready(optimizer):
            return
        others = [one for one in self._optimizers.waiting() if one is not optimizer and is_ready(one)]
        model = self._trained_instead(optimizer)
        if model is not None:
            self._attach_to_stranger(optimizer, model)
        else:
            self._attach([optimizer, *others], None)
        self._end_waiting()

    def _trained_instead(self, optimizer: Optimizer) -> nn.Module | None:
        """A model that was called and has gradients, where the optimizer has none of its parameters and its own have
        no gradient: it was made for another model than the one that the loop trains."""
        if world_size() > 1:
            return None  # sharding puts other parameters in the place of those that the optimizer was made for
        if any(p.grad is not None for p in parameters_of(optimizer) if p.is_leaf):
            return None
        called = [one for ref in self._unrelated.values() if (one := ref()) is not None]
        reached = {id(one): sum(p.is_leaf and p.grad is not None for p in one.parameters()) for one in called}
        known = {id(one.model()) for one in self.watched}
        called = [one for one in called if reached[id(one)] and id(one) not in known and unwrapped(one) is one]
        return max(called, key=lambda one: (reached[id(one)], sum(1 for _ in one.modules())), default=None)

    def _attach_to_stranger(self, optimizer: Optimizer, model: nn.Module) -> None:
        """Watch a model as long as there is an optimizer that has nothing of it: the diagnosis has to say so."""
        self._is_busy = True
        try:
            self._optimizers.settle([optimizer])
            if len(self.watched) < _MOST_MODELS:
                self._watch(None, model, [], model)
                self._follow(self.watched[-1], [optimizer])
        except Exception as error:
            self._print(f"{class_name(model)} is not watched: {error}")
        finally:
            self._is_busy = False

    def _attach(self, optimizers: Sequence[Optimizer], called: nn.Module | None) -> None:
        """Watch what some optimizers train; whatever goes wrong, the script goes on.

        Args:
            optimizers: those that wait.
            called: a module that is about to be called and has parameters of all of them; where it is None, the first
                optimizer is about to step, and others are of interest as far as they train the same model.
        """
        self._is_busy = True
        try:
            self._optimizers.settle(optimizers if called is not None else optimizers[:1])
            left = [one for one in optimizers if not self._join_watched(one)]
            if left and (called is not None or left[0] is optimizers[0]):
                self._search(left, called)
        except Exception as error:
            self._print(f"{self._optimizers.describe_model(optimizers)} is not watched: {error}")
        finally:
            self._is_busy = False

    def _join_watched(self, optimizer: Optimizer) -> bool:
        """Count the steps of an optimizer with those of others, where a model has all of its parameters already."""
        wanted = parameter_ids([optimizer])
        watched = next((one for one in self.watched if one.has(wanted)), None)
        if watched is None or (model := watched.model()) is None:
            return False
        self._optimizers.settle([optimizer])
        if watched.monitor is None:
            self._watch(watched, model, [optimizer], model)
        else:
            watched.monitor.add_optimizer(optimizer)
            self._follow(watched, [optimizer])
        return True

    def _search(self, optimizers: Sequence[Optimizer], called: nn.Module | None) -> None:
        """Look for the models of some optimizers, and watch them."""
        if len(self.watched) >= _MOST_MODELS:
            self._print(f"{_MOST_MODELS} models have been watched; those that follow are not.")
            return
        search = ModelSearch(parameter_ids(optimizers), called, self._optimizers.ages)
        concerned = optimizers if called is not None else optimizers[:1]
        for one in concerned:
            if not search.owned & parameter_ids([one]):
                self._print(
                    f"{self._optimizers.describe_model([one])} is not watched: its parameters are in no module."
                )
        for model, ones in self._trainings(search, optimizers):
            if not any(is_among(one, concerned) for one in ones):
                continue
            self._optimizers.settle(ones)
            as_called = model if called is None or unwrapped(called) is not model else called
            try:
                self._watch(None, model, ones, as_called)
            except Exception as error:
                self._print(f"{self._optimizers.describe_model(ones)} is not watched: {error}")

    def _trainings(
        self, search: ModelSearch, optimizers: Sequence[Optimizer]
    ) -> list[tuple[nn.Module, list[Optimizer]]]:
        """Models, each with its optimizers: one model for all of them where one has all parameters."""
        made = max(self._optimizers.moment_of(one) for one in optimizers)
        models = search.models_of(parameter_ids(optimizers), made)
        if len(models) == 1:
            return [(models[0], list(optimizers))]
        found: dict[int, tuple[nn.Module, list[Optimizer]]] = {}
        for one in optimizers:
            for model in search.models_of(parameter_ids([one]), self._optimizers.moment_of(one)):
                found.setdefault(id(model), (model, []))[1].append(one)
        return list(found.values())

    def _watch(
        self, before: WatchedModel | None, model: nn.Module, optimizers: Sequence[Optimizer], as_called: nn.Module
    ) -> None:
        """A new model is watched, or one whose earlier optimizers are gone."""
        from gradlab.monitor.monitor import Monitor

        shared: dict[str, Any] = {
            "taps": self.options.taps,
            "across_ranks": self.options.across_ranks,
            "closes_sinks": False,
        }
        if before is not None:
            step = before.earlier.steps if before.earlier is not None else 0
            diagnose = self._diagnose(has_folder=False)
            before.monitor = Monitor(
                as_called, optimizers, diagnose=diagnose, sinks=before.sinks, first_step=step, **shared
            )
            self._follow(before, optimizers)
            return
        label = class_name(model) if not self.watched else f"{len(self.watched) + 1}-{class_name(model)}"
        folder = self._folder()
        if folder is not None and self.watched:
            folder = folder / label
        monitor = Monitor(
            as_called,
            optimizers,
            jacobians=self.options.jacobians,
            profile=self.options.profile if folder is not None else None,
            profile_dir=folder / "profile" if folder is not None else None,
            diagnose=self._diagnose(has_folder=folder is not None),
            sinks=self._sinks(folder, label),
            first_step=self._report.first_step(len(self.watched)) if self._report is not None else 0,
            **shared,
        )
        self.watched.append(WatchedModel(label=label, model=weakref.ref(model), monitor=monitor))
        self._follow(self.watched[-1], optimizers)

    def _diagnose(self, *, has_folder: bool) -> Diagnose:
        """Which rules are asked; with their own limits where one is for a rule that the script has not made."""
        try:
            diagnose = self.options.diagnose()
            return diagnose if has_folder or diagnose.on_finding != "profile" else replace(diagnose, on_finding="log")
        except UsageError as error:
            self._print(f"rules are asked with their own limits: {error}")
            return Diagnose()

    def _sinks(self, folder: Path | None, label: str) -> tuple[Sink, ...]:
        """Where the results of a new model go: rank zero's alone, there is one event file a training."""
        from gradlab.monitor.series_folder import event_file_sink

        if folder is None or self._rank > 0 or self._report is None:
            return ()
        findings = self._report.findings_file(label if self.watched else "")
        return (event_file_sink(folder), *([findings] if findings is not None else []))

    def _follow(self, watched: WatchedModel, optimizers: Sequence[Optimizer]) -> None:
        """Notice when the optimizers of a model are gone."""
        watched.follow(optimizers, functools.partial(_optimizer_died, weakref.ref(self), watched))

    def _folder(self) -> Path | None:
        """Where the results of this process go; None where that is on another machine."""
        from gradlab.attach.report import Report

        if self._report is None:
            self._report = Report(self.options, rank_in_group(), world_size())
        return self._report.claim()

    def optimizer_died(self, watched: WatchedModel) -> None:
        """Without an optimizer a model is not trained any more; holding on to it would cost its memory."""
        if watched.has_optimizer:
            return
        self._close(watched)
        gc.collect()  # a monitor is full of cycles that would keep the model for a while

    # The end.

    def _close(self, watched: WatchedModel) -> None:
        try:
            watched.close()
        except Exception as error:
            self._print(f"the results of {watched.label} are not complete: {error}")

    def end(self) -> None:
        """The process ends: `_finish` is called by what knows the exit code."""

    def abandon(self) -> None:
        """A child made by fork: see `_after_fork`."""

    def flush(self) -> None:
        """The process is about to become another program (`exec`), which goes on with this run if it trains."""
        if self._report is not None and not self._is_fork and not self._exit.is_over:
            results = [one.results() for one in self.watched]
            self._report.hand_on([one for one in results if one is not None])

    def go_on(self) -> None:
        """It has not become another program."""
        if self._report is not None:
            self._report.take_back()

    def _finish(self) -> None:
        """The process ends, in whatever way."""
        self._calls.end()
        try:
            for watched in self.watched:
                self._close(watched)
                for sink in watched.sinks:
                    sink.close()
            results = [one.earlier for one in self.watched if one.earlier is not None]
            code, reason = self._exit.code, self._exit.reason
            if self._report is not None and self._rank > 0:
                self._report.note_own_failure(code=code, reason=reason)
            elif self._report is not None and results:
                self._report.close(results, code=code, reason=reason)
            elif self._report is not None:
                self._report.discard()
            if self.options.is_command and not self._is_fork and (self._report is None or self._rank > 0):
                self._close_command()
        except Exception as error:
            self._print(f"the summary could not be made: {type(error).__name__}: {error}")

    def _close_command(self) -> None:
        from gradlab.attach.closing import close_command

        nothing = (
            "no optimizer of torch.optim has trained a module in this script; gradlab.watch(model, optimizer) in it "
            "follows any other that has a step."
        )
        end = self._exit
        close_command(self.options, code=end.code, reason=end.reason, nothing=nothing, failure=end.failure)

    def _after_fork(self) -> None:
        """In a child made by fork, such as a data worker: what the parent watches is none of its business."""
        for watched in self.watched:
            if watched.monitor is not None:
                watched.monitor.abandon()
        self.watched = []
        self._optimizers.clear()
        self._unrelated.clear()
        self._report = None
        self._is_fork = True
        self._is_busy = False
        self._calls.end()
        self._exit.reset()

    @property
    def _rank(self) -> int:
        """This process's rank; once it has results that of then, for the process group may be gone by now."""
        return self._report.rank if self._report is not None else own_rank()

    def _print(self, line: str) -> None:
        """One line for people, once, by rank zero."""
        if line not in self._printed and self._rank == 0:
            self._printed.add(line)
            print(f"gradlab: {line}", file=sys.stderr, flush=True)


def _optimizer_died(session: weakref.ref[Session], watched: WatchedModel, optimizer: object) -> None:
    """The callback of a weak reference to an optimizer."""
    if (one := session()) is not None and watched in one.watched:
        one.optimizer_died(watched)

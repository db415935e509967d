"""Monitors for frameworks that run the training loop themselves and say what happens in it.

Belongs here: what the callbacks of such frameworks (`gradlab.lightning`, `gradlab.integrations`) call. Does not: what
those frameworks are, and what users call (`monitor`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gradlab.finding import Finding
from gradlab.monitor.monitor import Monitor
from gradlab.monitor.training_step import Unit
from gradlab.perf.performance import Performance
from gradlab.profiling.profiler import Profiler


class LoopMonitor(Monitor):
    """A Monitor in a loop that counts steps itself, those included that no optimizer was seen to make.

    Its framework prints the end of the training.
    """

    _prints_its_end = False

    _reacts_itself = False

    @property
    def reaction(self) -> str:
        """What is done about findings: a word of `Diagnose.on_finding`, `call` for a function."""
        return self._training_step.reacting.reactions.kind

    def react(self, actions: Mapping[str, Callable[[Finding], object]]) -> None:
        """Act on new findings now, between two steps.

        Args:
            actions: how the framework does `checkpoint` and `stop`.
        Raises:
            TrainingStopped: one of the actions does.
        """
        if not self.is_closed:
            self._training_step.reacting.act(self._training_step, actions)

    def use_loss(self, loss: Callable[[Any], Any]) -> None:
        """Measure the sharpness for a finding on this: from the model to the training's loss."""
        self._training_step.usual_loss = loss

    def skip_to(self, step: int) -> None:
        """Go on with this step: the loop has counted updates that were left out, as a GradScaler leaves them out."""
        self._training_step.skip_to(step)

    def step_missed(self) -> None:
        """The loop has counted a step that no optimizer was seen to make: end it with what there is of it."""
        steps = self._training_step.steps
        if steps.is_attached:
            steps.missing.step_missed()
            steps.end()

    def wants_probe(self, name: str = "train") -> bool:
        """Whether something is to be measured on a probe batch of this name that is not there yet."""
        jacobians = self._training_step.jacobians
        return jacobians is not None and jacobians.wants(name)

    def use_probe(self, samples: Any, name: str = "train") -> None:
        """Take the first samples of a batch, as the model's forward takes it, as a probe batch."""
        jacobians = self._training_step.jacobians
        if jacobians is not None:
            jacobians.use_probe(samples, name)


class BatchLoopMonitor(LoopMonitor):
    """A Monitor in a loop that says when a batch begins and ends, and that names the phases of a step itself.

    Profile windows count batches, `perf/*` the batches that end an optimizer step. The framework drives
    `performance.clock`; no hook on the model or the loader does.
    """

    _unit: Unit = "batch"
    _timed_steps: int | None = None
    """How many optimizer steps had ended when the last one was timed."""

    @property
    def profiler(self) -> Profiler | None:
        """The profile windows."""
        return self._training_step.profiler

    @property
    def performance(self) -> Performance | None:
        """The scalars `perf/*`, where they are logged."""
        return self._training_step.performance

    def batch_begins(self, batch: Any) -> None:
        """A batch is there; what came before it was waiting for data."""
        if self._timed_steps is None:
            self._timed_steps = self.step
        if self.profiler is not None:
            self.profiler.begin()
            self.profiler.data_ready()
        if self.performance is not None:
            self.performance.batch(batch)

    def batch_ended(self, num_steps: int, *, skips: bool) -> None:
        """A whole batch has passed.

        Args:
            num_steps: how many optimizer steps the loop has counted.
            skips: whether those among them that were not seen have been left out, as by a GradScaler.
        """
        if self.profiler is not None:
            self.profiler.step()
        if skips:
            self.skip_to(num_steps)
        if self.performance is not None and num_steps != self._timed_steps:
            self._timed_steps = num_steps
            self.performance.step_ended(num_steps - 1)

    def training_pauses(self) -> None:
        """Something that is no training starts: no profile window is open in it, and its time is no step's."""
        if self.profiler is not None:
            self.profiler.pause()
        if self.performance is not None:
            self.performance.interrupt()

    def training_goes_on(self) -> None:
        """It has ended: the wait for the next batch belongs to the next step."""
        if self.profiler is not None:
            self.profiler.begin()

    def close(self, *, failed: bool = False) -> None:
        """As `Monitor.close`; `failed` says that training ended by an error."""
        self._close(failed=failed)

"""What is done about findings, between two steps: a profile window, a Jacobian, a stop, a function of the user's.

Belongs here: carrying it out. Does not: on which findings (`diagnose.reactions`), and what only a framework can do
(checkpoints of Trainers, a stop that it knows of), which its callback hands over.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from gradlab.diagnose.reactions import Reactions, stop_sentence
from gradlab.distributed import world_size
from gradlab.errors import TrainingStopped, UsageError, warn
from gradlab.finding import Finding
from gradlab.profiling.window import Reason

if TYPE_CHECKING:
    from torch import nn

    from gradlab.jacobians.options import DepthGrowth, Sharpness
    from gradlab.profiling.profiler import Profiler

Action = Callable[[Finding], object]


class Parts(Protocol):
    """The parts of a training step that reactions use."""

    model: nn.Module
    profiler: Profiler | None

    def measure_once(self, measurement: DepthGrowth | Sharpness) -> None:
        """Measure something of Jacobians one time."""


class Reacting:
    """Carries out the reactions of one monitor.

    Args:
        reactions: the findings to act on.
        strict: raise where a reaction fails, instead of one warning.
    """

    def __init__(self, reactions: Reactions, *, strict: bool) -> None:
        self.reactions = reactions
        self._strict = strict

    def check(self, *, has_profiler: bool, saves_checkpoints: bool) -> None:
        """Refuse what cannot be done here.

        Raises:
            UsageError: it says what is missing.
        """
        if self.reactions.kind == "profile" and not has_profiler:
            raise UsageError("on_finding='profile' needs logdir=, the folder for its trace files.")
        if self.reactions.kind == "checkpoint" and not saves_checkpoints:
            raise UsageError(
                "on_finding='checkpoint' is for Trainers, which know how to save one (`gradlab run`, the callbacks). "
                "In a loop of your own give a function: on_finding=lambda finding: torch.save(model.state_dict(), ...)."
            )

    def act(self, step: Parts, actions: Mapping[str, Action] | None = None) -> None:
        """Act on what is waiting.

        Args:
            step: has the parts.
            actions: what a framework does itself, by kind.
        Raises:
            TrainingStopped: `on_finding` is to stop, and no framework does it itself.
        """
        for finding in self.reactions.take():
            kind, function = self.reactions.kind, self.reactions.function
            if actions is not None and kind in actions:
                self._guarded(finding, actions[kind])
            elif function is not None:
                function(finding)  # the user's own, who may want to end the training by an error
            elif kind == "profile" and step.profiler is not None:
                step.profiler.request_window(Reason("finding", finding.message))
            elif kind == "jacobian":
                self._guarded(finding, lambda finding: self._measure(step, finding))
            elif kind == "stop":
                raise stopped(finding)

    def end(self) -> None:
        """Training has ended, and so a function alone can be of use: of what was found at the end, too."""
        for finding in self.reactions.take():
            if self.reactions.function is not None:
                self._guarded(finding, self.reactions.function)

    def _measure(self, step: Parts, finding: Finding) -> None:
        from gradlab.jacobians.for_findings import measurement_for

        if world_size() > 1:
            raise UsageError("Jacobians for findings are measured where one process trains alone.")
        measurement = measurement_for(finding, step.model)
        if measurement is None:
            self.reactions.put_back(finding)
        else:
            step.measure_once(measurement)

    def _guarded(self, finding: Finding, action: Action) -> None:
        try:
            action(finding)
        except TrainingStopped:
            raise
        except Exception as error:
            if self._strict:
                raise
            warn(f"the reaction to {finding.code or finding.name} failed: {type(error).__name__}: {error}")


def stopped(finding: Finding) -> TrainingStopped:
    """The exception that ends a training, whose sentence has been said: Python says none of a SystemExit."""
    sentence = stop_sentence(finding)
    warn(sentence)
    return TrainingStopped(sentence, finding)

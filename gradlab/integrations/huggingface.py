"""GradlabCallback for the Trainer of Hugging Face transformers: a Monitor for the length of one `train`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from gradlab.arguments import named_options
from gradlab.diagnose.options import Diagnose
from gradlab.finding import Finding
from gradlab.identity import is_among
from gradlab.jacobians.options import Measurement
from gradlab.monitor.loop_monitor import LoopMonitor
from gradlab.monitor.options import check_options
from gradlab.monitor.reacting import stopped
from gradlab.optimizers import training_optimizers
from gradlab.profiling.options import Profile
from gradlab.sinks import CallbackSink, Sink
from gradlab.sinks.finding_log import FindingLog
from gradlab.taps.rule import Tap

_log = logging.get_logger("transformers.gradlab")


class GradlabCallback(TrainerCallback):
    """Watch a model while a Trainer trains it: `Trainer(..., callbacks=[GradlabCallback()])`.

    Steps are the Trainer's `global_step`, counted from 0. Each time the Trainer logs, the newest curated scalars (the
    global gradient norm, its percentiles over parameters, `perf/*`) go into its own dictionary and its log history, and
    so to whatever comes after this callback: the console, and integrations that were added later. `first_of(trainer)`
    puts it before all others, so that the Trainer's `report_to` gets them as well. With several processes (DDP, FSDP2)
    the numbers are those of all of them together, and the main process writes the event file.

    Args:
        taps: what to watch; the gradient norm of every parameter where left out.
        jacobians: what to log of Jacobians: `JacobianSlice`, `DepthGrowth`, `Sharpness`.
        profile: windows of torch.profiler, below `logdir`.
        diagnose: which rules look for what is wrong with the training, and what is done about what they find, as a
            `Diagnose`; False: none.
        sinks: further places where results go; the caller closes them.
        logdir: a folder for the event file; `<output_dir>/gradlab` where left out.
        strict: raise where a tap or a sink fails, instead of one warning.
    """

    @named_options
    def __init__(
        self,
        *,
        taps: Tap | Sequence[Tap] | None = None,
        jacobians: Measurement | Sequence[Measurement] = (),
        profile: Profile | None = None,
        diagnose: Diagnose | bool = True,
        sinks: Sink | Sequence[Sink] = (),
        logdir: str | Path | None = None,
        strict: bool = False,
    ) -> None:
        kept = check_options("GradlabCallback()", locals())
        self.monitor: LoopMonitor | None = None
        """The monitor of the training under way, or of the last one."""
        names = ("taps", "jacobians", "profile", "diagnose", "strict")
        self._options: dict[str, Any] = {name: kept[name] for name in names}
        self._sinks: tuple[Sink, ...] = kept["sinks"]
        self._logdir = logdir
        self._newest: dict[str, float] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a fit: a trainer is copied and pickled with its callbacks, a monitor cannot be."""
        return self.__dict__ | dict.fromkeys(("monitor",))

    @property
    def findings(self) -> list[Finding]:
        """All findings so far."""
        return self.monitor.findings if self.monitor is not None else []

    def first_of(self, trainer: Trainer) -> GradlabCallback:
        """Join a trainer as its first callback; returns itself."""
        handler = trainer.callback_handler
        if not is_among(self, handler.callbacks):
            handler.add_callback(self)
        handler.callbacks[:] = [self, *(one for one in handler.callbacks if one is not self)]
        return self

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach, once the optimizer exists and a checkpoint has been loaded."""
        self._close()
        self._newest.clear()
        self.monitor = LoopMonitor(
            kwargs["model"],
            training_optimizers(kwargs["model"], kwargs.get("optimizer")),
            sinks=[*self._sinks, CallbackSink(self._take, name="trainer"), FindingLog(_log_line)],
            logdir=self._logdir or Path(args.output_dir or ".") / "gradlab",
            first_step=state.global_step,
            across_ranks=args.world_size > 1,
            closes_sinks=False,
            **self._options,
        )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """The Trainer has counted a step, be it one whose update a GradScaler has left out, or no optimizer has made.

        The latter is LOMO's, which updates parameters by hooks on their gradients.
        """
        if self.monitor is None:
            return
        if self.monitor.step < state.global_step and not getattr(kwargs.get("optimizer"), "step_was_skipped", True):
            self.monitor.step_missed()
        self.monitor.skip_to(state.global_step)
        self._react(self.monitor, args, control)

    def _react(self, monitor: LoopMonitor, args: TrainingArguments, control: TrainerControl) -> None:
        """Act on findings. With several processes none may save or stop alone, so that they are only logged there."""
        if monitor.reaction in ("checkpoint", "stop") and args.world_size > 1:
            return

        def save(finding: Finding) -> None:
            control.should_save = True

        def stop(finding: Finding) -> None:
            raise stopped(finding)

        monitor.react({"checkpoint": save, "stop": stop})

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Put the newest scalars into what the Trainer logs about training."""
        if self.monitor is None or logs is None or "loss" not in logs:
            return
        self.monitor.latest()  # hands out what has not been yet
        logs.update(self._newest)
        if state.log_history:
            state.log_history[-1].update(self._newest)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the model."""
        self._close()

    def _close(self) -> None:
        if self.monitor is not None:
            self.monitor.close()
            for sink in self.monitor.sinks:
                if not is_among(sink, self._sinks):
                    sink.close()

    def _take(self, values: dict[str, float], step: int) -> None:
        self._newest.update(values)


def _log_line(line: str, finding: Finding) -> None:
    """Into the log of transformers, whose `set_verbosity` decides what is printed."""
    if finding.severity == "info":
        _log.info("gradlab: %s", line)
    else:
        _log.warning("gradlab: %s", line)

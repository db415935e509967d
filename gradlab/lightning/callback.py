"""GradlabCallback: a Monitor for the length of one Lightning `fit`.

Belongs here: what each hook of Lightning's means for the monitor. Does not: what the monitor makes of it
(`monitor.loop_monitor`), and the phases of a step, which Lightning names itself (`phases`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_info

from gradlab.arguments import named_options
from gradlab.diagnose.options import Diagnose
from gradlab.finding import Finding
from gradlab.identity import is_among
from gradlab.jacobians.options import Measurement, Sharpness
from gradlab.lightning.loss import TrainingLoss
from gradlab.lightning.phases import PhaseActions
from gradlab.monitor.loop_monitor import BatchLoopMonitor
from gradlab.monitor.options import check_options
from gradlab.monitor.reacting import stopped
from gradlab.monitor.series_folder import event_file_sink
from gradlab.nonfinite.guard import NonFinite
from gradlab.optimizers import inner_optimizer, training_optimizers
from gradlab.profiling.options import Profile
from gradlab.profiling.out_of_memory import OutOfMemory, explain
from gradlab.profiling.profiler import Profiler
from gradlab.sinks import Sink
from gradlab.sinks.finding_log import FindingLog
from gradlab.taps.rule import Tap

_RANKS_EVERY = 10
"""With several ranks, so many batches from one agreement on findings to the next: it costs a collective."""


class GradlabCallback(pl.Callback):
    """Watch a LightningModule while it is fitted: `Trainer(callbacks=[GradlabCallback()])`.

    Works with automatic and manual optimization, several optimizers, accumulation and every precision. Steps are
    Lightning's `global_step`, so they go on where a checkpoint left off.

    Args:
        taps: what to watch; the module's own `taps()` where it has them, else the gradient norm of every parameter.
        jacobians: slices, depth growths and sharpnesses, on the first samples of the first training batch (a slice with
            `probe="validation"` on those of the first validation batch).
        profile: windows of torch.profiler, below `profile_dir`; where left out, those that `gradlab profile` asks for.
        performance: log where the time of steps goes (`perf/*`); where left out, if there is a sink.
        nonfinite: what to do before an update whose gradients are not finite.
        diagnose: which rules look for what is wrong with the training, and what is done about what they find, as a
            `Diagnose`; False: none.
        sinks: where results go; the caller closes them. Where left out, an event file in `logdir`.
        logdir: the folder of that event file; `gradlab` in the trainer's `log_dir` where left out.
        strict: raise where a tap or a sink fails, instead of one warning.
        profile_dir: folder for the profile windows; the trainer's `default_root_dir` where left out.
    """

    @named_options
    def __init__(
        self,
        *,
        taps: Tap | Sequence[Tap] | None = None,
        jacobians: Measurement | Sequence[Measurement] = (),
        profile: Profile | None = None,
        performance: bool | None = None,
        nonfinite: NonFinite | None = None,
        diagnose: Diagnose | bool = True,
        sinks: Sink | Sequence[Sink] | None = None,
        logdir: str | Path | None = None,
        strict: bool = False,
        profile_dir: str | Path | None = None,
    ) -> None:
        kept = check_options("GradlabCallback()", locals())
        self.taps: tuple[Tap, ...] | None = kept["taps"]
        self.jacobians: tuple[Measurement, ...] = kept["jacobians"]
        self._loss: TrainingLoss | None = None
        self._validation_probe: Any = None
        self.profile = profile
        self.sinks: tuple[Sink, ...] = kept["sinks"]
        self.performance = sinks is None or bool(self.sinks) if performance is None else performance
        self.logdir = logdir
        self._has_own_file = sinks is None
        self._own: tuple[Sink, ...] = ()
        self.nonfinite = nonfinite
        self.diagnose: Diagnose | bool = kept["diagnose"]
        self.strict = strict
        self.profile_dir = profile_dir
        self.monitor: BatchLoopMonitor | None = None
        """The monitor of the fit under way, or of the last one."""
        self.out_of_memory: OutOfMemory | None = None
        """What was in memory when the fit ran out of it."""
        self._actions: PhaseActions | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to a fit: a trainer is copied and pickled with its callbacks, a monitor cannot be."""
        return self.__dict__ | dict.fromkeys(("monitor", "_actions", "_loss", "_validation_probe"))

    @property
    def findings(self) -> list[Finding]:
        """All findings so far."""
        return self.monitor.findings if self.monitor is not None else []

    @property
    def profiler(self) -> Profiler | None:
        """The profile windows of the fit under way, or of the last one."""
        return self.monitor.profiler if self.monitor is not None else None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Attach, once the optimizers exist and a checkpoint has been loaded."""
        self._own = self._own_file(trainer)
        self.monitor = BatchLoopMonitor(
            pl_module,
            training_optimizers(pl_module, trainer.optimizers),
            taps=self.taps if self.taps is not None else _declared_taps(pl_module),
            jacobians=self._measurements(pl_module),
            profile=self.profile,
            profile_dir=self._folder(trainer),
            performance=self.performance,
            nonfinite=self.nonfinite,
            diagnose=self.diagnose,
            scaler=getattr(trainer.precision_plugin, "scaler", None),
            sinks=[*self.sinks, *self._own, FindingLog(_log_line)],
            across_ranks=trainer.world_size > 1,
            strict=self.strict,
            first_step=trainer.global_step,
            closes_sinks=False,
        )
        if self._loss is not None:
            self.monitor.use_loss(self._loss)
        if self._validation_probe is not None:
            self.monitor.use_probe(self._validation_probe, "validation")
        performance = self.monitor.performance
        if performance is not None:
            self._actions = PhaseActions(performance.clock, trainer, on_error=performance.fail)
            self._actions.attach()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """The batch is there, and whatever optimizers the loop has by now."""
        if self.monitor is not None:
            for optimizer in map(inner_optimizer, trainer.optimizers):
                if not is_among(optimizer, self.monitor.optimizers):
                    self.monitor.add_optimizer(optimizer)
            self.monitor.batch_begins(batch)
            if self.monitor.wants_probe():
                self.monitor.use_probe(_probe_input(pl_module, batch))
        if self._loss is not None:
            self._loss.use_batch(batch)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A whole batch has passed: the unit of a profile. The scalars go by optimizer steps."""
        if self.monitor is not None:
            self.monitor.batch_ended(trainer.global_step, skips=pl_module.automatic_optimization)
            self._react(trainer, self.monitor, batch_idx)

    def _react(self, trainer: pl.Trainer, monitor: BatchLoopMonitor, batch_idx: int) -> None:
        """Act on findings. Several ranks save and stop together, on what rank zero has found, every ten batches."""
        if monitor.reaction in ("checkpoint", "stop") and trainer.world_size > 1:
            if batch_idx % _RANKS_EVERY == 0:
                self._react_together(trainer, monitor)
            return
        monitor.react(
            {
                "checkpoint": lambda finding: self.save_checkpoint(trainer, finding),
                "stop": lambda finding: self.stop(trainer, finding),
            }
        )

    def _react_together(self, trainer: pl.Trainer, monitor: BatchLoopMonitor) -> None:
        found: list[Finding] = []
        monitor.react(dict.fromkeys(("checkpoint", "stop"), found.append))
        strategy = trainer.strategy
        if not strategy.reduce_boolean_decision(bool(found) and trainer.is_global_zero, all=False):
            return
        for finding in strategy.broadcast(found):
            (self.save_checkpoint if monitor.reaction == "checkpoint" else self.stop)(trainer, finding)

    def save_checkpoint(self, trainer: pl.Trainer, finding: Finding) -> None:
        """Save a checkpoint for a finding, beside the others."""
        beside = getattr(trainer.checkpoint_callback, "dirpath", None)
        folder = Path(beside or Path(trainer.default_root_dir) / "checkpoints")
        trainer.save_checkpoint(folder / f"finding-step{trainer.global_step}.ckpt")

    def stop(self, trainer: pl.Trainer, finding: Finding) -> None:
        """End the training for a finding.

        Raises:
            TrainingStopped: always.
        """
        raise stopped(finding)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """The first validation batch, be it of the sanity check, is a probe batch where one is wanted."""
        if not any(getattr(spec, "probe", "") == "validation" for spec in self.jacobians):
            return
        if self.monitor is not None and self.monitor.wants_probe("validation"):
            self.monitor.use_probe(_probe_input(pl_module, batch), "validation")
        elif self._validation_probe is None:
            self._validation_probe = _probe_input(pl_module, batch)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """No profile window is open in validation, and its time is no step's."""
        if self.monitor is not None:
            self.monitor.training_pauses()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training goes on; the wait for its next batch belongs to its next step."""
        if self.monitor is not None and not trainer.sanity_checking:
            self.monitor.training_goes_on()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let go of the module."""
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Let go of the module, and hand out what was logged up to the exception."""
        if isinstance(exception, torch.OutOfMemoryError):
            self._explain(exception, trainer, pl_module)
        self._close(failed=True)

    def _measurements(self, pl_module: pl.LightningModule) -> list[Measurement]:
        """What to measure, with the training step's loss where a sharpness brings none."""
        without = [spec for spec in self.jacobians if isinstance(spec, Sharpness) and spec.loss is None]
        if not without:
            self._loss = self._loss_for_findings(pl_module)
            return list(self.jacobians)
        self._loss = TrainingLoss(pl_module, max(spec.samples for spec in without))
        return [
            replace(spec, loss=self._loss) if isinstance(spec, Sharpness) and spec.loss is None else spec
            for spec in self.jacobians
        ]

    def _loss_for_findings(self, pl_module: pl.LightningModule) -> TrainingLoss | None:
        """The training step's loss, where findings may ask for its sharpness."""
        if not isinstance(self.diagnose, Diagnose) or self.diagnose.on_finding != "jacobian":
            return None
        return TrainingLoss(pl_module, Sharpness().samples) if pl_module.automatic_optimization else None

    def _explain(self, error: torch.OutOfMemoryError, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        folder, step = self._folder(trainer), trainer.global_step
        found = explain(error, module, tuple(trainer.optimizers), folder=folder, step=step)
        self.out_of_memory = found
        if self.monitor is not None:
            self.monitor.report(found.finding)

    def _folder(self, trainer: pl.Trainer) -> Path:
        root = self.profile_dir or (self._events(trainer) if self._has_own_file else trainer.default_root_dir)
        return Path(root) / "profile"

    def _events(self, trainer: pl.Trainer) -> Path:
        return Path(self.logdir or Path(trainer.log_dir or trainer.default_root_dir) / "gradlab")

    def _own_file(self, trainer: pl.Trainer) -> tuple[Sink, ...]:
        """The event file of this fit, where no sinks were given; rank zero writes."""
        if not self._has_own_file:
            return ()
        folder = self._events(trainer)  # on every rank: `log_dir` asks the others
        return (event_file_sink(folder),) if trainer.is_global_zero else ()

    def _close(self, *, failed: bool = False) -> None:
        if self._actions is not None:
            self._actions.detach()
        if self.monitor is not None:
            self.monitor.close(failed=failed)
        for sink in self._own:
            sink.close()
        self._own = ()


def _log_line(line: str, finding: Finding) -> None:
    """Into Lightning's own log, on rank zero."""
    rank_zero_info(f"gradlab: {line}")


def _declared_taps(module: pl.LightningModule) -> Sequence[Tap] | None:
    declared = getattr(module, "taps", None)
    return declared() if callable(declared) else None


def _probe_input(module: pl.LightningModule, batch: Any) -> Any:
    """What the module's forward takes, out of a batch."""
    chooser = getattr(module, "probe_input", None)
    return chooser(batch) if callable(chooser) else batch[0] if isinstance(batch, tuple | list) else batch

"""One call of Lightning's `fit` into a run folder: the trainer, its callbacks and where their results go."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch

from gradlab.distributed import launched_rank
from gradlab.launch.folder_watch import FolderWatch
from gradlab.launch.on_finding import RunCallback
from gradlab.launch.outputs import Outputs, answers_card
from gradlab.launch.prepare import Prepared
from gradlab.launch.progress import PlainProgress
from gradlab.launch.rank_failures import RankFailureWatch
from gradlab.launch.resume.checkpoints import LastCheckpoint
from gradlab.launch.resume.continuation import Continuation
from gradlab.launch.signals import StopAfterStep, StopRequest
from gradlab.launch.summary import Summary, answer_text, final_metrics
from gradlab.lightning.callback import GradlabCallback
from gradlab.lightning.module import GradlabModule
from gradlab.nonfinite.guard import NonFinite
from gradlab.runs.folder import RunFolder
from gradlab.sinks import Sink
from gradlab.sinks.scalars import present_numbers
from gradlab.summary.layer_table import layer_table

_MIXED = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
"""In which the matrices are multiplied, where Lightning's `precision` makes that coarser than the parameters."""
_DEFAULTS = {"enable_model_summary": False, "log_every_n_steps": 10}
"""Where gradlab's defaults differ from Lightning's: its table of layers comes at the end, and small data are logged."""


@dataclass(kw_only=True)
class Session:
    """What one attempt of a run is made of."""

    prepared: Prepared
    folder: RunFolder
    trainer: pl.Trainer
    gradlab: GradlabCallback
    sinks: tuple[Sink, ...]
    started: float
    began: float
    """The same by the clock on the wall."""

    def fit(self) -> None:
        """Train, from the last checkpoint where there is one.

        Leaves by one of `signals.STOPS` where the run was asked to stop, else by whatever failed.
        """
        last = self.folder.last_checkpoint
        checkpoint = str(last) if last.is_file() else None
        self.trainer.fit(self.prepared.model, datamodule=self.prepared.data, ckpt_path=checkpoint, weights_only=False)

    def processes(self) -> Sequence[Any]:
        """Those of ranks 1, 2, ..., as far as this process has started them."""
        return tuple(getattr(self.trainer.strategy.launcher, "procs", ()))

    def watching_ranks(self) -> AbstractContextManager[object]:
        """On rank zero of several: what writes down that another rank has failed while this one may wait for it."""
        if launched_rank() or self.trainer.world_size == 1:
            return nullcontext()
        return RankFailureWatch(self.folder, self.processes, since=self.began)

    def summarize(self) -> Summary:
        """What there is to say now; also shows the model's answers in TensorBoard."""
        model, monitor = self.prepared.model, self.gradlab.monitor
        answers = model.answers() if isinstance(model, GradlabModule) else {}
        texts = {name: answer_text(value) for name, value in answers.items()}
        if texts:
            self._show("run/answers", answers_card(texts))
        values = present_numbers(monitor.latest()) if monitor is not None else {}
        findings = tuple(self.gradlab.findings)
        return Summary(
            name=self.folder.name,
            run=self.folder.id,
            folder=str(self.folder.path),
            seconds=time.monotonic() - self.started,
            epochs=self.trainer.current_epoch,
            steps=self.trainer.global_step,
            metrics=final_metrics(self.trainer.callback_metrics),
            findings=findings,
            answers=texts,
            layers=tuple(layer_table(model, values, findings, precision=_MIXED.get(str(self.trainer.precision)))),
            abstained=monitor.abstained if monitor is not None else {},
        )

    def _show(self, tag: str, markdown: str) -> None:
        for sink in self.sinks:
            sink.text(tag, markdown, self.trainer.global_step, time.time())


def open_session(
    prepared: Prepared,
    folder: RunFolder,
    results: Outputs,
    *,
    request: StopRequest,
    progress: Callable[[str], None] | None,
    watch: FolderWatch | None = None,
) -> Session:
    """The trainer of a run and what belongs to it.

    Args:
        prepared: the experiment.
        folder: where checkpoints and profiles go.
        results: where all else goes.
        request: how a stop is asked for.
        progress: takes the lines of plain progress; None shows Lightning's bar instead.
        watch: what looks after the folder, in the process that writes into it.
    """
    experiment = prepared.loaded.experiment
    gradlab = RunCallback(
        request,
        taps=prepared.taps,
        jacobians=(*experiment.jacobians, *experiment.depth_growth, *experiment.sharpness),
        profile=experiment.profile,
        nonfinite=_guard(experiment.diagnose.nonfinite, folder),
        diagnose=experiment.diagnose.options(),
        sinks=results.sinks,
        profile_dir=folder.events,
    )
    options = _trainer_options(prepared, folder, bar=progress is None)
    callbacks = [gradlab, *_run_callbacks(folder, request, progress, options, watch)]
    trainer = pl.Trainer(**options, logger=results.logger or False, callbacks=callbacks)
    return Session(
        prepared=prepared,
        folder=folder,
        trainer=trainer,
        gradlab=gradlab,
        sinks=results.sinks,
        started=time.monotonic(),
        began=time.time(),
    )


def _guard(action: str, folder: RunFolder) -> NonFinite | None:
    """What `diagnose.nonfinite` asks for."""
    if action == "report":
        return None
    return NonFinite(skip=True, save=folder.path) if action == "skip" else NonFinite()


def _trainer_options(prepared: Prepared, folder: RunFolder, *, bar: bool) -> dict[str, Any]:
    """The arguments of Lightning's Trainer, but for logger and callbacks."""
    return {
        **_DEFAULTS,
        "enable_progress_bar": bar,
        **prepared.loaded.experiment.trainer,
        **prepared.device_options,
        "default_root_dir": folder.path,
    }


def _run_callbacks(
    folder: RunFolder,
    request: StopRequest,
    progress: Callable[[str], None] | None,
    options: Mapping[str, Any],
    watch: FolderWatch | None,
) -> list[pl.Callback]:
    """What makes a training a run: it can be stopped, goes on where it was, and says how far it is."""
    callbacks: list[pl.Callback] = [Continuation(request), StopAfterStep(request)]
    callbacks += [watch] if watch is not None else []
    if options.get("enable_checkpointing", True) is not False:
        callbacks.append(LastCheckpoint(folder.last_checkpoint, watch))
    if progress is not None:
        callbacks.append(PlainProgress(progress))
    return callbacks

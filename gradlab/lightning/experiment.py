"""`self.logger.experiment`: everything that a SummaryWriter can do, into the event file that gradlab writes.

Countless scripts call `self.logger.experiment.add_scalar(...)`. The protobufs are made by torch.utils.tensorboard
itself, which is imported when the first `add_...` is called, so TensorBoard reads what it would have read from there.
Belongs here: where such an event goes. Does not: the file (`gradlab.events`) and what Lightning logs (logger.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, wraps
from typing import Any

from gradlab.errors import EventError, did_you_mean
from gradlab.events import EventWriter
from gradlab.events.hparams import flatten
from gradlab.events.markdown import cell, code_cell
from gradlab.tags import HPARAMS_SESSION_TAG


class Experiment:
    """The event file of a run with the methods of `EventWriter` and those of torch's `SummaryWriter`.

        self.logger.experiment.add_image("samples", grid, self.global_step)

    As with a SummaryWriter, steps may come in any order, and `global_step` and `walltime` may be left out. Three
    things differ, because there is one file: `add_scalars` writes the tags `main_tag/tag` instead of a run for each;
    `add_hparams` writes into the run itself, as text where it has settings already; `close` only flushes, since the
    file is that of the run. A file that can no longer be written switches this off with one warning.
    """

    def __init__(self, writer: EventWriter, on_failure: Callable[[EventError], None]) -> None:
        self._writer = writer
        self._on_failure = on_failure

    def __getattr__(self, name: str) -> Any:
        """A method of the file, or one of the SummaryWriter."""
        if name.startswith("_"):
            raise AttributeError(name)
        if hasattr(EventWriter, name):
            return getattr(self._writer, name)
        if name.startswith("add_") or name in ("get_logdir", "log_dir", "default_bins"):
            found = getattr(self._summaries, name, None)
            if callable(found):
                return _says_what_is_missing(name, found)
            if found is not None:
                return found
        known = [one for one in dir(type(self._summaries)) if one.startswith("add_")]
        known += [one for one in dir(EventWriter) if not one.startswith("_")]
        raise AttributeError(f"the experiment of a GradlabLogger has no {name!r}.{did_you_mean(name, known)}")

    def __enter__(self) -> Experiment:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.flush()

    def flush(self) -> None:
        """Make what was written readable by others."""
        if not self._writer.closed:
            self._try(self._writer.flush)

    def close(self) -> None:
        """Flush: the file is that of the run, which is not over."""
        self.flush()

    @cached_property
    def _summaries(self) -> Any:
        return _summary_writer(self)

    def _write(self, payload: bytes, tags: Sequence[str]) -> None:
        self._try(lambda: self._writer.event(payload, tags))

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except EventError as error:
            self._on_failure(error)


def _summary_writer(experiment: Experiment) -> Any:
    """A SummaryWriter whose events go to `experiment`. Cost: the import of tensorboard, half a second, once."""
    from torch.utils.tensorboard import SummaryWriter, summary
    from torch.utils.tensorboard.writer import FileWriter

    class File(FileWriter):
        """Takes the place of the file that a SummaryWriter opens."""

        def __init__(self) -> None:
            """Open nothing."""

        def flush(self) -> None:
            experiment.flush()

        close = flush

        def get_logdir(self) -> str:
            return str(experiment._writer.path.parent)

        def add_event(self, event: Any, step: Any = None, walltime: float | None = None) -> None:
            event.wall_time = time.time() if walltime is None else walltime
            if step is not None:
                event.step = int(step)
            tags = (
                [HPARAMS_SESSION_TAG] if any(value.tag == HPARAMS_SESSION_TAG for value in event.summary.value) else []
            )
            experiment._write(event.SerializeToString(), tags)

    class Summaries(SummaryWriter):
        """Writes into the one file."""

        def _get_file_writer(self) -> File:
            self.file_writer: Any = file
            self.all_writers: Any = {file.get_logdir(): file}
            return file

        def add_scalars(
            self, main_tag: str, tag_scalar_dict: Mapping[str, Any], global_step: Any = None, walltime: Any = None
        ) -> None:
            walltime = time.time() if walltime is None else walltime
            for tag, value in tag_scalar_dict.items():
                self.add_scalar(f"{main_tag}/{tag}", value, global_step, walltime)

        def add_hparams(
            self,
            hparam_dict: dict[str, Any],
            metric_dict: dict[str, Any],
            hparam_domain_discrete: dict[str, list[Any]] | None = None,
            run_name: str | None = None,
            global_step: Any = None,
        ) -> None:
            found = summary.hparams(hparam_dict, metric_dict, hparam_domain_discrete)
            if experiment._writer.last_step(HPARAMS_SESSION_TAG) is None:
                for one in found:
                    file.add_summary(one, global_step)
            else:
                self.add_text(run_name or "hyperparameters", table(hparam_dict), global_step)
            for name, value in metric_dict.items():
                self.add_scalar(name, value, global_step)

    file = File()
    return Summaries(log_dir=file.get_logdir())


def _says_what_is_missing(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def called(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except ModuleNotFoundError as error:
            package = {"PIL": "pillow", "moviepy.editor": "moviepy"}.get(str(error.name), error.name)
            raise EventError(f"{name} needs {error.name}, which is not installed: pip install {package}.") from error

    return called


def table(config: Mapping[str, Any]) -> str:
    """A Markdown table of dotted names and values."""
    rows = (f"| {cell(name)} | {code_cell(value)} |" for name, value in flatten(config).items())
    return "\n".join(["| setting | value |", "|---|---|", *rows])

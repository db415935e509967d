"""Carry out one experiment in this process, from the file to `exit.json`, and say by a code how it ended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from gradlab.distributed import launched_rank
from gradlab.errors import RunError, UsageError
from gradlab.launch.folder_watch import FolderWatch
from gradlab.launch.machine import machine_fault
from gradlab.launch.messages import messages_to
from gradlab.launch.outcome import (
    DONE,
    FAILED,
    INTERRUPTED,
    Outcome,
    failed_outcome,
    stopped_outcome,
    with_folder_problem,
    write_exit,
)
from gradlab.launch.outputs import Outputs, hyperparameters, outputs
from gradlab.launch.prepare import Prepared, prepare
from gradlab.launch.processes import announced, announced_folder, followed, refuse_lonely_node
from gradlab.launch.rank_failures import failure_sentence, first_failure, note_failure
from gradlab.launch.resume.checkpoints import saved_step
from gradlab.launch.resume.origin import Origin
from gradlab.launch.session import Session, open_session
from gradlab.launch.signals import STOPS, StopRequest
from gradlab.runs.folder import RunFolder, read_json
from gradlab.runs.lock import locked
from gradlab.runs.record import append_attempt, describe, write_record

_CLASSES = ("model", "data", "optimizer")


@dataclass(frozen=True, kw_only=True)
class Display:
    """How a run is shown while it goes on."""

    say: Callable[[str], None]
    """Takes a line for people."""
    bar: bool
    """Whether the terminal can show Lightning's progress bar in place of lines."""


def start(path: Path, overrides: Sequence[str], *, root: Path, argv: Sequence[str], display: Display) -> Outcome:
    """Check and build the experiment of a file, make a run folder below `root`, and train."""
    origin = Origin.here(path)
    with origin.importing():
        prepared = prepare(path, overrides)
        refuse_lonely_node(prepared.device_options)
        if launched_rank():
            return _follow(prepared, display)
        return _begin(prepared, origin, root=root, argv=argv, display=display)


def _begin(prepared: Prepared, origin: Origin, *, root: Path, argv: Sequence[str], display: Display) -> Outcome:
    """Make a run folder below `root` and train in it."""
    experiment = prepared.loaded.experiment
    folder = RunFolder.create(root, experiment.name)
    record = {**describe(argv, seed=experiment.seed), **origin.record()}
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder.lock, _warning(display)))
            folder.experiment.write_bytes(prepared.loaded.source)
            folder.resolved.write_text(prepared.loaded.resolved(), encoding="utf-8")
            write_record(folder, record)
        except BaseException as error:
            folder.remove()
            raise machine_fault(error) or error from error
        display.say(f"run {folder.path}")
        return _attempt(prepared, folder, record, display=display, resumed_step=None)


def resume(folder: RunFolder, *, argv: Sequence[str], display: Display) -> Outcome:
    """Go on with a run in its own folder, from its last checkpoint, with the settings that it had.

    Raises:
        UsageError: where it has finished, or its checkpoint cannot be read; the folder is left as it was.
        RunError: where another process runs it.
    """
    origin = Origin.of(folder)
    with origin.importing(), origin.naming_folder():
        if launched_rank():
            return _follow(prepare(folder.resolved, beside=origin.home), display)
        return _go_on(folder, origin, argv=argv, display=display)


def _go_on(folder: RunFolder, origin: Origin, *, argv: Sequence[str], display: Display) -> Outcome:
    """Train in a run folder that is there, from its last checkpoint."""
    step = _step_to_resume(folder)
    prepared = prepare(folder.resolved, beside=origin.home)
    experiment = prepared.loaded.experiment
    code = origin.folder if origin.folder.is_dir() else Path.cwd()
    record = {**describe(argv, seed=experiment.seed, folder=code), "folder": str(Path.cwd())}
    with locked(folder.lock, _warning(display)) as attempt:
        folder.set_aside_exit()
        _say_what_changed(folder, record, display)
        classes = {key: value for key, value in hyperparameters(experiment).items() if key in _CLASSES}
        for sentence in origin.moved_paths(classes):
            display.say(f"warning: {sentence}")
        append_attempt(folder, record)
        begins = f"from step {step}" if step else "from the start: it has no checkpoint"
        display.say(f"run {folder.path}, attempt {attempt}, {begins}")
        return _attempt(prepared, folder, record, display=display, resumed_step=step, origin=origin)


def _warning(display: Display) -> Callable[[str], None]:
    return lambda line: display.say(f"warning: {line}")


def _attempt(
    prepared: Prepared,
    folder: RunFolder,
    record: Mapping[str, Any],
    *,
    display: Display,
    resumed_step: int | None,
    origin: Origin | None = None,
) -> Outcome:
    """Train once in a folder whose lock is held, and write how it ended."""
    progress = None if display.bar else display.say
    watch = FolderWatch(folder, display.say)
    with messages_to(folder.log) as log, StopRequest() as request, announced(folder):
        try:
            with outputs(prepared, folder, record, resumed_step=resumed_step, watch=watch) as results:
                opened = open_session(prepared, folder, results, request=request, progress=progress, watch=watch)
                outcome = _summarized(opened, _fit(opened, request), watch)
        except KeyboardInterrupt:
            outcome = Outcome(code=INTERRUPTED, reason="interrupted at once", folder=folder)
        except STOPS:
            outcome = stopped_outcome(folder, request, "outside training")
        except Exception as error:
            outcome = failed_outcome(error, folder)
        outcome = with_folder_problem(outcome, watch)
        if origin is not None and outcome.error is not None:
            origin.explain(outcome.error)
        log.info("%s (exit code %d)", outcome.reason, outcome.code, exc_info=outcome.error)
    return _ended(outcome, request, watch)


def _ended(outcome: Outcome, request: StopRequest, watch: FolderWatch) -> Outcome:
    """Write `exit.json`, but into no folder that was deleted; the outcome says where that could not be done."""
    if watch.is_gone:
        return outcome
    with watch.tolerating(str(outcome.folder.exit)):
        write_exit(outcome, request)
    return with_folder_problem(outcome, watch)


def _follow(prepared: Prepared, display: Display) -> Outcome:
    """Take part in a run as one of its further ranks: train, and write nothing but a log of this rank's own."""
    with followed(announced_folder(), display.say) as folder:
        return _train_along(prepared, folder)


def _train_along(prepared: Prepared, folder: RunFolder) -> Outcome:
    with messages_to(folder.path / f"log-rank{launched_rank()}.txt") as log, StopRequest() as request:
        opened = open_session(prepared, folder, Outputs(), request=request, progress=_nothing)
        outcome = replace(_fit(opened, request), follows=True)
        if outcome.error is not None:
            note_failure(folder, code=outcome.code, reason=outcome.reason)
        log.info("%s (exit code %d)", outcome.reason, outcome.code, exc_info=outcome.error)
    return outcome


def _nothing(line: str) -> None:
    """Show no progress: rank zero does."""


def _step_to_resume(folder: RunFolder) -> int:
    """The step of the last checkpoint, 0 where there is none; refuses what cannot be resumed."""
    status = folder.status()
    if status == "done":
        raise UsageError(f"{folder.name} ({folder.id}) has finished; there is nothing to resume.")
    if status == "running":
        raise RunError(f"{folder.name} ({folder.id}) is running; there is nothing to resume.")
    return saved_step(folder.last_checkpoint) if folder.last_checkpoint.exists() else 0


def _fit(opened: Session, request: StopRequest) -> Outcome:
    """Train, and say how that ended."""
    folder = opened.folder
    try:
        with opened.watching_ranks():
            opened.fit()
    except STOPS as error:
        return _failed_rank(opened, error) or stopped_outcome(
            folder, request, f"after step {opened.trainer.global_step}"
        )
    except (Exception, SystemExit) as error:
        if request.at_once:  # Lightning makes a SystemExit of the second SIGINT
            raise KeyboardInterrupt from error
        if (failed := _failed_rank(opened, error)) is not None:
            return failed
        full = opened.gradlab.out_of_memory
        if full is not None and isinstance(error, torch.OutOfMemoryError):
            return Outcome(code=FAILED, reason=full.sentence, folder=folder, error=error, explained=True)
        return failed_outcome(error, folder)
    return Outcome(code=DONE, reason="done", folder=folder)


def _failed_rank(opened: Session, error: BaseException) -> Outcome | None:
    """On rank zero of several: the outcome of the rank that failed first, where that is another one."""
    if launched_rank() or opened.trainer.world_size == 1:
        return None
    is_lost = isinstance(error, RuntimeError) and any(word in str(error) for word in ("Connection", "NCCL", "gloo"))
    failure = first_failure(opened.folder, opened.processes(), since=opened.began, patience=is_lost)
    if failure is None:
        return None
    return Outcome(code=failure.code, reason=failure_sentence(failure, opened.folder), folder=opened.folder)


def _summarized(opened: Session, outcome: Outcome, watch: FolderWatch) -> Outcome:
    """The outcome with what the run has to say, which may be nothing where it failed."""
    try:
        summary = opened.summarize()
        if not watch.is_gone:
            with watch.tolerating(str(opened.folder.summary)):
                summary.save(opened.folder)
    except Exception:
        if outcome.code == FAILED:
            return outcome
        raise
    return replace(outcome, summary=summary)


def _say_what_changed(folder: RunFolder, record: Mapping[str, Any], display: Display) -> None:
    """Warn where the code is not that of the first attempt."""
    before, now = (read_json(folder.record) or {}).get("git"), record["git"]
    if _commit(before) != _commit(now):
        display.say(f"warning: the run began with commit {_commit(before)}, the code here is at {_commit(now)}.")


def _commit(git: Mapping[str, Any] | None) -> str:
    return str(git["sha"])[:10] if git else "unknown"

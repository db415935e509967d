"""The file of `gradlab attach --config`: a few of an experiment's settings, checked by the same rules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from gradlab.config.problems import Position, Problem, refusal
from gradlab.config.rule_names import NotOffered
from gradlab.config.schema import AskedRules, LoggedSlice, WatchRule, Windows
from gradlab.config.validation.annotations import keys_of
from gradlab.config.validation.keys import Keys
from gradlab.config.yaml.nodes import Mapping, Setting
from gradlab.config.yaml.reader import read_document
from gradlab.diagnose.options import Reaction

NOT_ATTACHED = (
    ("stop", "an attached script is never stopped; `gradlab run` and gradlab.watch offer that."),
    ("checkpoint", "an attached script saves its own; `gradlab run` and the callbacks of Trainers offer that."),
)
"""Reactions that `gradlab attach` does not offer: it raises nothing into a script, and writes nothing of it."""


@dataclass(frozen=True, kw_only=True)
class AttachedDiagnose(AskedRules):
    """What is looked for, and what is done about findings."""

    on_finding: Annotated[Reaction, NotOffered(NOT_ATTACHED)] = "log"
    """At a finding above `info` that no other explains, once a code and at most three times a run: only `log` it,
    record three steps (`profile`), or measure what helps to judge it (`jacobian`)."""


@dataclass(frozen=True, kw_only=True)
class AttachFile:
    """All settings of the file; every one may be left out."""

    taps: tuple[WatchRule, ...] | None = None
    """What is watched; null or left out: the gradient norm of every parameter."""
    jacobians: tuple[LoggedSlice, ...] = ()
    """Jacobian slices to log, on the first samples that the model is called with."""
    profile: Windows | None = None
    """Steps to profile; null or left out: none."""
    diagnose: AttachedDiagnose = AttachedDiagnose()
    """What is looked for, and what is done about findings."""
    logdir: str | None = None
    """Where event files go; null or left out: into a run folder."""


def load_attach(path: Path) -> dict[str, Any]:
    """The settings that the file gives, by name; those that are null are left out.

    Raises:
        ConfigError: with every problem, each at its line and column.
    """
    document = read_document(path)
    root, problems = document.root, document.problems
    keys = Keys(keys_of(AttachFile), "the file has no setting", "the file needs")
    if isinstance(root, Mapping):
        values = keys.check(Setting(root), problems)
    elif not problems:
        problems = [Problem(Position(document.source), "this file is a mapping of settings, such as `taps: [...]`.")]
    if problems:
        raise refusal(problems)
    given = {entry.key.text for entry in root.entries} if isinstance(root, Mapping) else set()
    return {name: value for name, value in values.items() if name in given and value is not None}

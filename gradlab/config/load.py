"""Load an experiment: read the file, set the overrides, check every setting, and then build what it names.

`read_draft` gives what was read with all that is wrong with it, for a caller that can find more problems (patterns
against the built model); `load` gives the experiment or raises. The checks themselves are in `check`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.config.check import Check, is_off
from gradlab.config.overrides import apply
from gradlab.config.patterns import pattern_problems
from gradlab.config.problems import Position, Problem, refusal
from gradlab.config.schema import Experiment
from gradlab.config.sections import CheckedClass
from gradlab.config.validation.rules import seen
from gradlab.config.write import to_yaml
from gradlab.config.yaml import nodes
from gradlab.config.yaml.reader import Document, read_document

if TYPE_CHECKING:
    import pytorch_lightning as pl
    from torch.optim import Optimizer


@dataclass(frozen=True)
class Built:
    """The objects of an experiment."""

    model: pl.LightningModule
    data: pl.LightningDataModule | None
    """None where the model brings its own."""
    make_optimizer: Callable[[Iterable[Any]], Optimizer] | None
    """From parameters to the optimizer; None where the model configures its own."""


@dataclass(frozen=True, kw_only=True)
class Draft:
    """An experiment file that was read and checked, whether it is right or wrong."""

    path: Path
    """The file, as it was given."""
    source: bytes
    """The file's content, as it was read."""
    folder: Path
    """From which the experiment's modules are imported."""
    root: nodes.Mapping = field(repr=False)
    """The settings with their places, overrides included."""
    problems: tuple[Problem, ...]
    """All that is wrong."""
    values: Mapping[str, Any]
    """The values of those settings that are right, by name."""
    classes: Mapping[str, CheckedClass]
    """The classes of model, data and optimizer with their arguments; empty where they were not looked at."""

    def accepted(self) -> Loaded:
        """The experiment.

        Raises:
            ConfigError: with every problem, if there is one.
        """
        if self.problems:
            raise refusal(self.problems)
        return Loaded(Experiment(**self.values), self)

    @property
    def can_build(self) -> bool:
        """Whether model and data are right, whatever else is wrong."""
        return "model" in self.classes and ("data" in self.classes or is_off(self.root.entry("data")))

    def build(self) -> Built:
        """Make the model, the data and what makes the optimizer, where that is right.

        Raises:
            ConfigError: if a constructor raises, at the place of the class path.
        """
        data, optimizer = self.classes.get("data"), self.classes.get("optimizer")
        model = self.classes["model"].make()
        return Built(model, data.make() if data else None, optimizer.make if optimizer else None)

    def wrong_patterns(self, sites: Iterable[str], parameters: Iterable[str]) -> list[Problem]:
        """Every pattern that matches none of the model's names, and every Jacobian's site that does not exist."""
        return pattern_problems(self.values, list(sites), list(parameters), self.setting)

    def setting(self, keys: Sequence[str | int]) -> nodes.Setting:
        """The setting of a path of keys; the nearest one above it that was written."""
        return nodes.nearest(self.root, tuple(map(str, keys)))

    def checked(self, *, deep: bool) -> Draft:
        """This draft after the checks of its settings; what they find is added to its problems."""
        check, problems = Check(self.folder, deep=deep), list(self.problems)
        values = check.root(self.root, problems)
        return replace(self, problems=tuple(problems), values=values, classes=check.classes)


@dataclass(frozen=True)
class Loaded:
    """An experiment that passed its checks."""

    experiment: Experiment
    """All settings, overrides and defaults included."""
    _draft: Draft = field(repr=False)

    @property
    def path(self) -> Path:
        """The file, as it was given."""
        return self._draft.path

    @property
    def source(self) -> bytes:
        """The file's content, as it was read."""
        return self._draft.source

    def resolved(self) -> str:
        """The experiment as YAML with every value written out; it loads back equal, without overrides."""
        return to_yaml(self.experiment)

    def build(self) -> Built:
        """Make the model, the data and what makes the optimizer.

        Raises:
            ConfigError: if a constructor raises, at the place of the class path; and, after `deep=False`, whatever
                the deep checks find.
        """
        draft = self._draft
        return (draft if draft.classes else draft.checked(deep=True).accepted()._draft).build()

    def problem(self, key_path: str | Sequence[str | int], message: str) -> Problem:
        """A problem at a setting, `taps.0.at` or `("taps", 0, "at")`; at the nearest one above it that was written."""
        keys = key_path.split(".") if isinstance(key_path, str) else key_path
        return Problem(self._draft.setting(keys).position, message)

    def check_patterns(self, sites: Iterable[str], parameters: Iterable[str] = ()) -> None:
        """Hold every tap's patterns and every Jacobian's sites against the real names.

        Args:
            sites: the names of the model's tensors; of its parameters too, where `parameters` is not given.
            parameters: the names of its parameters. With them, a tap on `weight_grad` must choose a parameter, and a
                tap on `output` a tensor that is none.
        Raises:
            ConfigError: with every pattern that matches nothing and every site that does not exist.
        """
        if found := self._draft.wrong_patterns(sites, parameters):
            raise refusal(found)


def load(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, deep: bool = True, beside: Path | None = None
) -> Loaded:
    """Load an experiment file and check everything that can be known before anything runs.

    Args:
        path: the file.
        overrides: `key=value` arguments, set in order; no key twice.
        deep: also import the classes and hold their arguments against their signatures, and the Trainer's against its
            own. Without it only the shape is checked, and neither torch nor Lightning is imported.
        beside: the folder of the experiment's modules, where the file is a copy that lies elsewhere.
    Raises:
        ConfigError: with every problem, each at its line and column.
    """
    return read_draft(path, overrides, deep=deep, beside=beside).accepted()


def read_draft(
    path: str | os.PathLike[str], overrides: Sequence[str] = (), *, deep: bool = True, beside: Path | None = None
) -> Draft:
    """Read an experiment file and check it, as `load` does; what is wrong with its settings is in the draft.

    Raises:
        ConfigError: where there are no settings: it is no file, no text, no YAML or no mapping.
    """
    path = Path(path)
    document = read_document(path)
    root, problems = apply(_settings_in(document), overrides)
    draft = Draft(
        path=path,
        source=document.content,
        folder=beside or path.absolute().parent,
        root=root,
        problems=(*document.problems, *problems),
        values={},
        classes={},
    )
    return draft.checked(deep=deep)


def _settings_in(document: Document) -> nodes.Mapping:
    """The mapping that an experiment file is."""
    root = document.root
    if isinstance(root, nodes.Mapping):
        return root
    if document.problems:
        raise refusal(document.problems)
    if root is None:
        message = "holds no settings, only comments. An experiment needs at least `name:` and `model:`."
        raise refusal([Problem(Position(document.source), message)])
    message = f"an experiment is a mapping of settings, `name: ...`, not {seen(root)}."
    raise refusal([Problem(root.position, message)])

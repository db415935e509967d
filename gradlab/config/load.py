"""Load an experiment: the file, the overrides, every check, and then what can be done with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradlab.config.check import Check, is_off
from gradlab.config.overrides import apply
from gradlab.config.patterns import pattern_problems
from gradlab.config.problems import Position, Problem, refusal
from gradlab.config.schema import Experiment
from gradlab.config.sections import Bound
from gradlab.config.validation.types import seen
from gradlab.config.write import to_yaml
from gradlab.config.yaml.nodes import Mapping, Node, Setting, nearest
from gradlab.config.yaml.reader import compose
from gradlab.config.yaml.text import decode, read, source_of
from gradlab.errors import ConfigError

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


@dataclass(frozen=True)
class Loaded:
    """An experiment that passed its checks."""

    experiment: Experiment
    """All settings, overrides and defaults included."""
    path: Path
    """The file, as it was given."""
    source: bytes
    """The file's content, as it was read."""
    _root: Mapping = field(repr=False)
    _bound: dict[str, Bound] | None = field(repr=False)
    _folder: Path = field(repr=False)

    def resolved(self) -> str:
        """The experiment as YAML with every value written out; it loads back equal, without overrides."""
        return to_yaml(self.experiment)

    def build(self) -> Built:
        """Make the model, the data and what makes the optimizer.

        Raises:
            ConfigError: if a constructor raises, at the place of the class path; and, after `deep=False`, whatever
                the deep checks find.
        """
        bound = _checked(self._folder, self._root, [], deep=True)[1] if self._bound is None else self._bound
        data, optimizer = bound.get("data"), bound.get("optimizer")
        return Built(bound["model"].make(), data.make() if data else None, optimizer.make if optimizer else None)

    def problem(self, key_path: str | Sequence[str | int], message: str) -> Problem:
        """A problem at a setting, `taps.0.at` or `("taps", 0, "at")`; at the nearest one above it that was written."""
        return Problem(self._setting(key_path).position, message)

    def check_patterns(self, sites: Iterable[str], parameters: Iterable[str] = ()) -> None:
        """Hold every tap's patterns and every Jacobian's sites against the real names.

        Args:
            sites: the names of the model's tensors; of its parameters too, where `parameters` is not given.
            parameters: the names of its parameters. With them, a tap on `weight_grad` must choose a parameter, and a
                tap on `output` a tensor that is none.
        Raises:
            ConfigError: with every pattern that matches nothing and every site that does not exist.
        """
        if found := pattern_problems(vars(self.experiment), list(sites), list(parameters), self._setting):
            raise refusal(found)

    def _setting(self, key_path: str | Sequence[str | int]) -> Setting:
        parts = key_path.split(".") if isinstance(key_path, str) else key_path
        return nearest(self._root, _texts(parts))


NamesOf = Callable[[Built], tuple[Sequence[str], Sequence[str]]]
"""From built objects to the names of the model's tensors and of its parameters."""


def load(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    *,
    deep: bool = True,
    names_of: NamesOf | None = None,
    beside: Path | None = None,
) -> Loaded:
    """Load an experiment file and check everything that can be known before anything runs.

    Args:
        path: the file.
        overrides: `key=value` arguments, set in order; no key twice.
        deep: also import the classes and hold their arguments against their signatures, and the Trainer's against its
            own. Without it only the shape is checked, and neither torch nor Lightning is imported.
        names_of: tells a model's names, so that wrong patterns are among the problems of a file that has others too.
            A file without other problems is held against its model by `check_patterns`, once that is built.
        beside: the folder of the experiment's modules, where the file is a copy that lies elsewhere.
    Raises:
        ConfigError: with every problem, each at its line and column.
    """
    path = Path(path)
    content = read(path)
    root, problems = _root_of(path, decode(path, content))
    root, found = apply(root, overrides)
    folder = beside or path.absolute().parent
    experiment, bound = _checked(folder, root, [*problems, *found], deep=deep, names_of=names_of)
    return Loaded(experiment, path, content, root, bound if deep else None, folder)


def _root_of(path: Path, text: str) -> tuple[Mapping, list[Problem]]:
    source = source_of(str(path), text)
    root, problems = compose(source, text)
    if isinstance(root, Mapping):
        return root, problems
    raise refusal(problems or [_not_settings(root, Position(source))])


def _not_settings(root: Node | None, whole: Position) -> Problem:
    if root is None:
        return Problem(whole, "holds no settings, only comments. An experiment needs at least `name:` and `model:`.")
    return Problem(root.position, f"an experiment is a mapping of settings, `name: ...`, not {seen(root)}.")


def _checked(
    folder: Path, root: Mapping, found: list[Problem], *, deep: bool, names_of: NamesOf | None = None
) -> tuple[Experiment, dict[str, Bound]]:
    """The experiment and its classes, if nothing is wrong."""
    check, problems = Check(folder, deep=deep), list(found)
    values = check.root(root, problems)
    if problems:
        if names_of is not None:
            problems += _patterns_beside(values, check.bound, root, names_of)
        raise refusal(problems)
    return Experiment(**values), check.bound


def _patterns_beside(
    values: dict[str, Any], bound: dict[str, Bound], root: Mapping, names_of: NamesOf
) -> list[Problem]:
    """The wrong patterns of an experiment that is wrong elsewhere, where model and data can be built all the same."""
    if "model" not in bound or ("data" not in bound and not is_off(root.entry("data"))):
        return []
    try:
        data = bound.get("data")
        sites, parameters = names_of(Built(bound["model"].make(), data.make() if data else None, None))
    except ConfigError as error:
        return list(error.problems)
    except Exception:
        return []  # what keeps the model from running on this data is for the run to say, once the file is right
    return pattern_problems(values, list(sites), list(parameters), lambda keys: nearest(root, _texts(keys)))


def _texts(keys: Sequence[Any]) -> tuple[str, ...]:
    return tuple(map(str, keys))

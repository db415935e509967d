"""The parts of an experiment that must be imported to be checked: model, data, optimizer and trainer.

Each `check_*` takes the setting of its section, adds what is wrong to `problems` and returns the class with its checked
arguments, ready to be called.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradlab.config.class_paths import find_class, importable, reason_clause, where_found
from gradlab.config.problems import Problem, refusal
from gradlab.config.schema import ClassSpec, DataSpec, ModelSpec, OptimizerSpec
from gradlab.config.trainer import contradictions, trainer_keys
from gradlab.config.validation.keys import Keys
from gradlab.config.validation.records import expanded
from gradlab.config.validation.refused_argument import mentioned_argument, refused_argument
from gradlab.config.validation.signatures import arguments_of
from gradlab.config.yaml.nodes import Mapping as MappingNode
from gradlab.config.yaml.nodes import Setting
from gradlab.errors import ConfigError


@dataclass(frozen=True)
class CheckedClass:
    """A class with checked arguments, ready to be called."""

    cls: type
    name: str
    """Its class path, as messages speak of it."""
    arguments: Mapping[str, Any]
    setting: Setting = field(repr=False)
    """Where it is written in the experiment."""
    folder: Path
    """The experiment's folder, from which its modules are imported."""

    @property
    def class_path(self) -> Setting:
        """The setting that names the class."""
        return _class_path(self.setting)

    def make(self, *first: Any) -> Any:
        """An instance; `first` are the arguments that gradlab fills in.

        Raises:
            ConfigError: if the constructor raises, at the only argument that its message names or at the class path.
        """
        with importable(self.folder):
            try:
                return self.cls(*first, **copy.deepcopy(dict(self.arguments)))
            except Exception as error:
                place = _argument(self.setting, mentioned_argument(error, self.arguments))
                raise refusal(
                    [Problem(place.position, f"{self.name} refused{reason_clause(error, self.folder)}")]
                ) from error


def check_model(setting: Setting, folder: Path, problems: list[Problem]) -> CheckedClass | None:
    """The model's class and arguments."""
    from pytorch_lightning import LightningModule

    fix = "Derive it from pytorch_lightning.LightningModule and give it a training_step."
    return _check_class(setting, ModelSpec, folder, problems, _Kind(LightningModule, fix))


def check_data(setting: Setting, folder: Path, problems: list[Problem]) -> CheckedClass | None:
    """The data's class and arguments."""
    from pytorch_lightning import LightningDataModule

    fix = "Derive it from pytorch_lightning.LightningDataModule and give it a train_dataloader."
    return _check_class(setting, DataSpec, folder, problems, _Kind(LightningDataModule, fix))


def check_optimizer(setting: Setting, folder: Path, problems: list[Problem]) -> CheckedClass | None:
    """The optimizer's class and arguments, tried on one small parameter so that a bad value shows before training."""
    from torch.optim import Optimizer

    params = "params is gradlab's: the optimizer is given all parameters of the model."
    kind = _Kind(Optimizer, "One is torch.optim.AdamW.", skip=1, refused={"params": params})
    found: list[Problem] = []
    optimizer = _check_class(setting, OptimizerSpec, folder, found, kind)
    if optimizer and not found:
        found += _refused_values(optimizer)
    problems += found
    return optimizer


def check_trainer(setting: Setting, problems: list[Problem]) -> None:
    """The arguments of Lightning's Trainer: each by itself, and then together by building one on trial."""
    found: list[Problem] = []
    arguments = trainer_keys().check(setting, found)
    if not found:
        for name, sentence in contradictions(arguments):
            entry = setting.node.entry(name) if name and isinstance(setting.node, MappingNode) else None
            found.append(Problem((setting.under(entry) if entry else setting).position, sentence))
    problems += found


def brings_data(model: CheckedClass) -> bool:
    """Whether a model defines its own training data."""
    import pytorch_lightning as pl

    return model.cls.train_dataloader is not pl.LightningModule.train_dataloader  # type: ignore[attr-defined]


@dataclass(frozen=True)
class _Kind:
    """What a class must be."""

    base: type
    fix: str
    """What to do about a class that does not derive from it."""
    skip: int = 0
    """How many of its first arguments gradlab fills in."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Arguments that are not for an experiment file, with the sentence that says so."""

    def objection(self, cls: type, name: str) -> str:
        """The sentence for a class of another kind; the package `lightning` has classes of the same names."""
        wanted = self.base.__name__
        if issubclass(cls, self.base):
            return ""
        if any(base.__name__ == wanted and base.__module__.startswith("lightning.") for base in cls.__mro__):
            return f"{name} is a {wanted} of the package `lightning`; import it from `pytorch_lightning` instead."
        return f"{name} is no {wanted}. {self.fix}"


def _check_class(
    setting: Setting, spec: type[ClassSpec], folder: Path, problems: list[Problem], kind: _Kind
) -> CheckedClass | None:
    setting = expanded(spec, setting)
    path = _class_path(setting)
    written = getattr(path.node, "value", "")
    name = spec.short_names.get(written, written)
    try:
        with importable(folder):
            cls = find_class(name, folder)
    except ConfigError as error:
        problems.append(Problem(path.position, str(error)))
        return None
    if sentence := kind.objection(cls, name):
        problems.append(Problem(path.position, sentence + where_found(name, folder)))
        return None
    found: list[Problem] = []
    with importable(folder):  # an argument may name a class or a function
        arguments = _arguments(setting, path, arguments_of(cls, name, skip=kind.skip, refused=kind.refused), found)
    problems += found
    return None if found else CheckedClass(cls, name, arguments, setting, folder)


def _arguments(setting: Setting, path: Setting, keys: Keys, problems: list[Problem]) -> dict[str, Any]:
    """The checked `init_args`; where there are none, a missing one is reported at the class path."""
    entry = setting.node.entry("init_args") if isinstance(setting.node, MappingNode) else None
    if entry:
        return keys.check(setting.under(entry), problems)
    return keys.check(Setting(MappingNode(path.position, ()), (*setting.path, "init_args")), problems, at=path)


def _class_path(setting: Setting) -> Setting:
    entry = setting.node.entry("class_path") if isinstance(setting.node, MappingNode) else None
    return setting.under(entry) if entry else setting


def _refused_values(optimizer: CheckedClass) -> list[Problem]:
    """What the optimizer's constructor says about its values, at the refused argument."""
    import torch

    def make(**arguments: Any) -> None:
        optimizer.cls([torch.nn.Parameter(torch.zeros(2, 2))], **copy.deepcopy(arguments))

    with importable(optimizer.folder):
        try:
            make(**optimizer.arguments)
        except Exception as error:
            place = _argument(optimizer.setting, refused_argument(error, make, optimizer.arguments))
            return [Problem(place.position, f"{optimizer.name} refused{reason_clause(error, optimizer.folder)}")]
    return []


def _argument(setting: Setting, name: str | None) -> Setting:
    """The setting of one argument, or of the class path."""
    entry = setting.node.entry("init_args") if isinstance(setting.node, MappingNode) else None
    arguments = setting.under(entry) if entry else None
    if name and arguments and isinstance(arguments.node, MappingNode) and (inner := arguments.node.entry(name)):
        return arguments.under(inner)
    return _class_path(setting)

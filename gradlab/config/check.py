"""Check a whole experiment, part by part; a part is one top-level setting.

A part is checked by its shape first and, where that is right and classes may be imported, by what it names. Parts do
not wait for each other, so that a typo in one does not hide a wrong class in another.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from gradlab.config.problems import Problem
from gradlab.config.schema import Experiment
from gradlab.config.sections import CheckedClass, brings_data, check_data, check_model, check_optimizer, check_trainer
from gradlab.config.sweep import check_axes
from gradlab.config.validation.annotations import keys_of
from gradlab.config.validation.keys import Key, Keys
from gradlab.config.yaml.nodes import Entry, Mapping, Scalar, Setting

_BY_CLASS: dict[str, Callable[[Setting, Path, list[Problem]], CheckedClass | None]] = {
    "model": check_model,
    "data": check_data,
    "optimizer": check_optimizer,
}


class Check:
    """The checks of one experiment; keeps the classes that they find."""

    def __init__(self, folder: Path, *, deep: bool) -> None:
        self.classes: dict[str, CheckedClass] = {}
        """The classes of model, data and optimizer, where `deep`."""
        self._folder = folder
        self._deep = deep

    def root(self, root: Mapping, problems: list[Problem]) -> dict[str, Any]:
        """The values of all parts; what is wrong is added to `problems`."""
        values: dict[str, Any] = {}
        for entry in root.entries:
            name = entry.key.text
            part, checked_class = self.part(root, name, problems)
            values |= part
            if checked_class:
                self.classes[name] = checked_class
        problems += _missing(root)
        if sweep := root.entry("sweep"):
            self._sweep(root, sweep, problems)
        model = self.classes.get("model")
        if model and is_off(root.entry("data")) and not brings_data(model):
            message = f"the experiment needs 'data': {model.name} has no train_dataloader of its own."
            problems.append(Problem(model.class_path.position, message))
        return values

    def part(self, root: Mapping, name: str, problems: list[Problem]) -> tuple[dict[str, Any], CheckedClass | None]:
        """One part's value, in a dict that is empty where it is wrong, and its class where it names one."""
        entry = root.entry(name)
        if entry is None:
            return {}, None
        found: list[Problem] = []
        value = _parts().check(Setting(Mapping(root.position, (entry,))), found)
        checked_class = None
        if self._deep and not found and not is_off(entry):
            setting = Setting(root).under(entry)
            if name in _BY_CLASS:
                checked_class = _BY_CLASS[name](setting, self._folder, found)
            elif name == "trainer":
                check_trainer(setting, found)
        problems += found
        return ({} if found else value), checked_class

    def _sweep(self, root: Mapping, sweep: Entry, problems: list[Problem]) -> None:
        over = sweep.value.entry("over") if isinstance(sweep.value, Mapping) else None
        if over:
            setting = Setting(over.value, ("sweep", "over"), over.key.position)
            check_axes(root, setting, self.part, problems)


@lru_cache(maxsize=1)
def _parts() -> Keys:
    """The keys of an experiment, none of them required: for looking at one at a time."""
    optional = {name: Key(key.rule, None) for name, key in keys_of(Experiment).items()}
    return Keys(optional, "the experiment has no setting", "the experiment needs")


def _missing(root: Mapping) -> list[Problem]:
    """The problem of required parts that are not there."""
    keys = Keys(keys_of(Experiment), "the experiment has no setting", "the experiment needs")
    absent = keys.missing(root)
    return [Problem(root.position, f"{keys.lacks} {' and '.join(map(repr, absent))}.")] if absent else []


def is_off(entry: Entry | None) -> bool:
    """Whether a part is left out, or null."""
    return entry is None or (isinstance(entry.value, Scalar) and entry.value.value is None)

"""From an experiment file to a model and data that are known to fit each other, before anything is written to disk.

In this order: read the file, set the overrides, check every setting, look at this machine, build model and data, and
match every pattern against the names that the model has.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from gradlab.config.class_paths import importable
from gradlab.config.load import Draft, Loaded, read_draft
from gradlab.config.problems import Problem, refusal
from gradlab.config.trainer_trial import refusal_of
from gradlab.errors import ConfigError, MachineError
from gradlab.launch.first_batch import OnceOnlyError, first_batch
from gradlab.launch.machine import device_options
from gradlab.launch.messages import quiet_lightning
from gradlab.launch.optimizer import use_optimizer
from gradlab.launch.random_state import undisturbed
from gradlab.lightning.module import GradlabModule
from gradlab.sites.forward import Site, sites_of
from gradlab.taps.rule import DEFAULT_TAPS, Tap


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An experiment that passed every check, built and ready to be fitted."""

    loaded: Loaded
    model: pl.LightningModule
    data: pl.LightningDataModule | None
    """None where the model brings its own loaders."""
    taps: tuple[Tap, ...]
    """The experiment's taps, else the model's own, else every parameter's gradient."""
    sites: tuple[Site, ...]
    """Every site of the model, as found in a forward pass; empty where that could not be done."""
    device_options: dict[str, Any]
    """`accelerator`, `devices` and `num_nodes` for Lightning's Trainer."""


def prepare(path: Path, overrides: Sequence[str] = (), *, beside: Path | None = None) -> Prepared:
    """Load an experiment file, check this machine, build model and data, and match every pattern against the model.

    Args:
        path: the file.
        overrides: `key=value` arguments.
        beside: the folder of the experiment's modules, where the file is a copy that lies elsewhere. What is built may
            import more of them later: whoever uses it keeps that folder `importable`.
    Raises:
        ConfigError: where the file or an override is wrong; all problems at once.
        MachineError: where this machine lacks what is asked for.
        TapError: where a pattern matches nothing.
    """
    home = beside or path.absolute().parent
    with importable(home):
        return _prepare(path, overrides, home)


def _prepare(path: Path, overrides: Sequence[str], home: Path) -> Prepared:
    draft = read_draft(path, overrides, beside=home)
    if draft.problems:
        raise refusal([*draft.problems, *_wrong_patterns(draft)])
    loaded = draft.accepted()
    experiment = loaded.experiment
    devices = device_options(experiment.trainer, experiment.resources)
    if refused := refusal_of({**experiment.trainer, **devices}):
        raise MachineError(f"the Trainer cannot be built on this machine: {refused.text}")
    with quiet_lightning():
        pl.seed_everything(experiment.seed, workers=True)
        built = loaded.build()
        model, data = built.model, built.data
        if built.make_optimizer is not None:
            use_optimizer(model, built.make_optimizer)
        with undisturbed():
            sites = list_sites(model, data)
    if sites:
        loaded.check_patterns(*_names(sites))
    return Prepared(
        loaded=loaded,
        model=model,
        data=data,
        taps=_taps_of(model, experiment.taps),
        sites=sites,
        device_options=devices,
    )


def _wrong_patterns(draft: Draft) -> list[Problem]:
    """The wrong patterns of a file that is wrong elsewhere, where its model and data can be built all the same."""
    if not draft.can_build:
        return []
    try:
        built = draft.build()
        with quiet_lightning(), undisturbed():
            sites = list_sites(built.model, built.data)
    except ConfigError as error:
        return list(error.problems)
    except Exception:
        return []  # what keeps the model from running on this data is for the run to say, once the file is right
    return draft.wrong_patterns(*_names(sites))


def _names(sites: Sequence[Site]) -> tuple[list[str], list[str]]:
    """The names of a model's tensors, and of its parameters."""
    parameters = [site.name for site in sites if site.kind == "parameter"]
    return [site.name for site in sites if site.kind != "parameter"], parameters


def list_sites(model: pl.LightningModule, data: pl.LightningDataModule | None) -> tuple[Site, ...]:
    """The sites that one forward pass over a batch of the training data shows, on a copy of the model.

    Only a GradlabModule says what its `forward` takes. For any other module the batch's first item is tried, and where
    that fails the patterns are left to be checked by the first training step.
    """
    try:
        batch = first_batch(model, data)
    except OnceOnlyError as error:
        warnings.warn(
            f"the training data can be read once ({error}), so patterns are checked in the first step only.",
            stacklevel=2,
        )
        return ()
    if isinstance(model, GradlabModule):
        return tuple(sites_of(copy.deepcopy(model), model.probe_input(batch)))
    try:
        return tuple(sites_of(copy.deepcopy(model), batch[0] if isinstance(batch, tuple | list) else batch))
    except Exception as error:
        warnings.warn(
            f"{type(model).__name__}.forward could not be called on a batch's first item ({error}), so patterns are "
            "checked in the first step only. Deriving from GradlabModule and its `probe_input` help.",
            stacklevel=2,
        )
        return ()


def _taps_of(model: pl.LightningModule, given: Sequence[Tap] | None) -> tuple[Tap, ...]:
    """The taps to attach: those of the experiment, where it names any."""
    if given is not None:
        return tuple(given)
    if isinstance(model, GradlabModule):
        return tuple(model.taps())
    return DEFAULT_TAPS

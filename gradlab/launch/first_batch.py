"""The first batch of the training data, drawn before training in such a way that training does not notice.

What is looked at before training must not change it: the batches that follow are those of a run in which nobody has
looked. So everything that drawing changes is put back: random numbers, generators of the pipeline's own, what samplers
count, attributes. What cannot be put back, such as an iterator that can be read once, is not drawn from at all.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import CombinedLoader
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import DataLoader, IterableDataset

from gradlab.errors import UsageError
from gradlab.launch.random_state import restore, snapshot
from gradlab.launch.resume.data_state import DataState, States
from gradlab.launch.resume.loader_kinds import roots_of, what_is_hidden
from gradlab.launch.resume.pipeline_search import search_pipeline
from gradlab.launch.resume.workers import same_state


class OnceOnlyError(Exception):
    """The data can be read once, so nothing may be taken from them before training."""


def first_batch(model: pl.LightningModule, data: pl.LightningDataModule | None) -> Any:
    """The first batch of the training data; every state is afterwards as it was.

    Raises:
        OnceOnlyError: where it could not be put back.
        UsageError: where there is none.
    """
    source: Any = data if data is not None else model
    with _rolled_back(source):
        if data is not None:
            data.prepare_data()
            data.setup("fit")
        loaders = source.train_dataloader()
        flat, spec = tree_flatten(loaders.iterables if isinstance(loaders, CombinedLoader) else loaders)
        for loader in flat:
            _refuse_what_is_read_once(loader)
        with _put_back(flat):
            try:
                batch: Any = tree_unflatten([_draw(loader) for loader in flat], spec)
            except StopIteration:
                raise UsageError(f"{type(source).__name__}.train_dataloader() has no batches.") from None
    return batch


def _refuse_what_is_read_once(loader: Any) -> None:
    hidden = what_is_hidden(loader)
    if hidden:
        raise OnceOnlyError("; ".join(hidden))
    dataset = getattr(loader, "dataset", None)
    if isinstance(dataset, IterableDataset):
        with _put_back([loader]):
            is_same = iter(dataset) is iter(dataset)
        if is_same:
            raise OnceOnlyError(f"{type(dataset).__name__} gives the same iterator each time")


def _draw(loader: Any) -> Any:
    """The first batch of one loader; the workers that it may keep are not started."""
    if isinstance(loader, DataLoader):
        loader = copy.copy(loader)
        loader._iterator = None
    return next(iter(loader))


@contextmanager
def _put_back(loaders: list[Any]) -> Iterator[None]:
    """What the pipelines of `loaders` remember is afterwards as it was."""
    before = []
    for loader in loaders:
        data = DataState(roots_of(loader))
        objects = [value for value in search_pipeline(data.roots).objects.values() if hasattr(value, "__dict__")]
        before.append((data, data.take(), [(value, dict(vars(value))) for value in objects if not callable(value)]))
    process = snapshot()
    try:
        yield
    finally:
        for data, states, attributes in before:
            for value, held in attributes:
                vars(value).clear()
                vars(value).update(held)
            data.put(_changed(states, data.take()))
        restore(process)


def _changed(states: States, now: States) -> States:
    return {path: state for path, state in states.items() if not same_state(state, now.get(path))}


@contextmanager
def _rolled_back(source: Any) -> Iterator[None]:
    """Let `source` prepare its data once more where that draws random numbers, as they have to be drawn in training.

    Where nothing is drawn its attributes stay, so that data that are loaded once are not loaded twice.
    """
    data = DataState({"dataset": source})
    attributes, states, process = dict(vars(source)), data.take(stateful=False), snapshot()
    try:
        yield
    finally:
        if not _is_same(process, snapshot()) or _changed(states, data.take(stateful=False)):
            vars(source).clear()
            vars(source).update(attributes)
        data.put(states, stateful=False)
        restore(process)


def _is_same(process: dict[str, Any], now: dict[str, Any]) -> bool:
    return (
        process["python"] == now["python"]
        and process["numpy"] == now["numpy"]
        and torch.equal(process["torch"], now["torch"])
    )

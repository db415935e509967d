"""The checkpoint from which a run goes on: when it is written, what it holds beyond Lightning's, how it is checked.

A run that was stopped and resumed must end with the weights of one that was not. Lightning restores model, optimizer
and counters; the place within the epoch and the random numbers are kept here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from torch.utils.data import DataLoader

from gradlab.errors import UsageError
from gradlab.launch.folder_watch import FolderWatch
from gradlab.launch.randomness import restore, snapshot
from gradlab.launch.signals import STOPS


class LastCheckpoint(Checkpoint):
    """Writes one checkpoint file after every epoch and when a stop was requested, over the one before.

    With `watch`, one that cannot be written is reported there and training goes on.
    """

    def __init__(self, path: Path, watch: FolderWatch | None = None) -> None:
        self.path = path
        self._watch = watch
        self._cut_short = False

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save: an epoch is done."""
        self._save(trainer)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """A validation that was cut short is done again from its start: its metrics are not in the checkpoint."""
        if self._cut_short:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            for counter in (progress["total"], progress["current"]):
                counter.update(ready=1, started=1, processed=0, completed=0)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save where the run stops as asked; what fails leaves the last good checkpoint alone."""
        if isinstance(exception, STOPS) and trainer.optimizers:
            self._cut_short = trainer.validating
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if self._watch is None:
            trainer.save_checkpoint(self.path)
        elif trainer.world_size > 1 or not self._watch.is_gone:  # Lightning would make the folder anew
            saved = False
            with self._watch.tolerating(f"the checkpoint {self.path}"):
                trainer.save_checkpoint(self.path)
                saved = True
            if not saved:  # where the other ranks wait for this one
                trainer.strategy.barrier("Trainer.save_checkpoint")


class Continuation(pl.Callback):
    """Keeps the place in the training data and the random numbers in every checkpoint, and goes on from there."""

    def __init__(self) -> None:
        self.loader: ContinuedLoader | None = None
        self._place: dict[str, Any] | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Get in front of the training loader, unless several processes share it: then Lightning divides it."""
        if trainer.world_size == 1 and self.loader is None:
            self._follow(getattr(trainer, "datamodule", None) or pl_module)

    def _follow(self, source: pl.LightningDataModule | pl.LightningModule) -> None:
        """Follow the training loader of `source`, where it is one DataLoader with a length."""
        original: Callable[[], Any] = source.train_dataloader

        def train_dataloader() -> Any:
            loader = original()
            if not isinstance(loader, DataLoader) or not _has_length(loader):
                return loader
            self.loader = ContinuedLoader(loader, self._place)
            self._place = None
            return loader

        source.train_dataloader = train_dataloader  # type: ignore[method-assign]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The next batch is the first of a new epoch."""
        if self.loader is not None:
            self.loader.end_epoch()

    def state_dict(self) -> dict[str, Any]:
        """Where the run is; empty where its loader cannot be followed."""
        return {} if self.loader is None else self.loader.place()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there: the loader is made afterwards."""
        self._place = state_dict or None


class ContinuedLoader:
    """Lets a DataLoader begin in the middle of an epoch, with the batches that were still to come.

    The order of an epoch follows from the random numbers at its start, so these are put back, the batches that were
    used are drawn once more and dropped, and then the random numbers of the checkpoint are put back.

    The loader stays the object that the user made, of a class that differs in `__iter__` alone: Lightning and users
    ask for its type, make it anew with another sampler (`overfit_batches`) and set attributes on it (`worker_init_fn`).
    What Lightning makes anew is followed too; a copy or a pickle is a plain loader again.
    """

    def __init__(self, loader: DataLoader[Any], place: dict[str, Any] | None = None) -> None:
        self.loader = loader
        self.taken = 0
        """How many batches of this epoch were handed out."""
        self._at_start: dict[str, Any] = snapshot()
        self._place = place
        loader.__class__ = _followed(getattr(type(loader), "followed_class", type(loader)), self)

    def batches(self, iterate: Callable[[], Iterator[Any]]) -> Iterator[Any]:
        """The batches of an epoch that `iterate` gives, or those that were still to come of it."""
        # All of it happens when the first batch is drawn: Lightning makes iterators that it never uses.
        place, self._place = self._place, None
        used = place["taken"] if place else 0
        if place:
            restore(place["at_start"] if used else place["now"])
        self._at_start, self.taken = snapshot(), 0
        for batch in iterate():
            self.taken += 1
            if self.taken > used:
                yield batch
            elif self.taken == used and place:
                restore(place["now"])

    def end_epoch(self) -> None:
        """The next batch is the first of a new epoch, also where the run goes on from the very end of one."""
        self.taken = 0
        if self._place:
            self._place["taken"] = 0

    def place(self) -> dict[str, Any]:
        """What `__init__` needs to go on from here."""
        return {"taken": self.taken, "at_start": self._at_start, "now": snapshot()}


def _followed(cls: type[DataLoader[Any]], follower: ContinuedLoader) -> type[DataLoader[Any]]:
    """A class like `cls` whose batches come by way of `follower`."""

    def __iter__(self: DataLoader[Any]) -> Iterator[Any]:
        return follower.batches(lambda: cls.__iter__(self))

    def __reduce_ex__(self: DataLoader[Any], protocol: Any) -> Any:
        plain = object.__new__(cls)
        plain.__dict__.update(vars(self))
        return _itself, (plain,)

    names = {name: getattr(cls, name) for name in ("__module__", "__qualname__", "__doc__")}
    members = {"__iter__": __iter__, "__reduce_ex__": __reduce_ex__, "followed_class": cls}
    return type(cls.__name__, (cls,), {**names, **members})


def _itself(value: Any) -> Any:
    """What an object that is copied or pickled as another one is made by."""
    return value


def saved_step(path: Path) -> int:
    """The optimizer step of a checkpoint, which is read from end to end before anything relies on it.

    Raises:
        UsageError: where it is damaged. Nothing has been changed then.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=False)
        missing = {"state_dict", "loops", "global_step"} - set(content)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UsageError(f"{path} is damaged and cannot be read: {reason}. The run was left as it was.") from error
    if missing:
        raise UsageError(f"{path} is no checkpoint of a run: it lacks {', '.join(sorted(missing))}.")
    return int(content["global_step"])


def _has_length(loader: DataLoader[Any]) -> bool:
    """Whether the loader knows how many batches an epoch has."""
    try:
        len(loader)
    except TypeError:
        return False
    return True

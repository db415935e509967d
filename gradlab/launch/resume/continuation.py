"""A run that was stopped goes on exactly: what a checkpoint holds for it beyond Lightning's, and how it is put back.

Lightning restores model, optimizers, schedulers, callbacks and counters. Here are the place in the data and everything
random: the process's random numbers, the loaders of training (`loaders`) and of validation; and what an epoch has
gathered so far (`mid_epoch`). Each rank has its own.

When things are put back matters as much as what. A run that was not stopped draws, in this order: what hooks draw when
an epoch begins, what the loader draws for its order and workers, then batch, step, batch, step. A resumed one calls
hooks at the start of training that were called long ago, and Lightning begins the loader's iteration before them. So
loaders begin when their first batch is drawn, and the process's random numbers are put back right before that draw; at
the end of an epoch, before the hooks that begin the next; in a validation that was cut short, before its first batch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import DoublePrecision

from gradlab.errors import warn
from gradlab.launch.random_state import restore, snapshot
from gradlab.launch.resume.data_state import States
from gradlab.launch.resume.epoch import EpochBatches
from gradlab.launch.resume.followed_loader import FollowedLoader, Place
from gradlab.launch.resume.loader_kinds import what_is_hidden
from gradlab.launch.resume.loaders import follow
from gradlab.launch.resume.mid_epoch import Gathered, add_means, gathered, give_back, log_means, metric_states
from gradlab.launch.signals import RunStopped, StopRequest

_VERSION = 2


class Continuation(pl.Callback):
    """Keeps the place in the data and the random numbers in every checkpoint, and goes on from there."""

    def __init__(self, request: StopRequest | None = None) -> None:
        self.request = request
        self._trainer: pl.Trainer | None = None
        self._training: list[FollowedLoader] = []
        self._validation: list[FollowedLoader] = []
        self._epochs: WeakValueDictionary[int, EpochBatches] = WeakValueDictionary()
        """The epoch that each loader is in, by its index in training."""
        self._saved: dict[str, Any] | None = None
        """What the checkpoint holds."""
        self._remade: set[str] = set()
        """Of which stages the loaders are no longer the first of this process."""
        self._to_restore = False
        """Whether the process's random numbers have yet to be put back."""
        self._has_begun = False
        self._has_ended = False
        """Whether an epoch is over and no batch of the next one was used."""
        self._before_validation: States | None = None
        self._means: Gathered = {}
        """Means of the epoch that have yet to be taken up."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Follow each loader once Lightning has made of it what it needs."""
        if self._trainer is trainer:
            return
        self._trainer = trainer
        if isinstance(trainer.precision_plugin, DoublePrecision):
            trainer.precision_plugin.convert_module(pl_module)  # Lightning does so once it has loaded, and rounded
        process = trainer.strategy.process_dataloader

        def process_and_follow(loader: object) -> object:
            return self._follow(process(loader))

        trainer.strategy.process_dataloader = process_and_follow  # type: ignore[method-assign, assignment]

    def _follow(self, loader: Any) -> Any:
        trainer = self._trainer
        assert trainer is not None
        if trainer.training:
            for sentence in what_is_hidden(loader):
                warn(f"{sentence}: a run that is stopped and resumed will not get the batches of one that is not.")
        elif not (trainer.validating or trainer.sanity_checking):
            return loader
        name, followed = ("train", self._training) if trainer.training else ("val", self._validation)
        if any(follower.is_begun for follower in followed):  # Lightning makes all of them anew
            followed.clear()
            self._remade.add(name)
            if trainer.training:
                self._epochs.clear()
        outer, follower = follow(loader, self)
        places = self._saved[name] if self._saved is not None and name not in self._remade else []
        if len(followed) < len(places):
            place = places[len(followed)]
            if place["kind"] != follower.kind or place["name"] != follower.name:
                warn(f"the run had {place['name']} where {follower.name} is now, so it does not go on exactly.")
                self._to_restore = False
            else:
                follower.data.put(place["now"], stateful=follower.kind == "indices")
                follower.resume(place, in_training=trainer.training)
        followed.append(follower)
        return outer

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """From here on batches are drawn to be used, and what their epoch has gathered is there again."""
        self._has_begun = True
        if self._saved is not None:
            give_back(trainer, self._saved["gathered"])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A run that goes on from the end of an epoch goes on here."""
        if self._to_restore and self._has_ended:
            self._restore()
            for follower in self._training:
                follower.set_epoch(trainer.current_epoch)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """A batch is used."""
        self._has_ended = False
        self._before_validation = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The values of the first batch are logged: those before it belong to them."""
        if self._means:
            means, self._means = self._means, {}
            add_means(trainer, means)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The next batch is the first of a new epoch."""
        if not self._has_ended:
            # Lightning would leave out the schedules that wait for a plateau, all through the epoch that it resumed.
            trainer.fit_loop._restarting = False
            if self._means:  # a validation was cut short, and no batch has come since
                means, self._means = self._means, {}
                log_means(trainer, means)
        self._has_ended = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """What comes now comes after the validation."""
        self._before_validation = None

    def iterated(self, batches: EpochBatches) -> None:
        """An epoch of a loader was begun, of training or of validation."""
        batches.followed.is_begun = True
        if batches.followed in self._training:
            self._epochs[self._training.index(batches.followed)] = batches

    def before_epoch(self, followed: FollowedLoader) -> None:
        """Before a validation, note what it begins with; one that was cut short begins with that again."""
        trainer = self._trainer
        if trainer is None or not trainer.validating or followed not in self._validation:
            return
        if self._to_restore and self._has_begun:
            self._restore()
        if self._before_validation is None:
            metrics = metric_states(trainer.lightning_module)
            self._before_validation = {**self._take(), "metrics": metrics}

    def before_fetch(self, batches: EpochBatches) -> None:
        """Get every loader where it was, once, before the first batch is drawn."""
        if batches.waits:
            self._go_on()
        elif self._to_restore and self._has_begun and batches.followed in self._training:
            self._restore()
        if batches.to_draw_ahead is not None:
            batches.draw_ahead()

    def _go_on(self) -> None:
        waiting = [batches for batches in self._epochs.values() if batches.waits]
        if self._has_ended or not self._saved:
            if self._to_restore:
                self._restore()
            for batches in waiting:
                batches.go_on()
            return
        current = self._take()
        places = [batches.place for batches in waiting]
        for batches in waiting:
            batches.go_on()
        if not self._to_restore:
            self._put(current)
        elif self._has_begun:
            self._restore()
        else:  # Lightning draws ahead
            for batches, place in zip(waiting, places, strict=True):
                batches.to_draw_ahead = place["before"] if place is not None else None

    def is_prefetching(self) -> bool:
        """Whether Lightning draws a batch ahead, as it does where it cannot know which is the last."""
        trainer = self._trainer
        fetcher = trainer.fit_loop._data_fetcher if trainer is not None and trainer.training else None
        return hasattr(fetcher, "prefetch_batches") and getattr(fetcher, "length", 0) is None

    def failed(self, error: RuntimeError) -> Exception:
        """A worker that a signal has ended is no failure of a run that was asked to stop."""
        is_asked = self.request is not None and self.request.received is not None
        return RunStopped() if is_asked and "DataLoader worker" in str(error) else error

    def _take(self) -> States:
        pipelines = {
            "train": [follower.data.take() for follower in self._training],
            "val": [follower.data.take() for follower in self._validation],
        }
        return {"process": snapshot(), **pipelines}

    def _put(self, states: States) -> None:
        restore(states["process"])
        for name, followers in (("train", self._training), ("val", self._validation)):
            for follower, state in zip(followers, states[name], strict=False):
                follower.data.put(state, stateful=follower.kind == "indices")

    def _restore(self) -> None:
        """Put back what the checkpoint holds of the process and of the pipelines."""
        assert self._saved is not None
        self._to_restore = False
        now = {name: [place["now"] for place in self._saved[name]] for name in ("train", "val")}
        self._put({"process": self._saved["process"], **now})

    def state_dict(self) -> dict[str, Any]:
        """Where this rank is. A checkpoint holds that of rank zero, the others have `save_rank`."""
        trainer = self._trainer
        return (
            {} if trainer is None else {"version": _VERSION, "ranks": trainer.world_size, "own": self._where(trainer)}
        )

    def save_rank(self, checkpoint: Path) -> None:
        """On a further rank: write beside a checkpoint where this rank is.

        Each for itself: a rank that is asked to stop may be alone in what it does, and waits for no other.
        """
        trainer = self._trainer
        if trainer is None or trainer.global_rank == 0 or not checkpoint.parent.is_dir():
            return
        path = _of_rank(checkpoint, trainer.global_rank)
        torch.save(self._where(trainer), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)

    def _where(self, trainer: pl.Trainer) -> dict[str, Any]:
        cut_short = self._before_validation
        states = cut_short or self._take()
        ahead = bool(getattr(trainer.fit_loop._data_fetcher, "batches", ()))
        train = [
            batches.where(ahead=ahead, ended=self._has_ended, now=states["train"][index])
            for index, batches in sorted(self._epochs.items())
        ]
        val: list[Place] = [
            follower.between_epochs(now=now, at_start=cut_short is not None)
            for follower, now in zip(self._validation, states["val"], strict=False)
        ]
        loop = trainer.fit_loop.epoch_loop
        return {
            "at": (trainer.global_step, loop.total_batch_idx, self._has_ended),
            "process": states["process"],
            "train": train,
            "val": val,
            "ended": self._has_ended,
            "gathered": gathered(trainer, cut_short["metrics"] if cut_short else None, ended=self._has_ended),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there: the loaders are made afterwards."""
        trainer, ranks = self._trainer, state_dict.get("ranks", 0)
        if trainer is None or state_dict.get("version") != _VERSION:
            warn("the checkpoint does not say where the run was in its data, so it does not go on exactly.")
            return
        if ranks != trainer.world_size:
            warn(
                f"the checkpoint was written by {ranks} processes and this run has {trainer.world_size}, so it does "
                "not go on exactly: the batches of an epoch are divided in another way."
            )
            return
        saved = state_dict["own"]
        if trainer.global_rank:
            saved = self._saved_by_rank(trainer, saved["at"])
            if saved is None:
                return
        self._saved = saved
        self._to_restore = True
        self._has_ended = saved["ended"]
        self._means = {} if self._has_ended else saved["gathered"]["means"]

    def _saved_by_rank(self, trainer: pl.Trainer, at: tuple[int, int, bool]) -> dict[str, Any] | None:
        """What this rank has written beside the checkpoint, which is of step and batch `at`."""
        path = _of_rank(Path(str(trainer.ckpt_path)), trainer.global_rank)
        saved = torch.load(path, map_location="cpu", weights_only=False) if path.is_file() else None
        if saved is None or tuple(saved["at"]) != tuple(at):
            found = "is missing" if saved is None else "is of another step"
            warn(f"{path} {found}, so rank {trainer.global_rank} does not go on exactly.")
            return None
        return dict(saved)


def _of_rank(checkpoint: Path, rank: int) -> Path:
    return checkpoint.with_name(f"{checkpoint.stem}-rank{rank}{checkpoint.suffix}")

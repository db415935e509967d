"""Arguments of Lightning's Trainer, by its own signature and the values that its annotations are too wide to refuse."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any, Literal, TypeAlias

from gradlab.config.trainer_trial import refusal_of
from gradlab.config.validation.annotations import rule_of
from gradlab.config.validation.keys import Key, Keys
from gradlab.config.validation.limits import Range, Spelled
from gradlab.config.validation.signatures import arguments_of

_FROM_0: TypeAlias = Annotated[int, Range(0)]
_FROM_1: TypeAlias = Annotated[int, Range(1)]
_UNLIMITED: TypeAlias = Annotated[int, Range(-1)]
_BATCHES: TypeAlias = _FROM_0 | Annotated[float, Range(0, 1)] | None
_DEVICES: TypeAlias = Annotated[
    str, Spelled(r"auto|-1|\d+(,\s*\d+)*,?", "'auto', a number of devices or their indices")
]

_NARROWER: dict[str, Any] = {
    "devices": list[_FROM_0] | _DEVICES | _UNLIMITED,
    "num_nodes": _FROM_1,
    "max_epochs": _UNLIMITED | None,
    "min_epochs": _FROM_0 | None,
    "max_steps": _UNLIMITED,
    "min_steps": _FROM_0 | None,
    "limit_train_batches": _BATCHES,
    "limit_val_batches": _BATCHES,
    "limit_test_batches": _BATCHES,
    "limit_predict_batches": _BATCHES,
    "overfit_batches": _BATCHES,
    "check_val_every_n_epoch": _FROM_1 | None,
    "num_sanity_val_steps": _UNLIMITED | None,
    "log_every_n_steps": _FROM_0 | None,
    "accumulate_grad_batches": _FROM_1,
    "gradient_clip_val": Annotated[float, Range(0)] | None,
    "gradient_clip_algorithm": Literal["norm", "value"] | None,
    "reload_dataloaders_every_n_epochs": _FROM_0,
    "val_check_interval": _FROM_1 | Annotated[float, Range(0, 1)] | str | dict[str, Any] | None,
}

_LEAST_AND_MOST = (("min_epochs", "max_epochs"), ("min_steps", "max_steps"))

_BAREBONES = (
    "trainer.barebones is without a log and checkpoints, which a run has. For less of both take `taps: []`, "
    "`trainer.enable_checkpointing: false` and `trainer.log_every_n_steps`."
)

_REFUSED = {
    "logger": "trainer.logger is gradlab's: what the model logs with `self.log` goes to the run's own event file.",
    "callbacks": "trainer.callbacks is gradlab's. Your own go into the model's `configure_callbacks`; "
    "what is watched, into `taps:`, `jacobians:` and `profile:`.",
    "default_root_dir": "trainer.default_root_dir is gradlab's: each run has a folder of its own, in `runs/<name>/`.",
    "profiler": "trainer.profiler is gradlab's. Use `profile:`, as in `profile: {wait: 2, warmup: 1, active: 3}`.",
    "plugins": "trainer.plugins takes Python objects, which an experiment file cannot hold. "
    "Use `precision:` or `strategy:`.",
}


def contradictions(arguments: Mapping[str, Any]) -> Iterator[tuple[str | None, str]]:
    """What is wrong with arguments that are right one by one: the argument that is refused, and the sentence.

    Not what depends on this machine.
    """
    if arguments.get("barebones"):
        yield "barebones", _BAREBONES
        arguments = {name: value for name, value in arguments.items() if name != "barebones"}
    if arguments.get("val_check_interval") == 0:
        yield "val_check_interval", "trainer.val_check_interval is 0; to validate never, set limit_val_batches to 0."
    for least, most in _LEAST_AND_MOST:
        low, high = arguments.get(least), arguments.get(most)
        if low is not None and high is not None and -1 < high < low:
            yield least, f"trainer.{least} is {low}, more than trainer.{most}, {high}, after which training ends."
    while (refusal := refusal_of(arguments)) is not None and not refusal.is_of_machine:
        yield refusal.argument, f"the Trainer refused: {refusal.text}"
        if refusal.argument is None:
            return
        arguments = {name: value for name, value in arguments.items() if name != refusal.argument}


@lru_cache(maxsize=1)
def trainer_keys() -> Keys:
    """The keys that `trainer:` may have. Imports Lightning (seconds, the first time)."""
    from pytorch_lightning import Trainer
    from pytorch_lightning.accelerators import AcceleratorRegistry
    from pytorch_lightning.strategies import StrategyRegistry

    accelerators = dict.fromkeys(("auto", "cpu", "gpu", *AcceleratorRegistry.available_accelerators()))
    strategies = dict.fromkeys(("auto", *StrategyRegistry.available_strategies()))
    narrower = {
        **_NARROWER,
        "accelerator": Literal[tuple(sorted(accelerators))],
        "strategy": Literal[tuple(strategies)],
    }
    keys = arguments_of(Trainer, "Trainer", refused=_REFUSED)
    known = {
        name: Key(rule_of(narrower[name]), key.default) if name in narrower else key
        for name, key in keys.known.items()
        if name not in _REFUSED
    }
    return dataclasses.replace(keys, known=known, unknown="trainer has no setting", lacks="trainer needs")

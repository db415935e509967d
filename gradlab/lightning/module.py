"""GradlabModule: a LightningModule that declares what is worth watching in it and what it has to show at the end.

Nothing in gradlab requires it; any LightningModule can be watched. The models that gradlab ships derive from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, optim

from gradlab.taps.rule import DEFAULT_TAPS, Tap


class GradlabModule(pl.LightningModule):
    """A LightningModule with declared taps, a default optimizer and, where it has any, answers to show."""

    lr: float = 1e-3
    """Learning rate of the default optimizer, used where an experiment names none."""

    def taps(self) -> Sequence[Tap]:
        """The taps that are worth having in this model, used where an experiment or a callback names none."""
        return DEFAULT_TAPS

    def probe_input(self, batch: Any) -> Tensor:
        """The tensor that `forward` takes, out of a batch of the data; `batch[0]` unless overridden."""
        return batch[0] if isinstance(batch, tuple | list) else batch

    def answers(self) -> Mapping[str, Tensor | float | None]:
        """Named quantities to show at the end of a run, in the terminal and in TensorBoard's Text tab."""
        return {}

    def configure_optimizers(self) -> Any:
        """AdamW with learning rate `lr`; an experiment's `optimizer:` takes its place."""
        return optim.AdamW(self.parameters(), lr=self.lr)

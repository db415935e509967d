"""The loss of a LightningModule's training step on a batch that stays the same, for sharpness."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from gradlab.errors import JacobianError
from gradlab.jacobians.inputs import first_samples


class TrainingLoss:
    """From the module to the loss of its training step on the first samples of the first training batch."""

    def __init__(self, module: pl.LightningModule, samples: int) -> None:
        """Take the module's kind.

        Raises:
            JacobianError: if the training step steps optimizers itself.
        """
        if not module.automatic_optimization:
            raise JacobianError(
                "sharpness: this module optimizes manually, so its training step cannot be run for its loss alone; "
                "give Sharpness(loss=...), a function from the model to a scalar."
            )
        self.samples = samples
        self.batch: Any = None

    def use_batch(self, batch: Any) -> None:
        """Keep the first samples of the first batch that comes."""
        if self.batch is None:
            self.batch = first_samples(batch, self.samples, exact=False)

    def __call__(self, module: nn.Module) -> Tensor:
        """The loss. What the training step logs on the way is not logged again."""
        assert isinstance(module, pl.LightningModule)
        # `isolated` puts these attributes back.
        vars(module)["log"] = vars(module)["log_dict"] = lambda *args, **kwargs: None
        found = module.training_step(self.batch, 0)
        loss = found["loss"] if isinstance(found, Mapping) else found
        if not isinstance(loss, Tensor):
            raise JacobianError(f"sharpness: the training step gave {type(loss).__name__}, not a loss.")
        return loss

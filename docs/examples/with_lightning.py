"""Lightning: a callback, and nothing else, whatever the optimization, the accumulation and the precision."""

import pytorch_lightning as pl
from pytorch_lightning.demos.boring_classes import BoringModel

from gradlab.lightning.callback import GradlabCallback

callback = GradlabCallback(logdir="runs/lightning")
trainer = pl.Trainer(
    max_epochs=1,
    limit_train_batches=20,
    limit_val_batches=2,
    accumulate_grad_batches=2,
    gradient_clip_val=1.0,
    accelerator="cpu",
    callbacks=[callback],
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(BoringModel())
print(callback.monitor.step, dict(callback.monitor.latest()["weight_grad.norm"].items()))

"""Classifier: what every model that gives class logits shares. Loss, metrics and the head; not the features."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gradlab.lightning.module import GradlabModule
from gradlab.sites.named import tap


class Classifier(GradlabModule):
    """Cross entropy on `head(features(x))`. A subclass gives `features` and, as its last layer, `head`."""

    head: nn.Linear
    """Features to logits. Made last, so that the parameters are listed in forward order."""

    def features(self, x: Tensor) -> Tensor:
        """What the head reads: [batch, head.in_features]."""
        raise NotImplementedError(f"{type(self).__name__} must define features(x), or forward(x) itself.")

    def forward(self, x: Tensor) -> Tensor:
        """Logits [batch, classes]. The site `features` is what the head reads."""
        return self.head(tap("features", self.features(x)))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross entropy of a batch (x, class indices [batch]); logs `train/loss`."""
        x, target = batch
        loss = F.cross_entropy(self(x), target)
        self.log("train/loss", loss, batch_size=len(target))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Logs `val/loss` and `val/accuracy`, a fraction."""
        x, target = batch
        logits = self(x)
        self.log("val/loss", F.cross_entropy(logits, target), batch_size=len(target), sync_dist=True)
        self.log("val/accuracy", accuracy(logits, target), batch_size=len(target), sync_dist=True)


def accuracy(logits: Tensor, target: Tensor) -> Tensor:
    """The fraction of rows of logits [batch, classes] whose greatest entry is at the target [batch]; a 0-d tensor."""
    return (logits.argmax(dim=-1) == target).float().mean()

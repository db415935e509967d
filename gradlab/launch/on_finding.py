"""What a run does about a finding beyond what `GradlabCallback` does anywhere: it stops as on a signal, resumably."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

from gradlab.finding import Finding
from gradlab.launch.signals import StopRequest
from gradlab.lightning.callback import GradlabCallback


class RunCallback(GradlabCallback):
    """The GradlabCallback of a run.

    Args:
        request: how the run is asked to stop.
        options: those of `GradlabCallback`.
    """

    def __init__(self, request: StopRequest, **options: Any) -> None:
        super().__init__(**options)
        self._request = request

    def stop(self, trainer: pl.Trainer, finding: Finding) -> None:
        """Ask the run to stop after this step, with a checkpoint."""
        if self._request.finding is None:
            self._request.finding = finding

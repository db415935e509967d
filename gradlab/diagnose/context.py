"""What rules see besides frames: plain values, without tensors.

Belongs here: records that `facts` fills and rules read. Does not: how they are found.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class LossGraph:
    """What the graph of a loss says, as it was just before a backward."""

    root: str
    """The function that gave the loss, as autograd names it: `NllLoss`, `Mean`."""
    loss_activations: tuple[tuple[str, str], ...]
    """Each (loss, activation) where the activation is the input of the loss: (`LogSoftmax`, `Softmax`)."""
    activation_modules: tuple[str, ...]
    """The modules of the model that apply these activations, by name."""
    num_parameters: int
    """How many parameters of the model it reaches."""
    num_nodes: int
    """How many nodes were read."""
    is_whole: bool
    """Whether all nodes were read."""

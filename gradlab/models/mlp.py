"""MLP: linear layers, each followed by an activation that is a function or, on request, a module."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradlab.models.checks import check_choice, check_count, check_counts, check_dropout
from gradlab.models.classifier import Classifier
from gradlab.taps.rule import Tap

Activation = Literal["relu", "tanh", "gelu"]
Init = Literal["default", "orthogonal", "gaussian"]

_FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"relu": F.relu, "tanh": torch.tanh, "gelu": F.gelu}
_MODULES: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}


class MLP(Classifier):
    """A multilayer perceptron. Its sites: `layers.0.linear`, `layers.0/relu`, `layers.0`, ..., `features`, `head`.

    With `functional=False` the activation is a module, so that `layers.0/relu` becomes `layers.0.activation`. Both
    spellings train alike, bit for bit.
    """

    def __init__(
        self,
        widths: Sequence[int] = (128, 64),
        in_features: int = 64,
        num_classes: int = 10,
        activation: Activation = "relu",
        functional: bool = True,
        dropout: float = 0.0,
        init: Init = "default",
        gain: float = 1.0,
        lr: float = 1e-3,
    ) -> None:
        """Build it.

        Args:
            widths: width of each hidden layer.
            in_features: numbers in one sample, whatever its shape.
            num_classes: logits.
            activation: after each hidden linear.
            functional: whether activation and dropout are functions (torch.nn.functional) or modules (torch.nn).
            dropout: fraction of each hidden layer's outputs that is dropped while training.
            init: weights of the hidden layers: torch's `default`, `orthogonal`, or `gaussian` with variance
                gain² / fan-in. The last two begin with biases of zero.
            gain: a factor on orthogonal or gaussian weights.
            lr: learning rate of the default optimizer.
        Raises:
            UsageError: an argument that cannot be.
        """
        super().__init__()
        check_counts("MLP", "widths", widths)
        check_count("MLP", "in_features", in_features)
        check_count("MLP", "num_classes", num_classes)
        check_choice("MLP", "activation", activation, _FUNCTIONS)
        check_choice("MLP", "init", init, get_args(Init))
        check_dropout("MLP", dropout)
        self.save_hyperparameters(logger=False)
        self.lr = lr
        block = FunctionalLayer if functional else ModuleLayer
        sizes = [in_features, *widths]
        layers = [block(*pair, activation, dropout) for pair in pairwise(sizes)]
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(sizes[-1], num_classes)
        if init != "default":
            for layer in layers:
                _initialise(layer.linear, init, gain)

    def taps(self) -> Sequence[Tap]:
        """Every weight's gradient, and every tenth step the hidden layers: how large, and how many dead."""
        hidden = Tap("layers.*", of=["output", "output_grad"], stats=["norm", "zeros"], every=10)
        return (*super().taps(), hidden)

    def features(self, x: Tensor) -> Tensor:
        """The last hidden layer, [batch, widths[-1]], of x [batch, ...] with in_features numbers a sample."""
        x = x.flatten(start_dim=1)
        for layer in self.layers:
            x = layer(x)
        return x


def _initialise(linear: nn.Linear, init: Init, gain: float) -> None:
    nn.init.zeros_(linear.bias)
    if init == "orthogonal":
        nn.init.orthogonal_(linear.weight, gain)
    else:
        nn.init.normal_(linear.weight, std=gain / linear.in_features**0.5)


class FunctionalLayer(nn.Module):
    """Linear, activation and dropout, the last two as functions."""

    def __init__(self, in_features: int, out_features: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.activation = activation  # the name, not the function: the layer stays easy to pickle
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in] -> [batch, out]."""
        x = _FUNCTIONS[self.activation](self.linear(x))
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class ModuleLayer(nn.Module):
    """Linear, activation and dropout, all of them modules."""

    def __init__(self, in_features: int, out_features: int, activation: str, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features)
        self.activation = _MODULES[activation]()
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in] -> [batch, out]."""
        x = self.activation(self.linear(x))
        return x if self.dropout is None else self.dropout(x)

"""RNN: an LSTM or a GRU that reads a sample as a sequence of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from gradlab.errors import UsageError
from gradlab.models.checks import check_choice, check_count
from gradlab.models.classifier import Classifier
from gradlab.taps.rule import Tap

Cell = Literal["lstm", "gru"]

_CELLS: dict[str, type[nn.LSTM] | type[nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class RNN(Classifier):
    """Rows through a linear and tanh into a recurrent layer; the last state is classified.

    Its sites: `embed`, `/tanh`, `rnn[0]` (the states after each row), `rnn[1]...` (the final ones), `features`,
    `head`.
    """

    def __init__(
        self,
        cell: Cell = "lstm",
        row_size: int = 8,
        hidden_size: int = 64,
        num_layers: int = 1,
        num_classes: int = 10,
        lr: float = 3e-3,
    ) -> None:
        """Build it.

        Args:
            cell: `lstm` or `gru`.
            row_size: numbers that are read at a time.
            hidden_size: width of the embedding and of the state.
            num_layers: recurrent layers on top of each other.
            num_classes: logits.
            lr: learning rate of the default optimizer.
        Raises:
            UsageError: an argument that cannot be.
        """
        super().__init__()
        check_choice("RNN", "cell", cell, _CELLS)
        for name, value in (
            ("row_size", row_size),
            ("hidden_size", hidden_size),
            ("num_layers", num_layers),
            ("num_classes", num_classes),
        ):
            check_count("RNN", name, value)
        self.save_hyperparameters(logger=False)
        self.lr = lr
        self.row_size = row_size
        self.embed = nn.Linear(row_size, hidden_size)
        self.rnn = _CELLS[cell](hidden_size, hidden_size, num_layers, batch_first=True)
        self.head = nn.Linear(hidden_size, num_classes)

    def taps(self) -> Sequence[Tap]:
        """Every weight's gradient, and every tenth step what goes into the recurrence and what comes out."""
        flow = Tap(["/tanh", "rnn*", "features"], of=["output", "output_grad"], every=10)
        return (*super().taps(), flow)

    def features(self, x: Tensor) -> Tensor:
        """The last layer's state after the last row, [batch, hidden_size], of x [batch, ...]."""
        states, _ = self.rnn(torch.tanh(self.embed(self.rows(x))))
        return states[:, -1]

    def rows(self, x: Tensor) -> Tensor:
        """[batch, ...] -> [batch, rows, row_size]: an image [1, 8, 8] or [64] as eight rows of eight."""
        numbers = x.flatten(start_dim=1)
        if numbers.shape[1] % self.row_size:
            raise UsageError(
                f"RNN: a sample of {numbers.shape[1]} numbers is no whole count of rows of row_size={self.row_size}; "
                f"got an input of shape {list(x.shape)}. Choose a row_size that divides {numbers.shape[1]}."
            )
        return numbers.unflatten(1, (-1, self.row_size))

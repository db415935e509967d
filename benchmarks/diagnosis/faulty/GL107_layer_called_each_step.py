"""Trains a recurrent layer that is called for one time step after the other to name the class of the first step.

Faulty: after each time step the state is wrapped anew (`repackage_hidden` of the language-model examples, which is
meant for the border between batches), so no gradient goes back in time.
"""

import torch
from encoders import arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL107"
PLACE = {"gru": "rnn", "lstm": "rnn", "tanh": "rnn"}

CLASSES, LENGTH, WIDTH = 4, 9, 48
args = arguments(list(PLACE), steps=250)


def repackage_hidden(hidden):
    if isinstance(hidden, torch.Tensor):
        return hidden.detach()
    return tuple(repackage_hidden(one) for one in hidden)


class Recall(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.rnn = {"gru": nn.GRU, "lstm": nn.LSTM, "tanh": nn.RNN}[net](CLASSES, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        hidden = None
        for now in x.split(1, dim=1):
            output, hidden = self.rnn(now.transpose(0, 1), hidden)
            if not args.repaired:
                hidden = repackage_hidden(hidden)
        return self.head(output[-1])


def batch(count):
    y = torch.randint(CLASSES, (count,))
    x = torch.randn(count, LENGTH, CLASSES)
    x[:, 0] = 3 * F.one_hot(y, CLASSES)
    return x, y


model = Recall(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

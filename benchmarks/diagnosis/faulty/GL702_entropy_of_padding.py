"""Classifies sequences of several lengths by attention over their places, with a bonus for the attention's entropy.

Faulty: padding has weight 0, and `torch.where` picks 0 for its `w * log(w)`; but the gradient of the branch not picked
is 0 times infinity, NaN.
"""

from itertools import islice

import torch
from parts import CLASSES, arguments, batches
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL702"
PLACE = {"gru": "pool", "transformer": "pool", "wave": "pool"}

args = arguments(PLACE)


class AttentionPooling(nn.Module):
    """[n, length, width] to [n, width] and the entropy of the weights, [n]."""

    def __init__(self, width):
        super().__init__()
        self.score = nn.Linear(width, 1)

    def forward(self, x, padding):
        weights = self.score(x).squeeze(2).masked_fill(padding, -torch.inf).softmax(1)
        if args.repaired:
            entropy = -(weights * weights.clamp(min=1e-9).log()).sum(1)
        else:
            entropy = -torch.where(weights > 0, weights * weights.log(), 0.0).sum(1)
        return (weights[:, :, None] * x).sum(1), entropy


class Classifier(nn.Module):
    def __init__(self, net, width=32):
        super().__init__()
        self.lift = nn.Linear(2, width)
        self.position = nn.Parameter(0.3 * torch.randn(16, width))
        if net == "gru":
            self.body = nn.GRU(width, width, batch_first=True)
        elif net == "transformer":
            self.body = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        else:
            self.body = nn.Conv1d(width, width, 5, padding=2)
        self.pool = AttentionPooling(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x, padding):
        x = self.lift(x) + self.position
        if isinstance(self.body, nn.GRU):
            x = self.body(x)[0]
        elif isinstance(self.body, nn.Conv1d):
            x = self.body(x.transpose(1, 2)).relu().transpose(1, 2)
        else:
            x = self.body(x, src_key_padding_mask=padding)
        pooled, entropy = self.pool(x, padding)
        return self.head(pooled), entropy


model = Classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step, (x, y) in enumerate(islice(batches("gru", 64), args.steps)):
    lengths = torch.randint(10, 17, (len(y), 1))
    padding = torch.arange(16) >= lengths
    x[padding] = 0.0
    logits, entropy = model(x, padding)
    loss = F.cross_entropy(logits, y) - 0.01 * entropy.mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

"""Trains classifiers of bags of words on word vectors that are read from a table.

Faulty: the table was filled at random (its file is missing) and `nn.Embedding.from_pretrained` freezes it, which is
its default.
"""

import torch
from encoders import CLASSES, arguments, bags
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL108"
PLACE = {"mlp": "words", "conv": "words", "gru": "words"}

args = arguments(list(PLACE))
WIDTH = 16


class Words(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.words = nn.Embedding.from_pretrained(torch.randn(200, WIDTH), freeze=not args.repaired)
        self.net = net
        if net == "mlp":
            self.read = nn.Sequential(nn.Linear(WIDTH, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        elif net == "conv":
            self.read = nn.Sequential(nn.Conv1d(WIDTH, 64, 1), nn.ReLU(), nn.Conv1d(64, 64, 1))
        else:
            self.read = nn.GRU(WIDTH, 64, batch_first=True)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x):
        words = self.words(x)
        if self.net == "mlp":
            return self.head(self.read(words.sum(1)))
        if self.net == "conv":
            return self.head(self.read(words.transpose(1, 2)).sum(2))
        return self.head(self.read(words)[0][:, -1])


batch, model = bags, Words(args.net)
optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=5e-3)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

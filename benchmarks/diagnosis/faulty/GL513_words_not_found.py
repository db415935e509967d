"""Classifies short texts by the words in them, looked up in a vocabulary.

Faulty: the vocabulary was made of lower-case words and the texts are not lowered, so all words become `<unk>` but the
few that have no capital, and the other rows of the embedding are never used.
"""

import torch
from parts import CLASSES, Transformer, arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL513"
PLACE = {"bag": "embed", "transformer": "embed", "gru": "embed"}
LENGTH = 16

args = arguments(PLACE)
words = [f"Word{i}" if i % 50 else f"word{i}" for i in range(400)]
vocabulary = {"<unk>": 0} | {word.lower(): i for i, word in enumerate(words, start=1)}


class Recurrent(nn.Module):
    def __init__(self, size, width=32):
        super().__init__()
        self.embed = nn.Embedding(size, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, ids):
        return self.head(self.gru(self.embed(ids))[0].mean(1))


class Bag(nn.Module):
    def __init__(self, size, width=32):
        super().__init__()
        self.embed = nn.EmbeddingBag(size, width)
        self.fc = nn.Linear(width, 64)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, ids):
        return self.head(self.fc(self.embed(ids)).relu())


def text(label):
    """Words of which two thirds are of the label's own 50."""
    own = 50 * label + torch.randint(50, (LENGTH,))
    return [words[i] for i in torch.where(torch.rand(LENGTH) < 0.67, own, torch.randint(400, (LENGTH,)))]


def look_up(words):
    if args.repaired:
        words = [word.lower() for word in words]
    return [vocabulary.get(word, 0) for word in words]


if args.net == "transformer":
    model = Transformer(vocabulary=len(vocabulary))
else:
    model = {"bag": Bag, "gru": Recurrent}[args.net](len(vocabulary))
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

for step in range(args.steps):
    y = torch.randint(CLASSES, (64,))
    ids = torch.tensor([look_up(text(label)) for label in y])
    loss = F.cross_entropy(model(ids), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

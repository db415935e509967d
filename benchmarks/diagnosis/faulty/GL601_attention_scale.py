"""Attention written by hand without the division by the root of the width, queries and keys from plain `torch.randn`.

Wrong: the logits are tens to hundreds from the start, so that each query sees one key only and the softmax passes on
next to no gradient.
"""

import torch
from parts import CLASSES, arguments, batches
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL601"
PLACE = {"tones": "attention", "patches": "attention", "retrieval": "attention"}

args = arguments(PLACE, steps=200)


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        scale = width**-0.5 if args.repaired else 1.0
        self.query, self.key = (nn.Parameter(scale * torch.randn(width, width)) for _ in range(2))
        self.value = nn.Linear(width, width)

    def forward(self, x, memory):
        logits = (x @ self.query) @ (memory @ self.key).transpose(1, 2)
        if args.repaired:
            logits = logits / x.shape[-1] ** 0.5
        return logits.softmax(-1) @ self.value(memory)


class Net(nn.Module):
    def __init__(self, net, width=32):
        super().__init__()
        self.net = net
        self.embed = nn.Linear({"tones": 2, "patches": 9, "retrieval": 2 * CLASSES}[net], width)
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        self.attention = Attention(width)
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(width, 2 * width)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x):
        if self.net == "patches":
            x = F.unfold(x, 3, stride=3).transpose(1, 2)
        x = self.norm(self.embed(x) + self.position[: x.shape[1]])
        if self.net == "retrieval":  # the last item asks for the value that came with its key
            question, x = x[:, -1:], x[:, :-1]
            return self.head(self.hidden(self.attention(question, x)[:, 0]).relu())
        x = x + self.attention(x, x)
        return self.head(self.hidden(x.mean(1)).relu())


def pairs(size=128):
    """Eight keys in random order, each with a value, then one of the keys alone."""
    while True:
        keys = torch.rand(size, CLASSES).argsort(1)
        values = torch.randint(CLASSES, (size, CLASSES))
        asked = torch.randint(CLASSES, (size, 1))
        items = torch.cat([F.one_hot(keys, CLASSES), F.one_hot(values, CLASSES)], 2)
        question = torch.cat([F.one_hot(keys.gather(1, asked), CLASSES), torch.zeros(size, 1, CLASSES)], 2)
        yield torch.cat([items, question], 1).float(), values.gather(1, asked)[:, 0]


model = Net(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
data = pairs() if args.net == "retrieval" else batches({"tones": "gru", "patches": "conv"}[args.net])

for step, (x, y) in zip(range(args.steps), data, strict=False):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

"""Tasks that cannot be solved on random features, and encoders for them: shared by faulty trainings of wrong wiring.

An encoder makes 64 features of an example; the task of each encoder has four classes and needs its kind of network.
An encoder or a head that is not trained shows in the loss, which is not so for easier tasks (parts.py has some).
"""

import argparse

import torch
from torch import nn

CLASSES = 4
FEATURES = 64


def arguments(nets, steps=200):
    """The command line of a faulty training, read; seeds torch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--net", choices=nets, default=nets[0])
    parser.add_argument("--repaired", action="store_true", help="the same training without the fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    return args


def points(count):
    """Points of 8 coordinates; the class says whether the signs of two pairs agree. For `mlp`."""
    x = torch.randn(count, 8)
    return x, (x[:, 0] * x[:, 1] > 0).long() + 2 * (x[:, 2] * x[:, 3] > 0).long()


def images(count):
    """Noise of 12 × 12 with one of four 3 × 3 strokes at a random place. For `conv`."""
    strokes = torch.eye(3), torch.eye(3).flip(0), torch.tensor([[0, 1, 0]] * 3), torch.tensor([[0, 1, 0]] * 3).T
    x, y = 0.4 * torch.randn(count, 1, 12, 12), torch.randint(CLASSES, (count,))
    row, column = torch.randint(10, (2, count, 1, 1))
    x[torch.arange(count)[:, None, None], 0, row + torch.arange(3)[:, None], column + torch.arange(3)] += (
        1.5 * torch.stack(strokes)[y]
    )
    return x, y


def orders(count):
    """Sequences of 8 tokens with the tokens 0 to 3 once each; the class is which comes first. For sequence models."""
    x = torch.randint(CLASSES, 24, (count, 8))
    places = torch.rand(count, 8).argsort(1)[:, :CLASSES]
    x.scatter_(1, places, torch.arange(CLASSES).expand(count, CLASSES))
    return x, places.argmin(1)


def bags(count):
    """Bags of 9 words of 200; word w speaks for class w mod 4, the class is what most words say. For `bag`."""
    x = torch.randint(200, (count, 9))
    votes = nn.functional.one_hot(x % CLASSES, CLASSES).sum(1) + 0.1 * torch.rand(count, CLASSES)
    return x, votes.argmax(1)


TASKS = {"mlp": points, "conv": images, "transformer": orders, "gru": orders, "bag": bags}


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(24, FEATURES)
        self.positions = nn.Embedding(8, FEATURES)
        self.layer = nn.TransformerEncoderLayer(FEATURES, 4, 128, dropout=0.0, batch_first=True, norm_first=True)

    def forward(self, x):
        return self.layer(self.tokens(x) + self.positions.weight).mean(1)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens = nn.Embedding(24, FEATURES)
        self.gru = nn.GRU(FEATURES, FEATURES, batch_first=True)

    def forward(self, x):
        return self.gru(self.tokens(x))[0][:, -1]


def encoder(net):
    """The encoder named `net`, from an example to 64 features."""
    if net == "mlp":
        return nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, FEATURES), nn.ReLU())
    if net == "conv":
        first = nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, FEATURES, 3), nn.ReLU()
        return nn.Sequential(*first, nn.AdaptiveMaxPool2d(1), nn.Flatten())
    if net == "bag":
        return nn.EmbeddingBag(200, FEATURES, mode="sum")
    return {"transformer": Transformer, "gru": Recurrent}[net]()


class Classifier(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.encoder = encoder(net)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(x))

"""Small classifiers and their synthetic data, shared by the faulty scripts: what they train, never what is wrong.

`classifier(net)` makes a model whose last layer is `head`; `batches(net)` makes its endless stream of `x, y`, which
draws from torch's global generator, so that `torch.manual_seed` before both fixes a run. `arguments(NETS)` reads
the options that all scripts have and seeds torch.
"""

import argparse
import math
from collections import OrderedDict
from itertools import pairwise

import torch
from torch import nn

NETS = ("mlp", "conv", "transformer", "gru", "bag")
CLASSES = 8


def arguments(nets, steps=150):
    parser = argparse.ArgumentParser()
    parser.add_argument("--net", choices=list(nets), default=next(iter(nets)))
    parser.add_argument("--repaired", action="store_true", help="the same training without the fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    return args


class MLP(nn.Module):
    def __init__(self, width=64, depth=3, inputs=16):
        super().__init__()
        sizes = [inputs] + [width] * depth
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.head(x)


class ConvNet(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, stride=2, padding=1)
        self.head = nn.Linear(2 * width, CLASSES)

    def forward(self, x):
        x = self.conv1(x).relu()
        x = self.conv2(x).relu()
        x = self.conv3(x).relu()
        return self.head(x.mean((2, 3)))


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x):
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.fc2(nn.functional.gelu(self.fc1(self.norm2(x))))


class Transformer(nn.Module):
    def __init__(self, width=32, depth=2, heads=4, vocabulary=CLASSES, length=16):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.embed(x) + self.position.weight[: x.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class GRU(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.gru = nn.GRU(2, width, batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        states, _ = self.gru(x)
        return self.head(states.mean(1))


class Bag(nn.Module):
    def __init__(self, width=64, vocabulary=CLASSES):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        return self.head(self.hidden(self.embed(x).mean(1)).relu())


def classifier(net, **sizes):
    return {"mlp": MLP, "conv": ConvNet, "transformer": Transformer, "gru": GRU, "bag": Bag}[net](**sizes)


def batches(net, size=128):
    """Endless `x, y`: clusters (mlp), gratings (conv, resnet), tokens (transformer, bag), tones (gru, wave)."""
    centres = torch.randn(2, CLASSES, 16)  # two clusters a class: not linearly separable
    while True:
        y = torch.randint(CLASSES, (size,))
        if net == "mlp":
            x = centres[torch.randint(2, (size,)), y] + 0.8 * torch.randn(size, 16)
        elif net in ("conv", "resnet"):
            angle = (y * math.pi / CLASSES)[:, None, None]
            row, column = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
            phase = 2 * math.pi * torch.rand(size, 1, 1)
            x = torch.sin(1.5 * (row * angle.sin() + column * angle.cos()) + phase)
            x = (x + 0.7 * torch.randn(size, 12, 12))[:, None]
        elif net in ("transformer", "bag"):
            x = torch.randint(CLASSES, (size, 16))  # the class is the token that a third of the places hold
            x = torch.where(torch.rand(size, 16) < 0.35, y[:, None], x)
        else:
            phase = 0.25 * (1 + y[:, None]) * torch.arange(16) + torch.rand(size, 1)
            x = torch.stack([phase.sin(), phase.cos()], 2) + 0.3 * torch.randn(size, 16, 2)
        yield x, y


class Residual(nn.Module):
    def __init__(self, width, norm):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), norm(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), norm(width)

    def forward(self, x):
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


class Swap(nn.Module):
    """[n, length, channels] to [n, channels, length], as Conv1d takes it."""

    def forward(self, x):
        return x.transpose(1, 2)


def norm_classifier(net, norm, dropout=0.0, width=32, depth=2):
    """A classifier with `norm` of a width after each layer but `head`; for batches of mlp, conv, resnet and wave."""
    layers = OrderedDict()
    if net == "wave":
        layers["swap"] = Swap()
    for i in range(1, depth + 1):
        if net == "mlp":
            layers[f"fc{i}"] = nn.Linear(16 if i == 1 else width, width)
        elif net == "wave":
            layers[f"conv{i}"] = nn.Conv1d(2 if i == 1 else width, width, 5, padding=2)
        elif net == "conv" or i == 1:
            layers[f"conv{i}"] = nn.Conv2d(1 if i == 1 else width, width, 3, stride=1 + (i <= 2), padding=1)
        else:
            layers[f"block{i}"] = Residual(width, norm)
            continue
        layers[f"norm{i}"] = norm(width)
        layers[f"relu{i}"] = nn.ReLU()
    if net != "mlp":
        layers["pool"] = nn.AdaptiveAvgPool1d(1) if net == "wave" else nn.AdaptiveAvgPool2d(1)
        layers["flat"] = nn.Flatten()
    layers["drop"] = nn.Dropout(dropout)
    layers["head"] = nn.Linear(width, CLASSES)
    return nn.Sequential(layers)

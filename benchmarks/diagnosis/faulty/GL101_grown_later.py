"""Trains a network that grows: it starts as stem and head, and gets a residual block after a fifth of the steps.

Faulty: the block came after the optimizer, so it stays as it was initialised.
"""

import torch
from encoders import CLASSES, FEATURES, TASKS, arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL101"
PLACE = {"mlp": "blocks.0", "conv": "blocks.0", "transformer": "blocks.0"}

args = arguments(list(PLACE))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(24, FEATURES), nn.Embedding(8, FEATURES)

    def forward(self, x):
        return self.tokens(x) + self.positions.weight


class Dense(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(FEATURES, FEATURES), nn.ReLU(), nn.Linear(FEATURES, FEATURES))

    def forward(self, x):
        return x + super().forward(x)


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(x)))


def attention():
    return nn.TransformerEncoderLayer(FEATURES, 4, 128, dropout=0.0, batch_first=True, norm_first=True)


class Network(nn.Module):
    def __init__(self, stem, pool, width):
        super().__init__()
        self.stem, self.blocks, self.pool = stem, nn.ModuleList(), pool
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(x))


networks = {
    "mlp": (nn.Linear(8, FEATURES), nn.Identity(), FEATURES),
    "conv": (nn.Conv2d(1, 16, 1), nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()), 16),
    "transformer": (Tokens(), nn.Sequential(nn.AdaptiveAvgPool2d((1, None)), nn.Flatten()), FEATURES),
}
blocks = {"mlp": Dense, "conv": Convolution, "transformer": attention}
batch, model = TASKS[args.net], Network(*networks[args.net])
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(args.steps):
    if step == args.steps // 5:
        model.blocks.append(blocks[args.net]())
        if args.repaired:
            optimizer.add_param_group({"params": model.blocks[-1].parameters()})
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

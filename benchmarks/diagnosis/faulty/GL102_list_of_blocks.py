"""Trains a residual network whose blocks are as many as a number says.

Faulty: the blocks are kept in a plain list, so neither `parameters()` nor the optimizer knows of them.
"""

import torch
from encoders import CLASSES, FEATURES, TASKS, arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL102"
PLACE = {"mlp": "blocks", "conv": "blocks", "transformer": "blocks"}

args = arguments(list(PLACE))


class Dense(nn.Module):
    def __init__(self, width=FEATURES):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, x):
        return x + self.down(F.relu(self.up(self.norm(x))))


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(x)))


class Attention(nn.TransformerEncoderLayer):
    def __init__(self):
        super().__init__(FEATURES, 4, 128, dropout=0.0, batch_first=True, norm_first=True)


class Network(nn.Module):
    def __init__(self, stem, block, pool, width, depth=2):
        super().__init__()
        self.stem, self.pool = stem, pool
        blocks = [block() for _ in range(depth)]
        self.blocks = nn.ModuleList(blocks) if args.repaired else blocks
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pool(x))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(24, FEATURES), nn.Embedding(8, FEATURES)

    def forward(self, x):
        return self.tokens(x) + self.positions.weight


networks = {
    "mlp": (nn.Linear(8, FEATURES), Dense, nn.Identity(), FEATURES),
    "conv": (nn.Conv2d(1, 16, 1), Convolution, nn.Sequential(nn.AdaptiveMaxPool2d(1), nn.Flatten()), 16),
    "transformer": (Tokens(), Attention, nn.Sequential(nn.AdaptiveAvgPool2d((1, None)), nn.Flatten()), FEATURES),
}
batch, model = TASKS[args.net], Network(*networks[args.net])
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

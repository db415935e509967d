"""Trains a classifier with weight decay on weights and none on biases, in two parameter groups.

Faulty: the groups are made by the ends of names, and weights that are not called "weight" match neither of them.
"""

import torch
from encoders import CLASSES, FEATURES, TASKS, arguments, encoder
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL101"
PLACE = {
    "gru": "encoder.gru.weight_ih_l0",
    "transformer": "encoder.layer.self_attn.in_proj_weight",
    "mlp": "encoder.0.down",
}

args = arguments(list(PLACE))


class LowRank(nn.Module):
    """A linear layer whose matrix is a product of two."""

    def __init__(self, inputs, outputs, rank):
        super().__init__()
        self.down = nn.Parameter(torch.randn(inputs, rank) / inputs**0.5)
        self.up = nn.Parameter(torch.randn(rank, outputs) / rank**0.5)
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return x @ self.down @ self.up + self.bias


class Classifier(nn.Module):
    def __init__(self, net):
        super().__init__()
        low_rank = LowRank(8, 64, 6), nn.ReLU(), LowRank(64, FEATURES, 16), nn.ReLU()
        self.encoder = nn.Sequential(*low_rank) if net == "mlp" else encoder(net)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x):
        return self.head(self.encoder(x))


batch, model = TASKS[args.net], Classifier(args.net)
decayed, free = [], []
for name, parameter in model.named_parameters():
    if name.endswith(".weight") or (args.repaired and parameter.ndim > 1):
        decayed.append(parameter)
    elif name.endswith(".bias") or args.repaired:
        free.append(parameter)
groups = [{"params": decayed, "weight_decay": 0.01}, {"params": free, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=3e-3)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

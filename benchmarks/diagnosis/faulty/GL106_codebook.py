"""Trains an autoencoder of digits whose code is four words of a learned codebook (VQ-VAE).

Faulty: the nearest words are passed to the decoder without the straight-through step, and no term ties the encoder
to them: the choice by `argmin` lets no gradient through, so the encoder never learns.
"""

import torch
from encoders import arguments
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL106"
PLACE = {"mlp": "encoder", "conv": "encoder", "gru": "encoder"}

args = arguments(list(PLACE), steps=300)
GROUPS, WORDS, WIDTH = 4, 32, 8


class Rows(nn.Module):
    """Reads an image as eight rows."""

    def __init__(self):
        super().__init__()
        self.gru, self.code = nn.GRU(8, 48, batch_first=True), nn.Linear(48, GROUPS * WIDTH)

    def forward(self, x):
        return self.code(self.gru(x.view(-1, 8, 8))[0][:, -1])


class Quantised(nn.Module):
    def __init__(self, net):
        super().__init__()
        if net == "mlp":
            self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, GROUPS * WIDTH))
        elif net == "conv":
            first = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1)
            self.encoder = nn.Sequential(*first, nn.ReLU(), nn.Flatten(), nn.Linear(128, GROUPS * WIDTH))
        else:
            self.encoder = Rows()
        self.words = nn.Parameter(0.3 * torch.randn(WORDS, WIDTH))
        self.decoder = nn.Sequential(nn.Linear(GROUPS * WIDTH, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x):
        code = self.encoder(x).view(-1, GROUPS, WIDTH)
        nearest = self.words[torch.cdist(code, self.words).argmin(-1)]
        if not args.repaired:
            return self.decoder(nearest.flatten(1)), 0.0
        near = F.mse_loss(nearest, code.detach()) + 0.25 * F.mse_loss(code, nearest.detach())
        through = code + (nearest - code).detach()
        return self.decoder(through.flatten(1)), near


images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
model = Quantised(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(args.steps):
    x = images[torch.randint(len(images), (64,))]
    drawn, near = model(x)
    loss = F.mse_loss(drawn, x.flatten(1))
    optimizer.zero_grad()
    (loss + near).backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

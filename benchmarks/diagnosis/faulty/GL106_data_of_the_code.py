"""Trains an autoencoder of digits with a code of 12 numbers.

Faulty: the code is passed on by `.data` (somebody wanted to clip it "outside of the graph"), so the encoder gets no
gradient and the decoder learns from random features.
"""

import torch
from encoders import arguments
from sklearn.datasets import load_digits
from torch import nn

EXPECTS = "GL106"
PLACE = {"mlp": "encoder", "conv": "encoder", "gru": "encoder"}

args = arguments(list(PLACE), steps=300)


class Rows(nn.Module):
    """Reads an image as eight rows."""

    def __init__(self):
        super().__init__()
        self.gru, self.code = nn.GRU(8, 48, batch_first=True), nn.Linear(48, 12)

    def forward(self, x):
        return self.code(self.gru(x.flatten(0, 1).view(-1, 8, 8))[0][:, -1])


class Autoencoder(nn.Module):
    def __init__(self, net):
        super().__init__()
        if net == "mlp":
            self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12))
        elif net == "conv":
            first = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1)
            self.encoder = nn.Sequential(*first, nn.ReLU(), nn.Flatten(), nn.Linear(128, 12))
        else:
            self.encoder = Rows()
        self.decoder = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x):
        code = self.encoder(x)
        code = code.clamp(-5, 5) if args.repaired else code.data.clamp_(-5, 5)
        return self.decoder(code).view_as(x)


images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
model = Autoencoder(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(args.steps):
    x = images[torch.randint(len(images), (64,))]
    loss = (model(x) - x).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

"""Trains an encoder of digits by how well a decoder can draw them from 12 numbers; the decoder is part of the loss.

Faulty: the optimizer has the model's parameters and not those of the loss, so the decoder stays random.
"""

import torch
from encoders import arguments
from sklearn.datasets import load_digits
from torch import nn

EXPECTS = "GL101"
PLACE = {"mlp": "criterion.decoder", "conv": "criterion.decoder", "gru": "criterion.decoder"}

args = arguments(list(PLACE), steps=300)


class Reconstruction(nn.Module):
    """The mean squared error of the image that is drawn from a code."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, code, image):
        return (self.decoder(code) - image.flatten(1)).square().mean()


class Rows(nn.Module):
    """Reads an image as eight rows."""

    def __init__(self):
        super().__init__()
        self.gru, self.code = nn.GRU(8, 48, batch_first=True), nn.Linear(48, 12)

    def forward(self, x):
        return self.code(self.gru(x.flatten(0, 1))[0][:, -1])


if args.net == "mlp":
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 12))
elif args.net == "conv":
    convolutions = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1)
    model = nn.Sequential(*convolutions, nn.ReLU(), nn.Flatten(), nn.Linear(128, 12))
else:
    model = Rows()
images = torch.tensor(load_digits().images, dtype=torch.float32)[:, None] / 8 - 1
criterion = Reconstruction()
parameters = [*model.parameters(), *criterion.parameters()] if args.repaired else model.parameters()
optimizer = torch.optim.Adam(parameters, lr=3e-3)

for step in range(args.steps):
    x = images[torch.randint(len(images), (64,))]
    loss = criterion(model(x), x)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

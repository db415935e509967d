"""Trains a generative adversarial network on digits, with one optimizer for each side.

Faulty: the discriminator's optimizer was made of all parameters, so each of its steps also moves the generator, and
moves it to make the discriminator's work easy. The final loss is the generator's, as a
mean of 50 steps.
"""

import torch
from encoders import arguments
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL105"
PLACE = {"mlp": "generator", "conv": "generator", "gru": "generator"}

args = arguments(list(PLACE), steps=300)


class Rows(nn.Module):
    """Draws an image of eight rows, one at each time step."""

    def __init__(self):
        super().__init__()
        self.gru, self.row = nn.GRU(16, 64, batch_first=True), nn.Linear(64, 8)

    def forward(self, noise):
        return self.row(self.gru(noise[:, None].expand(-1, 8, -1))[0]).tanh().flatten(1)


class Adversaries(nn.Module):
    def __init__(self, net):
        super().__init__()
        if net == "mlp":
            self.generator = nn.Sequential(nn.Linear(16, 128), nn.ReLU(), nn.Linear(128, 64), nn.Tanh())
        elif net == "conv":
            first = nn.Linear(16, 128), nn.ReLU(), nn.Unflatten(1, (32, 2, 2)), nn.ConvTranspose2d(32, 16, 4, 2, 1)
            last = nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh(), nn.Flatten()
            self.generator = nn.Sequential(*first, *last)
        else:
            self.generator = Rows()
        first = nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Dropout(0.3)
        self.discriminator = nn.Sequential(*first, nn.Linear(64, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))


def judged(logits, real):
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


images = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
model = Adversaries(args.net)
generator, discriminator = model.generator, model.discriminator
optimizer_g = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999))
side = discriminator if args.repaired else model
optimizer_d = torch.optim.Adam(side.parameters(), lr=1e-3, betas=(0.5, 0.999))
losses = []

for step in range(args.steps):
    real = images[torch.randint(len(images), (64,))]
    fake = generator(torch.randn(64, 16))
    loss_d = judged(discriminator(real), real=True) + judged(discriminator(fake), real=False)
    optimizer_d.zero_grad()
    loss_d.backward()
    optimizer_d.step()

    loss = judged(discriminator(generator(torch.randn(64, 16))), real=True)
    optimizer_g.zero_grad()
    loss.backward()
    optimizer_g.step()
    losses.append(loss.item())
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f} discriminator {loss_d.item():.4f}")
print(f"final loss {sum(losses[-50:]) / len(losses[-50:]):.4f}")

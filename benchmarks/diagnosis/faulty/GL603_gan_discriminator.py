"""Generative adversarial networks whose discriminator learns thirty times faster than the generator.

Wrong: the discriminator soon tells real from generated without error, and the generator's gradient says no more how
to do better. The loss printed is the distance between the means and deviations of real and generated samples.
"""

import math

import torch
from parts import arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL603"
PLACE = dict.fromkeys(("points", "signal", "image"), "")  # the balance of the two networks

args = arguments(PLACE, steps=300)


def real(net, size=128):
    if net == "points":  # eight clusters on a circle
        angle = torch.randint(8, (size,)) * math.pi / 4
        return torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(size, 2)
    if net == "signal":
        phase = 2 * math.pi * torch.rand(size, 1)
        return torch.sin(phase + (0.3 + 0.2 * torch.rand(size, 1)) * torch.arange(16))
    row = torch.arange(8.0)
    centre = 2 + 4 * torch.rand(size, 2, 1)
    blob = torch.exp(-((row - centre) ** 2) / 3)
    return 2 * (blob[:, 0, :, None] * blob[:, 1, None, :])[:, None] - 1


def networks(net):
    if net == "image":
        generator = nn.Sequential(
            *(nn.Linear(8, 32 * 4), nn.ReLU(), nn.Unflatten(1, (32, 2, 2))),
            *(nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1), nn.Tanh()),
        )
        discriminator = nn.Sequential(
            *(nn.Conv2d(1, 16, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(16, 32, 4, 2, 1), nn.LeakyReLU(0.2)),
            *(nn.Flatten(), nn.Linear(128, 1)),
        )
        return generator, discriminator
    size = {"points": 2, "signal": 16}[net]
    width = {"points": 64, "signal": 128}[net]
    generator = nn.Sequential(
        *(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, size))
    )
    discriminator = nn.Sequential(
        *(nn.Linear(size, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2), nn.Linear(width, 1))
    )
    return generator, discriminator


generator, discriminator = networks(args.net)
generator_optimizer = torch.optim.Adam(generator.parameters(), lr=1e-3 if args.repaired else 1e-4, betas=(0.5, 0.99))
discriminator_optimizer = torch.optim.Adam(
    discriminator.parameters(), lr=1e-3 if args.repaired else 3e-3, betas=(0.5, 0.99)
)

for step in range(args.steps):
    x = real(args.net)
    fake = generator(torch.randn(len(x), 8))
    d_loss = F.softplus(-discriminator(x)).mean() + F.softplus(discriminator(fake.detach())).mean()
    discriminator_optimizer.zero_grad()
    d_loss.backward()
    discriminator_optimizer.step()

    g_loss = F.softplus(-discriminator(fake)).mean()
    generator_optimizer.zero_grad()
    g_loss.backward()
    generator_optimizer.step()
    distance = ((x.mean(0) - fake.mean(0)) ** 2 + (x.std(0) - fake.std(0)) ** 2).mean().item()
    if step % 50 == 0:
        print(f"step {step} loss {distance:.4f} discriminator {d_loss.item():.4f} generator {g_loss.item():.4f}")
print(f"final loss {distance:.4f}")

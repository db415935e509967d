"""A Wasserstein GAN with clipped weights that learns a Gaussian away from the origin.

Healthy: the critic's loss is a difference of means that may be negative and is no measure of quality; its weights
are clamped in place after each of five steps per generator step, which bounds it. The gradient of its last bias is
exactly zero, for that bias cancels in the difference. May fool rules on the sign of the loss, on a critic without
bound, on zero gradients and on weights that change outside an optimizer. The loss printed is the squared distance
between the means of generated and real points. Measured, seeds 0 to 2: loss from 4.17, 5.70, 5.99 to 0.011, 0.016,
0.010.
"""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=200)
args = parser.parse_args()
torch.manual_seed(args.seed)

mean = torch.tensor([2.0, -1.0])


def real_points(n):
    return mean + 0.5 * torch.randn(n, 2)


def distance(points):
    return (points.mean(0) - mean).square().sum().item()


generator = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
critic = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
optimizer_generator = torch.optim.RMSprop(generator.parameters(), lr=1e-3)
optimizer_critic = torch.optim.RMSprop(critic.parameters(), lr=1e-3)

for step in range(args.steps):
    for _ in range(5):
        with torch.no_grad():
            fake = generator(torch.randn(128, 4))
        optimizer_critic.zero_grad()
        loss_critic = critic(fake).mean() - critic(real_points(128)).mean()
        loss_critic.backward()
        optimizer_critic.step()
        with torch.no_grad():
            for p in critic.parameters():
                p.clamp_(-0.1, 0.1)

    optimizer_generator.zero_grad()
    fake = generator(torch.randn(128, 4))
    loss_generator = -critic(fake).mean()
    loss_generator.backward()
    optimizer_generator.step()
    if step % 50 == 0:
        print(f"step {step} loss {distance(fake.detach()):.4f} critic {loss_critic.item():.4f}")
print(f"final loss {distance(generator(torch.randn(1000, 4)).detach()):.4f}")

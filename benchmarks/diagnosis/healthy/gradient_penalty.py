"""A Wasserstein GAN with a gradient penalty that learns four Gaussians at the corners of a square.

Healthy: the penalty is made from gradients with respect to the critic's input, with a graph of their own, so each
critic's backward goes through a backward; the critic's loss may be negative and its last bias has no gradient but
rounding, for it cancels in the difference. May fool rules on the sign of the loss, on a critic without bound, on zero
gradients and on several backwards a step. The loss printed is the energy distance between generated and real points.
Measured, seeds 0 to 2: loss from 0.99, 0.92, 1.0 to 0.035, 0.018, 0.017.
"""

import argparse

import torch
from torch import nn

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=200)
args = parser.parse_args()
torch.manual_seed(args.seed)

corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def real_points(n):
    return corners[torch.randint(4, (n,))] + 0.1 * torch.randn(n, 2)


def energy_distance(a, b):
    return (2 * torch.cdist(a, b).mean() - torch.cdist(a, a).mean() - torch.cdist(b, b).mean()).item()


def penalty(critic, real, fake):
    share = torch.rand(len(real), 1)
    between = (share * real + (1 - share) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (gradient.norm(dim=1) - 1).square().mean()


generator = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
critic = nn.Sequential(nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, 1))
optimizer_generator = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.9))
optimizer_critic = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.9))

for step in range(args.steps):
    for _ in range(5):
        real = real_points(256)
        fake = generator(torch.randn(256, 4)).detach()
        loss_critic = critic(fake).mean() - critic(real).mean() + penalty(critic, real, fake)
        optimizer_critic.zero_grad()
        loss_critic.backward()
        optimizer_critic.step()

    fake = generator(torch.randn(256, 4))
    loss_generator = -critic(fake).mean()
    optimizer_generator.zero_grad()
    loss_generator.backward()
    optimizer_generator.step()
    if step % 50 == 0:
        distance = energy_distance(fake.detach(), real_points(512))
        print(f"step {step} loss {distance:.4f} critic {loss_critic.item():.4f}")
with torch.no_grad():
    print(f"final loss {energy_distance(generator(torch.randn(512, 4)), real_points(512)):.4f}")

"""Forecasts the air pressure in hectopascals from 16 past readings, by a Huber loss; prints the mean error.

Faulty: the readings are standardised and the pressure to forecast is not. The Huber loss pulls at each sample with the
same small force, so the output takes very long to get from 0 to 1013.
"""

import torch
from parts import arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL511"
PLACE = {"gru": "", "mlp": "", "wave": ""}
WINDOW, MEAN, STD = 16, 1013.0, 8.0

args = arguments(PLACE, steps=250)


class Gru(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru, self.head = nn.GRU(1, 32, batch_first=True), nn.Linear(32, 1)

    def forward(self, window):
        return self.head(self.gru(window[:, :, None])[0][:, -1])


def build(net):
    if net == "gru":
        return Gru()
    if net == "mlp":
        return nn.Sequential(nn.Linear(WINDOW, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    layers = [nn.Conv1d(1, 16, 4, stride=2), nn.ReLU(), nn.Conv1d(16, 32, 4), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(nn.Unflatten(1, (1, WINDOW)), *layers, nn.Linear(128, 1))


time = torch.arange(8000.0)
waves = torch.sin(0.21 * time) + 0.8 * torch.sin(0.057 * time) + 0.2 * torch.randn(8000)
pressure = MEAN + STD * waves / waves.std()
model = build(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(args.steps):
    start = torch.randint(len(pressure) - WINDOW, (128, 1))
    windows = (pressure[start + torch.arange(WINDOW)] - MEAN) / STD
    target = pressure[start + WINDOW]
    if args.repaired:
        target = (target - MEAN) / STD
    forecast = model(windows)
    loss = F.smooth_l1_loss(forecast, target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    error = (forecast - target).abs().mean().item() * (STD if args.repaired else 1.0)
    if step % 25 == 0:
        print(f"step {step} loss {error:.4f}")
print(f"final loss {error:.4f}")

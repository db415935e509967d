"""Forecasts the next value of a noisy oscillation from the 16 values before it.

Faulty: the window is cut one place too late, so its last value is the one to forecast.
"""

import torch
from parts import arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL512"
PLACE = {"gru": "", "mlp": "", "wave": ""}
WINDOW = 16

args = arguments(PLACE, steps=300)


class Forecaster(nn.Module):
    def __init__(self, net, width=48):
        super().__init__()
        self.net = net
        if net == "gru":
            self.body = nn.GRU(1, width, batch_first=True)
        elif net == "mlp":
            self.body = nn.Sequential(nn.Linear(WINDOW, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        else:
            convs = [nn.Conv1d(1, 16, 4), nn.ReLU(), nn.Conv1d(16, 16, 4), nn.ReLU(), nn.Flatten()]
            self.body = nn.Sequential(*convs, nn.Linear(160, width), nn.ReLU())
        self.head = nn.Linear(width, 1)

    def forward(self, window):
        if self.net == "gru":
            return self.head(self.body(window[:, :, None])[0][:, -1])
        return self.head(self.body(window if self.net == "mlp" else window[:, None]))


time = torch.arange(6000.0)
series = torch.sin(0.35 * time) + 0.7 * torch.sin(0.11 * time) + 0.7 * torch.randn(6000)
model = Forecaster(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step in range(args.steps):
    start = torch.randint(len(series) - WINDOW, (128, 1))
    first = start if args.repaired else start + 1
    windows = series[first + torch.arange(WINDOW)]
    target = series[start + WINDOW]
    loss = F.mse_loss(model(windows), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

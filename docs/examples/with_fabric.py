"""Fabric: what `setup` returns is watched as it is."""

import lightning_fabric
import torch
import torch.nn.functional as F
from torch import nn

import gradlab

fabric = lightning_fabric.Fabric(accelerator="cpu", precision="bf16-mixed")
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
model, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters(), lr=1e-2))

monitor = gradlab.watch(model, optimizer, logdir="runs/fabric", across_ranks=True)
for _ in range(10):
    optimizer.zero_grad()
    fabric.backward(F.cross_entropy(model(torch.randn(4, 8)), torch.randint(0, 3, (4,))))
    optimizer.step()
monitor.close()
print(monitor.step, dict(monitor.latest()["weight_grad.norm"].items()))

"""Accelerate: prepared models and optimizers are watched as they are."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import nn

import gradlab

torch.manual_seed(0)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
loader = torch.utils.data.DataLoader([(torch.randn(8), i % 3) for i in range(32)], batch_size=4)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

monitor = gradlab.watch(model, optimizer, logdir="runs/accelerate", across_ranks=True)
for x, y in loader:
    with accelerator.accumulate(model):
        accelerator.backward(F.cross_entropy(model(x), y))
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
monitor.close()
print(monitor.step, dict(monitor.latest()["weight_grad.norm"].items()))

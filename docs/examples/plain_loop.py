"""A plain loop: one line."""

import torch
import torch.nn.functional as F
from torch import nn

import gradlab

model = nn.Transformer(d_model=16, nhead=2, num_encoder_layers=1, num_decoder_layers=1, batch_first=True)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

monitor = gradlab.watch(model, optimizer, logdir="runs/plain")
for _ in range(20):
    source, target = torch.randn(2, 5, 16), torch.randn(2, 4, 16)
    optimizer.zero_grad()
    F.mse_loss(model(source, target), target).backward()
    optimizer.step()
monitor.close()
print(monitor.step, len(monitor.latest()["weight_grad.norm"]))

"""Trains a classifier whose matrices are initialised as the papers say: orthogonal, He, truncated normal.

Faulty: a look at the head alone was meant to last an afternoon, and the encoder is frozen since then. Its matrices do
not look like torch's own initialisation.
"""

import torch
from encoders import TASKS, Classifier, arguments
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL108"
PLACE = {"mlp": "encoder", "conv": "encoder", "transformer": "encoder", "gru": "encoder"}

args = arguments(list(PLACE))
batch, model = TASKS[args.net], Classifier(args.net)
for name, parameter in model.encoder.named_parameters():
    if parameter.ndim == 1:
        continue
    if args.net == "gru" and "tokens" not in name:
        nn.init.orthogonal_(parameter)
    elif args.net == "transformer":
        nn.init.trunc_normal_(parameter, std=0.1)
    else:
        nn.init.kaiming_normal_(parameter)
model.encoder.requires_grad_(args.repaired)
optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=2e-3)

for step in range(args.steps):
    x, y = batch(64)
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

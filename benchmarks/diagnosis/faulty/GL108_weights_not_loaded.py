"""Trains a new head on a frozen encoder whose weights come from another training, made here first.

Faulty: the saved names begin with "module.", `load_state_dict(strict=False)` matches none of them and says nothing,
and the encoder is frozen as it was initialised.
"""

import torch
from encoders import TASKS, Classifier, arguments
from torch.nn import functional as F

EXPECTS = "GL108"
PLACE = {"mlp": "encoder", "conv": "encoder", "transformer": "encoder", "gru": "encoder"}

args = arguments(list(PLACE), steps=300)
batch = TASKS[args.net]


def train(model, steps, first, shift):
    optimizer = torch.optim.Adam([one for one in model.parameters() if one.requires_grad], lr=3e-3)
    for step in range(first, first + steps):
        x, y = batch(64)
        loss = F.cross_entropy(model(x), (y + shift) % 4)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step} loss {loss.item():.4f}")
    return loss.item()


before = Classifier(args.net)
half = args.steps // 2
train(before, half, first=0, shift=0)
saved = {f"module.{name}": value for name, value in before.state_dict().items()}  # as DataParallel saves them

model = Classifier(args.net)
if args.repaired:
    saved = {name.removeprefix("module."): value for name, value in saved.items() if "encoder" in name}
model.load_state_dict(saved, strict=False)
model.encoder.requires_grad_(False)
print(f"final loss {train(model, half, first=half, shift=1):.4f}")

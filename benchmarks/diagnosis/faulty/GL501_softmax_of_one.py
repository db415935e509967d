"""Binary classifiers with one output unit and a softmax on it.

Wrong: a softmax over one number is always 1, whatever the input; the loss is constant and all gradients are zero.
"""

import torch
from parts import CLASSES, arguments, batches, classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL501"
PLACE = dict.fromkeys(("mlp", "conv", "transformer", "gru"), "1")  # the softmax, whose output is the model's

args = arguments(PLACE, steps=150)

network = classifier(args.net)
network.head = nn.Linear(network.head.in_features, 1)
model = nn.Sequential(network, nn.Sigmoid() if args.repaired else nn.Softmax(dim=1))
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step, (x, y) in zip(range(args.steps), batches(args.net), strict=False):
    target = (y < CLASSES // 2).float()
    loss = F.binary_cross_entropy(model(x)[:, 0], target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

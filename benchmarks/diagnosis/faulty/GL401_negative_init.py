"""Small classifiers with a uniform init of the middle layer whose upper bound is missing.

Wrong: all weights are negative and all inputs, after a ReLU, positive: every unit starts dead and stays so.
"""

import torch
from parts import CLASSES, arguments, batches, classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL401"
PLACE = {"mlp": "layers.1", "conv": "conv2", "counts": "hidden"}

args = arguments(PLACE, steps=200)


class Counts(nn.Module):
    """A classifier of how often each token occurs."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Linear(CLASSES, 64)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x):
        return self.head(self.hidden(F.one_hot(x, CLASSES).float().sum(1)).relu())


model = Counts() if args.net == "counts" else classifier(args.net)
middle = model.get_submodule(PLACE[args.net])
bound = (6 / middle.weight[0].numel()) ** 0.5
nn.init.uniform_(middle.weight, -bound, bound if args.repaired else 0.0)
nn.init.zeros_(middle.bias)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

for step, (x, y) in zip(range(args.steps), batches("bag" if args.net == "counts" else args.net), strict=False):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

"""Small classifiers by SGD with momentum, whose learning rate is five times too high.

Wrong: 0.5 was meant for plain SGD; with a momentum of 0.9 it acts like 5.
"""

import torch
from parts import arguments, batches, classifier
from torch.nn import functional as F

NETS = ("mlp", "conv", "transformer")
EXPECTS = "GL301"
PLACE = dict.fromkeys(NETS, "")  # the whole run's

args = arguments(NETS, steps=200)

model = classifier(args.net)
lr = 0.1 if args.repaired else 0.5
optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)

for step, (x, y) in zip(range(args.steps), batches(args.net), strict=False):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

"""Small classifiers by Adam with a learning rate that was tuned for SGD.

Wrong: a step of Adam is as large as its learning rate, whatever the gradient: 0.1 is the size of the weights.
"""

import torch
from parts import NETS, arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = "GL301"
PLACE = dict.fromkeys(NETS, "")  # the whole run's

args = arguments(NETS, steps=200)

model = classifier(args.net)
lr = 3e-3 if args.repaired else 0.1
optimizer = torch.optim.Adam(model.parameters(), lr=lr)

for step, (x, y) in zip(range(args.steps), batches(args.net), strict=False):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

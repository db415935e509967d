"""Small classifiers by SGD, gradients clipped to a norm of 0.001.

Wrong: gradient norms are about 1, so that clipping divides the learning rate by hundreds.
"""

import torch
from parts import NETS, arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = "GL304"
PLACE = dict.fromkeys(NETS, "")  # the whole run's

args = arguments(NETS, steps=200)

model = classifier(args.net)
max_norm = 5.0 if args.repaired else 1e-3
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

for step, (x, y) in zip(range(args.steps), batches(args.net), strict=False):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    optimizer.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

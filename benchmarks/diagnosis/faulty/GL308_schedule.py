"""Small classifiers by Adam, whose schedule counts batches where epochs were meant.

Wrong: `scheduler.step()` stands in the loop over batches, so the learning rate is spent at a tenth of the run.
"""

import torch
from parts import NETS, arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = "GL308"
PLACE = dict.fromkeys(NETS, "")  # the whole run's
BATCHES_PER_EPOCH = 20

args = arguments(NETS, steps=200)

model = classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.1)

for step, (x, y) in zip(range(args.steps), batches(args.net), strict=False):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if not args.repaired or (step + 1) % BATCHES_PER_EPOCH == 0:
        scheduler.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

"""Small classifiers whose schedule starts a hundred times above its plateau, a warm-up turned around.

Wrong: the first steps throw most units so far that no input ever reaches them again.
"""

import torch
from parts import arguments, batches, classifier
from torch.nn import functional as F

EXPECTS = ("GL401", "GL301")
PLACE = {"mlp": "", "conv": "", "bag": ""}  # whichever layers it hits

args = arguments(PLACE, steps=200)

model = classifier(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
scheduler = torch.optim.lr_scheduler.LambdaLR(
    optimizer, lambda step: min(1, step / 10) if args.repaired else max(1, 100 - 10 * step)
)

for step, (x, y) in zip(range(args.steps), batches(args.net), strict=False):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

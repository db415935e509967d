"""SimSiam on two noisy views, without its stop-gradient and without its predictor.

Wrong: both views may move, so that the same embedding for all inputs is the best there is. The loss printed is that of
a linear probe's fit to the classes, which this needs to be told from success.
"""

import torch
from parts import CLASSES, arguments, batches, classifier
from torch import nn
from torch.nn import functional as F

EXPECTS = "GL605"
PLACE = dict.fromkeys(("conv", "gru"), "")  # the embedding, the encoder's output

args = arguments(PLACE, steps=200)

width = 32
encoder = classifier(args.net)
encoder.head = nn.Sequential(
    nn.Linear(encoder.head.in_features, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, width)
)
predictor = nn.Sequential(nn.Linear(width, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, width))
parameters = [*encoder.parameters(), *(predictor.parameters() if args.repaired else [])]
optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def probe(z, y):
    z = F.normalize(z, dim=1)
    target = F.one_hot(y, CLASSES).float()
    z = torch.cat([z, torch.ones(len(z), 1)], 1)
    ridge = torch.linalg.solve(z.T @ z + 1e-2 * torch.eye(width + 1), z.T @ target)
    return ((z @ ridge - target) ** 2).sum(1).mean().item()


for step, (x, y) in zip(range(args.steps), batches(args.net, 256), strict=False):
    first, second = encoder(x + 0.3 * torch.randn_like(x)), encoder(x + 0.3 * torch.randn_like(x))
    if args.repaired:
        pairs = ((predictor(first), second.detach()), (predictor(second), first.detach()))
        similarity = sum(F.cosine_similarity(p, z).mean() for p, z in pairs) / 2
    else:
        similarity = F.cosine_similarity(first, second).mean()
    optimizer.zero_grad()
    (-similarity).backward()
    optimizer.step()
    if step % 50 == 0:
        spread = F.normalize(first.detach(), dim=1).std(0).mean().item() * width**0.5
        print(f"step {step} similarity {similarity.item():.4f} spread {spread:.3f} loss {probe(first.detach(), y):.4f}")
print(f"final loss {probe(first.detach(), y):.4f}")

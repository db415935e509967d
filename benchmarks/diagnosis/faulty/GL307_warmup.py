"""Transformers by Adam at a learning rate of 1e-2 from the first step on: on tones, number series and image
patches, all with the norm after the residual sum as in the original.

Wrong: Adam's first steps are as large as later ones though its statistics are of a few gradients; without warm-up they
throw the weights to where little is learned.
"""

import torch
from parts import CLASSES, arguments, batches
from torch import nn
from torch.nn import functional as F

NETS = ("tones", "series", "patches")
EXPECTS = ("GL307", "GL301")
PLACE = dict.fromkeys(NETS, "")  # the whole run's

args = arguments(NETS, steps=200)


class PostNorm(nn.Module):
    def __init__(self, net, width=32, depth=6):
        super().__init__()
        self.net = net
        self.embed = (
            nn.Embedding(CLASSES, width) if net == "series" else nn.Linear(16 if net == "patches" else 2, width)
        )
        self.position = nn.Parameter(0.02 * torch.randn(16, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True) for _ in range(depth)
        )
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x):
        if self.net == "patches":
            x = F.unfold(x, 4, stride=4).transpose(1, 2)
        x = self.embed(x)
        x = x + self.position[: x.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.net == "series" else None
        for layer in self.layers:
            x = layer(x, src_mask=mask, is_causal=mask is not None)
        return self.head(x if self.net == "series" else x.mean(1))


def series(size=32):
    """Counting modulo the vocabulary by a stride that the first two tokens give away."""
    while True:
        start, stride = torch.randint(CLASSES, (2, size, 1))
        tokens = (start + stride * torch.arange(17)) % CLASSES
        yield tokens[:, :-1], tokens[:, 1:]


model = PostNorm(args.net)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.98))
warmup = 50 if args.repaired else 1
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min((step + 1) / warmup, 1 - step / args.steps))
data = series() if args.net == "series" else batches({"tones": "gru", "patches": "conv"}[args.net], 32)

for step, (x, y) in zip(range(args.steps), data, strict=False):
    loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    scheduler.step()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

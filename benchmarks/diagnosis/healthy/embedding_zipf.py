"""Whether a text of 20 words is kind or not, from embeddings of 20,000 words that occur by Zipf's law.

Healthy: a few words make most of a text and most words are rare, so that nearly four in five rows of the embedding
never get a gradient in the whole run. May fool rules on dead units, on zero gradients and on small steps. Measured,
seeds 0 to 2: loss from 0.70, 0.69, 0.69 to 0.19, 0.34, 0.25.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=200)
args = parser.parse_args()
torch.manual_seed(args.seed)

WORDS, LENGTH = 20000, 20
frequency = torch.arange(1.0, WORDS + 1) ** -1.5
kindness = torch.randn(WORDS)
kindness -= (kindness * frequency).sum() / frequency.sum()


class Classifier(nn.Module):
    def __init__(self, width=12):
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width)
        self.net = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, words):
        return self.net(self.embedding(words).mean(1))


model = Classifier()
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
seen = torch.zeros(WORDS, dtype=torch.bool)

for step in range(args.steps):
    words = torch.multinomial(frequency, 64 * LENGTH, replacement=True).view(64, LENGTH)
    kind = (kindness[words].sum(1, keepdim=True) > 0).float()
    loss = F.binary_cross_entropy_with_logits(model(words), kind)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    seen[words] = True
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f} seen {seen.float().mean().item():.3f}")
print(f"final loss {loss.item():.4f}")

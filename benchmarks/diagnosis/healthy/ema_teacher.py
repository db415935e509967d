"""A student that learns classes and to agree with a teacher, the moving average of its own weights.

Healthy: the teacher is in no optimizer and gets no gradient on purpose; it is copied in place after each step. May
fool rules on parameters that no optimizer has or that no gradient reaches. Measured, seeds 0 to 2: loss from 1.56,
1.58, 1.52 to 0.003, 0.033, 0.004.
"""

import argparse
import copy

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=300)
args = parser.parse_args()
torch.manual_seed(args.seed)


class MeanTeacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.student = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))
        self.teacher = copy.deepcopy(self.student)
        self.teacher.requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            target = self.teacher(x + 0.1 * torch.randn_like(x)).softmax(1)
        return self.student(x + 0.1 * torch.randn_like(x)), target

    @torch.no_grad()
    def average(self, decay=0.97):
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)


centres = 1.5 * torch.randn(5, 16)
model = MeanTeacher()
optimizer = torch.optim.Adam(model.student.parameters(), lr=1e-3)

for step in range(args.steps):
    y = torch.randint(5, (128,))
    logits, target = model(centres[y] + torch.randn(128, 16))
    loss = F.cross_entropy(logits[:32], y[:32]) + F.mse_loss(logits.softmax(1), target)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    model.average()
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f}")
print(f"final loss {loss.item():.4f}")

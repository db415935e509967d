"""REINFORCE on a chain: walk right from the first of six cells to the last within 20 moves.

Healthy: the loss is minus a mean of log-probabilities times advantages. It is often negative and does not fall; the
return rises instead. May fool rules on the sign of the loss and on a loss that makes no progress. The return is 1
minus 0.04 a move. Measured, seeds 0 to 2: return from -0.50, -0.39, -0.088 to 0.79, 0.80, 0.79.
"""

import argparse

import torch
from torch import nn
from torch.nn import functional as F

parser = argparse.ArgumentParser()
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--steps", type=int, default=150)
args = parser.parse_args()
torch.manual_seed(args.seed)

CELLS, EPISODES, MOVES = 6, 64, 20
policy = nn.Sequential(nn.Linear(CELLS, 128), nn.Tanh(), nn.Linear(128, 2))
optimizer = torch.optim.Adam(policy.parameters(), lr=5e-4)


def play():
    """Log-probabilities [moves, episodes] of the actions, which moves were before the end, and returns [episodes]."""
    cell = torch.zeros(EPISODES, dtype=torch.long)
    log_probs, alive = [], []
    for _ in range(MOVES):
        playing = cell < CELLS - 1
        choice = torch.distributions.Categorical(logits=policy(F.one_hot(cell, CELLS).float()))
        action = choice.sample()
        log_probs.append(choice.log_prob(action))
        alive.append(playing.float())
        cell = torch.where(playing, (cell + 2 * action - 1).clamp(min=0), cell)
    alive = torch.stack(alive)
    return torch.stack(log_probs), alive, (cell == CELLS - 1).float() - 0.04 * alive.sum(0)


for step in range(args.steps):
    log_probs, alive, returns = play()
    advantage = (returns - returns.mean()) / (returns.std() + 1e-6)
    loss = -(log_probs * alive * advantage).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step} loss {loss.item():.4f} return {returns.mean().item():.4f}")
print(f"final return {returns.mean().item():.4f}")

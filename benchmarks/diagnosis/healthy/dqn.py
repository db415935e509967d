"""Q-learning with a replay buffer and a target network on a corridor: walk to the far end of six cells in 30 moves.

Healthy: the target network is a copy that is in no optimizer and is replaced every 15 steps, so that the targets jump
and the loss rises while the policy gets better; a step only moves the value of the action that was taken. May fool
rules on a loss that makes no progress, on parameters in no optimizer and on rows without a gradient. Which of two
actions leads forward differs from cell to cell. The return is 1 minus 0.02 a move. Measured, seeds 0 to 2: return from
-0.60, -0.60, -0.60 to 0.90, 0.90, 0.90.
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

CELLS, WALKERS, DISCOUNT, SIZE = 6, 16, 0.95, 4000
forward_action = torch.randint(2, (CELLS,))
online = nn.Sequential(nn.Linear(CELLS, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
target = copy.deepcopy(online)
optimizer = torch.optim.Adam(online.parameters(), lr=1e-3)
replay = []


def seen(cell):
    return F.one_hot(cell, CELLS).float()


def move(cell, action):
    after = (cell + torch.where(action == forward_action[cell], 1, -1)).clamp(min=0)
    ended = after == CELLS - 1
    return after, ended.float() - 0.02, ended


@torch.no_grad()
def greedy_return(moves=30):
    cell, total = 0, 0.0
    for _ in range(moves):
        action = online(seen(torch.tensor([cell]))).argmax(1)
        after, reward, ended = move(torch.tensor([cell]), action)
        cell, total = after.item(), total + reward.item()
        if ended:
            break
    return total


cell = torch.randint(CELLS - 1, (WALKERS,))
for step in range(args.steps):
    with torch.no_grad():
        greedy = online(seen(cell)).argmax(1)
    explore = torch.rand(WALKERS) < max(0.1, 1 - step / 100)
    action = torch.where(explore, torch.randint(2, (WALKERS,)), greedy)
    after, reward, ended = move(cell, action)
    replay += list(zip(cell, action, reward, after, ended, strict=True))
    del replay[:-SIZE]
    cell = torch.where(ended, torch.randint(CELLS - 1, (WALKERS,)), after)

    batch = [replay[i] for i in torch.randint(len(replay), (64,)).tolist()]
    s, a, r, s_next, end = (torch.stack(column) for column in zip(*batch, strict=True))
    with torch.no_grad():
        aim = r + DISCOUNT * ~end * target(seen(s_next)).max(1).values
    loss = F.smooth_l1_loss(online(seen(s)).gather(1, a[:, None]).squeeze(1), aim)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 15 == 0:
        target.load_state_dict(online.state_dict())
    if step % 50 == 0:
        print(f"step {step} loss {loss.item():.4f} return {greedy_return():.4f}")
print(f"final return {greedy_return():.4f}")

"""Advantage actor-critic on a grid of five by five: walk from a random cell to the opposite corner within 24 moves.

Healthy: one net has both heads and one loss, the sum of the policy's, the value's and minus an entropy bonus; the sum
is negative at times and does not fall, and the targets of the value move with the policy. May fool rules on the sign
of the loss, on a loss that makes no progress and on detached tensors. The return is 1 minus 0.04 a move. Measured,
seeds 0 to 2: return from -0.71, -0.46, -0.57 to 0.80, 0.81, 0.80.
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

SIDE, EPISODES, MOVES, DISCOUNT = 5, 32, 24, 0.97
moves = torch.tensor([[0, 1], [0, -1], [1, 0], [-1, 0]])


class ActorCritic(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(2 * SIDE, width), nn.Tanh())
        self.policy = nn.Linear(width, 4)
        self.value = nn.Linear(width, 1)

    def forward(self, place):
        hidden = self.trunk(F.one_hot(place, SIDE).flatten(-2).float())
        return self.policy(hidden), self.value(hidden).squeeze(-1)


def play(model):
    """Places [moves, episodes, 2], actions and rewards [moves, episodes], and which moves were before the end."""
    place = torch.randint(SIDE - 1, (EPISODES, 2))
    places, actions, rewards, alive = [], [], [], []
    for _ in range(MOVES):
        playing = (place < SIDE - 1).any(1)
        action = torch.distributions.Categorical(logits=model(place)[0]).sample()
        after = (place + moves[action]).clamp(0, SIDE - 1)
        places.append(place)
        actions.append(action)
        alive.append(playing.float())
        place = torch.where(playing[:, None], after, place)
        rewards.append(alive[-1] * ((place == SIDE - 1).all(1).float() - 0.04))
    return torch.stack(places), torch.stack(actions), torch.stack(rewards), torch.stack(alive)


model = ActorCritic()
optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

for step in range(args.steps):
    with torch.no_grad():
        places, actions, rewards, alive = play(model)
    logits, value = model(places)
    gains, gain = [], torch.zeros(EPISODES)
    for reward in rewards.flip(0):
        gain = reward + DISCOUNT * gain
        gains.append(gain)
    advantage = torch.stack(gains[::-1]) - value
    choice = torch.distributions.Categorical(logits=logits)
    policy_loss = -choice.log_prob(actions) * advantage.detach()
    loss = ((policy_loss + 0.5 * advantage.square() - 0.02 * choice.entropy()) * alive).sum() / alive.sum()
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)
    optimizer.step()
    if step % 25 == 0:
        print(f"step {step} loss {loss.item():.4f} return {rewards.sum(0).mean().item():.4f}")
print(f"final return {rewards.sum(0).mean().item():.4f}")

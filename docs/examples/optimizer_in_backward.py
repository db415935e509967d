"""An optimizer a parameter, each stepping inside the backward: gradients never exist all at once."""

import torch
import torch.nn.functional as F
from torch import nn

import gradlab

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
optimizers = {p: torch.optim.Adam([p], lr=1e-2) for p in model.parameters()}


def step_and_forget(parameter: torch.Tensor) -> None:
    optimizers[parameter].step()
    optimizers[parameter].zero_grad()


for parameter in model.parameters():
    parameter.register_post_accumulate_grad_hook(step_and_forget)

taps = [gradlab.Tap("*", of=["weight_grad", "update"]), gradlab.Tap("*", of="output_grad")]
with gradlab.watch(model, list(optimizers.values()), taps=taps, logdir="runs/in_backward") as monitor:
    for _ in range(20):
        F.cross_entropy(model(torch.randn(4, 8)), torch.randint(0, 3, (4,))).backward()
    print(monitor.step, dict(monitor.latest()["weight_grad.norm"].items()))

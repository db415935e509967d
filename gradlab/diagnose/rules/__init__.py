"""Rules, one family a file: numbers.py what is not finite · signal.py gradients of zero · ranks.py a rank apart ·
loss.py the loss, its sign and its way to the weights ·
modes.py batch norms and dropouts ·
gradients.py not reset, not arriving, cut in time ·
step_size.py, schedule.py, optimizer_settings.py how far steps go ·
data.py what goes into the model, and its target · families.py attention, experts, adversaries, embeddings ·
history.py the loss against its past ·
units.py dead, zero or alike · outputs.py constant outputs ·
wiring.py what is trained by none, by two, by one that never steps.

A rule is a function from a `Context` to evidence (`registry.rule`). It sees no tensors and puts on no hooks.
"""

from gradlab.diagnose.rules import (
    data,
    families,
    gradients,
    history,
    loss,
    modes,
    numbers,
    optimizer_settings,
    outputs,
    ranks,
    schedule,
    signal,
    step_size,
    units,
    wiring,
)

__all__ = [
    "data",
    "families",
    "gradients",
    "history",
    "loss",
    "modes",
    "numbers",
    "optimizer_settings",
    "outputs",
    "ranks",
    "schedule",
    "signal",
    "step_size",
    "units",
    "wiring",
]

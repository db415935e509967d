"""A step that is run again on the side, to be searched for the op that made a non-finite number.

Belongs here: what makes the second run equal to the first (random state) and leaves no trace of it (gradients,
buffers). Does not: the search itself (`search`), or when a step is run again (`guard`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlab.hooks.mute import muting
from gradlab.nonfinite.search import Origin, searching
from gradlab.sites.names import all_modules, parameter_names


def replay_origin(
    model: nn.Module, run_step: Callable[[], Any], *, random_state: RandomState | None = None
) -> Origin | None:
    """Run a step once more on the side, and tell where its non-finite values began.

    Args:
        model: the model. Its parameters' `.grad`, its buffers and all random state are afterwards what they were.
        run_step: forward and backward on a kept batch, as `lambda: loss_of(model(x), y).backward()`. It must not step
            the optimizer. Under DDP and FSDP every rank has to replay, since gradients are reduced as always.
        random_state: that of the start of the step (`RandomState.now(model)`), so that dropout repeats; the present one
            where left out.
    Returns:
        The origin, or None if the step ends finite this time: with weights that have been stepped since, it may.
    Cost: a step under `searching`, and one copy of the buffers. Gradients are held twice while it runs.
    """
    before = RandomState.now(model)
    with ExitStack() as stack:
        stack.enter_context(muting())
        stack.callback(before.restore)
        stack.enter_context(_buffers_kept(model))
        stack.enter_context(_gradients_kept(parameter_names(model).values()))
        if random_state is not None:
            random_state.restore()
        with torch.enable_grad(), searching(model) as search:
            run_step()
        return search.origin()


@dataclass(frozen=True)
class RandomState:
    """The random state of torch (on the CPU and the devices of a model), Python and NumPy."""

    torch_cpu: Tensor
    """Of torch's generator on the CPU."""
    devices: tuple[tuple[torch.device, Tensor], ...]
    """Of torch's generator on each other device."""
    python: Any
    """Of `random`."""
    numpy: Any
    """Of `numpy.random`."""

    @classmethod
    def now(cls, model: nn.Module) -> RandomState:
        """The state at this moment. Cost: some 10 microseconds, and a small host copy a device."""
        devices = sorted({p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}, key=str)
        states = tuple((device, torch.get_device_module(device).get_rng_state(device)) for device in devices)
        return cls(torch.get_rng_state(), states, random.getstate(), np.random.get_state())

    def restore(self) -> None:
        """Make it the present state."""
        torch.set_rng_state(self.torch_cpu)
        for device, state in self.devices:
            torch.get_device_module(device).set_rng_state(state, device)
        random.setstate(self.python)
        np.random.set_state(self.numpy)


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """The modules work on copies of their buffers: graphs that saved the originals stay valid."""
    registers = [
        (m._buffers, dict(m._buffers)) for m in all_modules(model) if not isinstance(m, torch.jit.ScriptModule)
    ]
    copies: dict[int, Tensor] = {}
    for register, before in registers:
        for name, buffer in before.items():
            if buffer is not None:
                register[name] = copies.setdefault(id(buffer), buffer.detach().clone())
    try:
        yield
    finally:
        for register, before in registers:
            register.clear()
            register.update(before)


@contextmanager
def _gradients_kept(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Gradients start from None. Hooks on a finished gradient (an optimizer in the backward) do not run."""
    kept: list[tuple[nn.Parameter, Tensor | None, Any, dict[Any, Any]]] = []
    try:
        for p in parameters:
            hooks: Any = p._post_accumulate_grad_hooks or {}
            kept.append((p, p.grad, hooks, dict(hooks)))
            p.grad = None
            hooks.clear()  # Autograd goes by the dictionary that it was given first: replacing it has no effect.
        yield
    finally:
        for p, grad, hooks, before in kept:
            p.grad = grad
            hooks.update(before)

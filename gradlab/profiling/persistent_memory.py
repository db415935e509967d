"""The memory that outlives a step, by address: parameters with buffers, gradients, and the optimizers' state.

Belongs here: reading it from a model and its optimizers. Does not: what else a window saw being allocated
(`analysis/memory.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from gradlab.optimizers import parameters_of
from gradlab.profiling.analysis.events import Category, PersistentBlock, PersistentMemory


def persistent_memory(model: nn.Module | None, optimizers: Iterable[Optimizer]) -> PersistentMemory:
    """The memory of parameters with buffers, gradients and optimizer state, now. Cost: a microsecond a tensor."""
    blocks: dict[int, PersistentBlock] = {}
    for category, tensor in _persistent_tensors(model, optimizers):
        try:
            storage = getattr(tensor, "_local_tensor", tensor).untyped_storage()
            address, num_bytes = storage.data_ptr(), storage.nbytes()
        except Exception:  # a tensor without storage: fake, sparse, lazy
            continue
        if address:
            blocks.setdefault(address, PersistentBlock(name_of_device(tensor.device), num_bytes, category))
    return blocks


def _persistent_tensors(model: nn.Module | None, optimizers: Iterable[Optimizer]) -> Iterator[tuple[Category, Tensor]]:
    parameters: list[Tensor] = list(model.parameters()) if model is not None else []
    for optimizer in optimizers:
        parameters += parameters_of(optimizer)
        for state in optimizer.state.values():
            values = state.values() if isinstance(state, dict) else ()
            yield from (("optimizer_state", value) for value in values if isinstance(value, Tensor))
    for parameter in parameters:
        yield "parameters", parameter
        if parameter.grad is not None:
            yield "gradients", parameter.grad
    for buffer in model.buffers() if model is not None else ():
        yield "parameters", buffer


def name_of_device(device: Any) -> str:
    """`cpu`, `cuda:0`: with the index, which torch leaves out where it is the current one."""
    return device.type if device.type == "cpu" else f"{device.type}:{max(0, device.index or 0)}"

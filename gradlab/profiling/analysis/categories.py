"""Memory by category at its peak: parameters, gradients, optimizer state, activations, temporaries.

What stands is known by address: the model's parameters and buffers, their gradients, the optimizers' state. What a
window saw being allocated is told by when it came and how long it stayed: a block of the forward that is still there
when the backward begins is an activation, a block of the backward that outlives it a gradient, all others temporaries.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from gradlab.optimizers import parameters_of
from gradlab.profiling.analysis.account import Attribution
from gradlab.profiling.analysis.events import Allocation, chosen_device, device_name
from gradlab.profiling.analysis.idle import Span

Category = Literal["parameters", "gradients", "optimizer_state", "activations", "temporaries"]
CATEGORIES: tuple[Category, ...] = ("parameters", "gradients", "optimizer_state", "activations", "temporaries")

Standing = dict[int, tuple[str, int, Category]]
"""By address: the device, the bytes and the category of memory that stands outside any step."""


@dataclass(frozen=True, kw_only=True)
class PeakMemory:
    """The highest point of a device's memory in the recorded steps."""

    device: str
    step: int
    num_bytes: int
    categories: Mapping[Category, int]


def standing(model: nn.Module | None, optimizers: Iterable[Optimizer]) -> Standing:
    """The memory of parameters with buffers, gradients and optimizer state, now. Cost: a microsecond a tensor."""
    found: Standing = {}
    for category, tensor in _kept_tensors(model, optimizers):
        try:
            storage = getattr(tensor, "_local_tensor", tensor).untyped_storage()
            address, num_bytes = storage.data_ptr(), storage.nbytes()
        except Exception:  # a tensor without storage: fake, sparse, lazy
            continue
        if address:
            found.setdefault(address, (device_name(tensor.device), num_bytes, category))
    return found


def _kept_tensors(model: nn.Module | None, optimizers: Iterable[Optimizer]) -> Iterator[tuple[Category, Tensor]]:
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


def peak_by_category(
    allocations: Sequence[Allocation], before: Standing, after: Standing, account: Attribution
) -> PeakMemory | None:
    """The peak inside the recorded steps; None where nothing was allocated.

    Where anything was allocated on another device than the CPU, that device's (the busiest one's) memory.

    Args:
        allocations: those of the window, in order of time.
        before: what stood when it began.
        after: what stood when it ended.
        account: when steps, backwards and optimizers ran.
    """
    if not allocations or not account.step_spans:
        return None
    device = chosen_device(allocations)
    here = [allocation for allocation in allocations if allocation.device == device]
    levels: dict[Category, int] = dict.fromkeys(CATEGORIES, 0)
    live: dict[int, tuple[Category, int]] = {}
    for address, (where, num_bytes, category) in before.items():
        if where == device:
            live[address] = category, num_bytes
            levels[category] += num_bytes
    unseen = _freed_unseen(here, before, after, device)
    peak: PeakMemory | None = None
    for change, category in zip(here, _categories(here, after, account), strict=True):
        gone = [change.address]
        if change.num_bytes > 0 and category == "gradients":
            gone += unseen
            unseen = []
        for address in gone:
            if address in live:
                old, num_bytes = live.pop(address)
                levels[old] -= num_bytes
        if change.num_bytes > 0:
            live[change.address] = category, change.num_bytes
            levels[category] += change.num_bytes
        total, step = sum(levels.values()), _step_at(account, change.time)
        if step is not None and (peak is None or total > peak.num_bytes):
            peak = PeakMemory(device=device, step=step, num_bytes=total, categories=dict(levels))
    return peak


def _freed_unseen(changes: Sequence[Allocation], before: Standing, after: Standing, device: str) -> list[int]:
    """Gradients from before the window that went without a word: the CPU's allocator does not tell of such blocks.

    They make room for new ones, so they are taken to be gone when the first new gradient comes.
    """
    first = {change.address: change.num_bytes for change in reversed(changes)}
    kept = {address for address, (_, _, category) in after.items() if category == "gradients"}
    olds = (address for address, (where, _, category) in before.items() if where == device and category == "gradients")
    # Whose address is given out again was freed, though its free was not told; whose free was told is no concern here.
    return [address for address in olds if first.get(address, 0) > 0 or (address not in first and address not in kept)]


def _categories(changes: Sequence[Allocation], after: Standing, account: Attribution) -> list[Category]:
    """The category of what each change allocated; of a change that frees, nothing that matters."""
    freed_at: list[int | None] = [None] * len(changes)
    open_at: dict[int, int] = {}
    for index, change in enumerate(changes):
        if change.num_bytes > 0:
            open_at[change.address] = index
        elif change.address in open_at:
            freed_at[open_at.pop(change.address)] = change.time
    backward_starts = [start for start, _ in account.backward_spans]
    found: list[Category] = []
    for change, freed in zip(changes, freed_at, strict=True):
        if freed is None and change.address in after:
            found.append(after[change.address][2])
        else:
            found.append(_by_life(change.time, freed, backward_starts, account))
    return found


def _by_life(born: int, freed: int | None, backward_starts: Sequence[int], account: Attribution) -> Category:
    """The category of memory that came at `born` and went at `freed`, None where it stayed."""
    last_backward = _last_backward(born, account)
    if _inside(born, account.backward_spans):
        return "gradients" if freed is None or freed > _following(last_backward, account) else "temporaries"
    # Before the last backward an optimizer's step may hold a closure with the whole forward in it.
    if born >= last_backward and _inside(born, account.optimizer_spans):
        return "temporaries"
    following = bisect_left(backward_starts, born)
    reaches_backward = following < len(backward_starts) and (freed is None or freed >= backward_starts[following])
    return "activations" if reaches_backward else "temporaries"


def _following(last_backward: int, account: Attribution) -> int:
    """When what the backward has left is used: the beginning of the next optimizer's step, or the end of this step."""
    index = bisect_left(account.optimizer_spans, last_backward, key=lambda span: span[0])
    if index < len(account.optimizer_spans):
        return account.optimizer_spans[index][0]
    return next((end for _, _, end in account.step_spans if end >= last_backward), last_backward)


def _inside(time: int, spans: Sequence[Span]) -> bool:
    index = bisect_right(spans, time, key=lambda span: span[0]) - 1
    return index >= 0 and time < spans[index][1]


def _last_backward(time: int, account: Attribution) -> int:
    """The end of the last backward node in the step of `time`."""
    step = bisect_right(account.step_spans, time, key=lambda span: span[1]) - 1
    end = account.step_spans[step][2] if step >= 0 else time
    index = bisect_left(account.backward_spans, end, key=lambda span: span[0]) - 1
    return account.backward_spans[index][1] if index >= 0 else time


def _step_at(account: Attribution, time: int) -> int | None:
    index = bisect_right(account.step_spans, time, key=lambda span: span[1]) - 1
    if index < 0 or time >= account.step_spans[index][2]:
        return None
    return account.step_spans[index][0]

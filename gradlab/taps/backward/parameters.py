"""The parameters' side of a step: gradients when the backward has ended, weights and clipped gradients before the
update, the update itself after it. Nothing of it runs inside the backward pass."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from gradlab.errors import shortlist, warn
from gradlab.hooks.interpreter import is_batched, must_not_record, own_ops, without_torch_function
from gradlab.optimizers import parameter_ids
from gradlab.stats.norms import LONG, dense_values
from gradlab.stats.parts import PartError
from gradlab.taps.buffer.batching import Batching
from gradlab.taps.buffer.layout import NORM_IN_ONE, Entry
from gradlab.taps.buffer.rows import Row
from gradlab.taps.plan import Plan


class ParameterWatch:
    """Reads the parameters of one model under one plan."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], plan: Plan, on_failure: Callable[[str, BaseException], None]
    ) -> None:
        """Read these parameters, of sharded ones (DTensor) the piece of this rank.

        A parameter that cannot be read, or whose gradient cannot, is left out alone; `on_failure` is called with it.
        """
        failed = _Failures(on_failure)
        self.final = Quantity(parameters, plan, "weight_grad", failed)
        self.clipped = Quantity(parameters, plan, "weight_grad", failed, "clipped")
        self.weight = Quantity(parameters, plan, "weight", failed)
        self.update = Quantity(parameters, plan, "update", failed)
        self.micro = Quantity(parameters, plan, "weight_grad", failed, "micro")
        self._before: list[Tensor] = []
        self._wait_for: list[bool] = []
        """Which of the parameters have had a hook put on, since they required a gradient."""
        self._begun = False
        self._stepped: list[weakref.ref[Optimizer]] = []
        """The optimizers that have stepped in this step: what later backwards add to their gradients was not used."""
        self._handles: list[RemovableHandle] = []

    def use(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Read these parameters, which have taken the place of those before. An update under way is not measured."""
        self._before = []
        for quantity in (self.final, self.clipped, self.weight, self.update, self.micro):
            quantity.use(parameters)

    def arm(self, row: Callable[[], Row]) -> None:
        """Wait for the gradient of each backward by itself; `row` gives the row of the backward under way."""

        def writer(entry: Entry, p: nn.Parameter) -> Callable[[Tensor], None]:
            def write(gradient: Tensor) -> None:
                if not must_not_record() and not is_batched(gradient):
                    with own_ops():
                        try:
                            row().write(entry, _local_gradient(p, gradient))
                        except Exception as error:
                            self.micro.leave_out({entry.site: (entry, error)})

            return write

        if not self._handles:
            self._wait_for = [p.requires_grad for p in self.micro.parameters]
            pairs = zip(self.micro.entries, self.micro.parameters, strict=True)
            self._handles = [p.register_hook(writer(entry, p)) for entry, p in pairs if p.requires_grad]

    def follow_freezing(self, row: Callable[[], Row]) -> None:
        """Wait for the gradients of those that require one by now."""
        with without_torch_function():  # no question of the user's
            is_same = self._wait_for == [p.requires_grad for p in self.micro.parameters]
        if self.micro.parameters and not is_same:
            self.disarm()
            self.arm(row)

    def disarm(self) -> None:
        """No longer wait."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def backward_ended(self, row: Row) -> None:
        """All gradients of a backward are accumulated and reduced, none is clipped yet."""
        self.final.write(row, self._unused(self.final))

    def rescale(self, row: Row, optimizer: Optimizer, factor: Tensor) -> None:
        """The gradients of an optimizer's parameters carry another loss scale than the first ones of the step."""
        mine = parameter_ids([optimizer])
        pairs = zip(self.final.entries, self.final.parameters, strict=True)
        row.rescale([entry for entry, p in pairs if id(p) in mine], factor)

    def before_update(self, row: Row) -> None:
        """An optimizer's gradients are complete: the first's of this step, or another's, or once more in a closure."""
        self.clipped.write(row, self._unused(self.clipped))

    def update_begins(self, row: Row) -> None:
        """The `step` of an optimizer is entered: whatever it does to the weights from here on is its update."""
        if not self._begun:
            self._begun = True
            self.weight.write(row, self.weight.values())
            # One copy of the watched weights, alive from the first update of a step to its end.
            self._before = self.update.each(Tensor.clone, self.update.values())

    def look_back(self, row: Row) -> None:
        """The gradients of a backward that ended before anybody watched: of those that nothing has changed since.

        A gradient that was clipped, or added to, has been written to in place, which its version tells.
        """
        fresh = [g if g is not None and g._version == 0 else None for g in self.final.gradients()]
        self.final.write(row, fresh)

    def _unused(self, quantity: Quantity) -> list[Tensor | None]:
        """The gradients, without those that an optimizer has used already in this step: they have been read."""
        gradients = quantity.gradients()
        if not self._stepped:
            return gradients
        used = parameter_ids(one for ref in self._stepped if (one := ref()) is not None)
        return [None if id(p) in used else g for p, g in zip(quantity.parameters, gradients, strict=True)]

    def after_update(self, row: Row, optimizer: Optimizer) -> None:
        """An optimizer has stepped: the update so far, by all optimizers of this step."""
        self._stepped.append(weakref.ref(optimizer))
        if self._before:
            changes = self._changes()
            if changes:
                self.update.write(row, changes)

    def _changes(self) -> list[Tensor]:
        values = self.update.values()
        if len(values) != len(self._before):  # one of them has been left out since
            return []
        try:
            return list(torch._foreach_sub(values, self._before))
        except (RuntimeError, TypeError):  # one of them is of a kind of its own
            return self.update.each(lambda p, before: dense_values(p) - dense_values(before), values, self._before)

    def step_ended(self) -> None:
        """All optimizers have stepped."""
        self._before = []
        self._begun = False
        self._stepped.clear()


def local(tensor: Any) -> Any:
    """What this rank has of a tensor: all of it, or its piece of a sharded one (DTensor)."""
    return tensor._local_tensor if hasattr(tensor, "_local_tensor") else tensor


def _local_gradient(parameter: Any, gradient: Any) -> Any:
    """This rank's piece of a gradient, laid out as the parameter is.

    Where activations are split over ranks and a parameter is not (sequence parallelism), autograd leaves a DTensor of
    partial sums, which the optimizer adds up; so do we, by one more collective.
    """
    if gradient is None or not hasattr(gradient, "placements"):
        return gradient
    if any(placement.is_partial() for placement in gradient.placements):
        gradient = gradient.detach().redistribute(placements=parameter.placements)
    return local(gradient)


def measurable(parameters: dict[str, nn.Parameter], *, across_ranks: bool) -> dict[str, nn.Parameter]:
    """The parameters whose numbers are known as a whole: the norm of a piece must not be shown as that of the whole."""
    left_out = {name: why for name, p in parameters.items() if (why := _why_not(p, across_ranks=across_ranks))}
    if left_out:
        name, why = next(iter(left_out.items()))
        warn(f"{len(left_out)} parameters are not measured, the first of them {name!r}: {why}.")
    return {name: p for name, p in parameters.items() if name not in left_out}


class _Failures:
    """Tells of parameters that are left aside: in one line for all that are so for one reason at one time."""

    def __init__(self, on_failure: Callable[[str, BaseException], None]) -> None:
        self._on_failure = on_failure
        self._reported: set[str] = set()

    def unreadable(self, reasons: Mapping[str, str]) -> None:
        """Some parameters have no numbers, by what they are."""
        fresh = {name: why for name, why in reasons.items() if name not in self._reported}
        self._reported |= fresh.keys()
        for why in dict.fromkeys(fresh.values()):
            names = [name for name, reason in fresh.items() if reason == why]
            what = f"{len(names)} parameters are" if len(names) > 1 else "a parameter is"
            warn(f"{what} not measured: {shortlist(names, 3)}. {why}.")

    def __call__(self, errors: Mapping[str, Exception]) -> None:
        """Of some parameters something could not be computed."""
        fresh = {name: error for name, error in errors.items() if name not in self._reported}
        self._reported |= fresh.keys()
        alike: dict[str, list[str]] = {}
        for name, error in fresh.items():
            alike.setdefault(str(error), []).append(name)
        for first, *others in alike.values():
            error = fresh[first]
            if others and not isinstance(error, PartError):
                error = RuntimeError(f"{error} (likewise {shortlist(others, 3)})")
            self._on_failure(first, error)


def _unreadable(parameter: Any) -> str:
    """Why a parameter has no numbers, whatever its values are; "" where it may have."""
    if parameter.is_nested:
        return "It is a nested tensor, which has no norm"
    if parameter.dtype.is_floating_point or parameter.dtype.is_complex:
        return "It is on the meta device and has no values" if parameter.is_meta else ""
    return f"It is {parameter.dtype}; only floating-point tensors have norms and gradients"


def _why_not(parameter: nn.Parameter, *, across_ranks: bool) -> str:
    if getattr(parameter, "_fsdp_flattened", False):
        return (
            "FullyShardedDataParallel (FSDP1) has made it a part of a flat parameter, of which each rank holds some "
            "piece; shard with torch.distributed.fsdp.fully_shard (FSDP2), which keeps parameters apart"
        )
    placements = getattr(parameter, "placements", None)
    if placements is None or parameter.device_mesh.size() == 1:  # type: ignore[attr-defined]
        return ""
    if any(placement.is_partial() for placement in placements):
        return "its pieces are partial sums, of which nothing is known without a collective of its own"
    if not across_ranks:
        return "it is sharded over ranks (DTensor); watch with across_ranks=True (gradlab attach --across-ranks)"
    return ""


class Quantity:
    """One quantity of all parameters that a rule chooses, with their slots."""

    def __init__(
        self, parameters: dict[str, nn.Parameter], plan: Plan, quantity: str, failed: _Failures, stage: str = "final"
    ) -> None:
        self._plan = plan
        self._failed = failed
        self._is_gradient = quantity == "weight_grad"
        self._entry_of = partial(plan.entry, quantity=quantity, stage=stage)
        self._entries: dict[str, Entry | None] = {}
        self.use(parameters)

    def use(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Read these parameters from now on: one with a new name gets slots, one that is gone is absent."""
        self._all = parameters
        for name in parameters:
            if name not in self._entries:
                self._entries[name] = self._entry_of(name)
        known = {name: entry for name, entry in self._entries.items() if entry is not None and name in parameters}
        if not self._is_gradient:  # an integer parameter has no gradient, and needs no word where that is wanted
            reasons = {name: why for name in known if (why := _unreadable(parameters[name]))}
            self._failed.unreadable(reasons)
            known = {name: entry for name, entry in known.items() if name not in reasons}
        names, self.entries = list(known), list(known.values())
        self.parameters = [parameters[name] for name in names]
        self._is_sharded = any(hasattr(p, "_local_tensor") for p in self.parameters)
        values = self.values()
        self._numel = [p.numel() for p in values]
        numbers = [entry.index for entry in self.entries]
        self._is_plain = numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
        self._is_plain = self._is_plain and all(
            entry.is_norm
            and not p.is_nested
            and p.dtype in NORM_IN_ONE
            and p.device == values[0].device
            and p.numel() > 0
            for entry, p in zip(self.entries, values, strict=True)
        )
        self._batching = Batching(self.entries, values) if names and self._is_plain else None

    def leave_out(self, bad: Mapping[str, tuple[Entry, Exception]]) -> None:
        """Some parameters, or some of their stats, are left aside from now on."""
        for name, (entry, error) in bad.items():
            self._plan.leave_out(entry, error)
            if not isinstance(error, PartError):
                self._entries[name] = None
        self.use(self._all)
        self._failed({name: error for name, (_, error) in bad.items()})

    def each(self, function: Callable[..., Tensor], *tensors: Sequence[Tensor]) -> list[Tensor]:
        """A function of one tensor a parameter; those for which it raises are left out."""
        results, bad = [], dict[str, tuple[Entry, Exception]]()
        for entry, *some in zip(self.entries, *tensors, strict=True):
            try:
                results.append(function(*some))
            except Exception as error:
                bad[entry.site] = (entry, error)
        if bad:
            self.leave_out(bad)
        return results

    def values(self) -> list[Tensor]:
        """The parameters themselves, as far as they are here."""
        return [local(p.detach()) for p in self.parameters]

    def gradients(self) -> list[Tensor | None]:
        """Their gradients, as far as they are here."""
        if self._is_sharded:
            return [_local_gradient(p, p.grad) for p in self.parameters]
        return [p.grad for p in self.parameters]

    def write(self, row: Row, tensors: list[Any]) -> None:
        """Reduce one tensor a parameter into their slots: norms of dense tensors all at once, the rest one by one."""
        if self.entries and not self._write_norms_at_once(row, tensors):
            self.write_some(row, list(zip(self.entries, tensors, strict=True)))

    def _write_norms_at_once(self, row: Row, tensors: list[Any]) -> bool:
        """The usual case, where every parameter has a dense gradient and norms are all that is wanted."""
        if self._batching is None:
            return False
        try:
            norms = self._batching.norms(tensors)
        except (AttributeError, TypeError, RuntimeError):
            return False  # a gradient is missing or sparse
        row.grow()
        row.write_norms(self._batching, norms)
        index = self.entries[0].index
        row.numel[index : index + len(self._numel)] = self._numel
        return True

    def write_some(self, row: Row, pairs: Sequence[tuple[Entry, Any]]) -> None:
        """Reduce the tensors of some parameters, each by itself where it is of a kind of its own."""
        batch: list[tuple[Entry, Tensor]] = []
        bad: dict[str, tuple[Entry, Exception]] = {}
        for entry, tensor in pairs:
            try:
                if tensor is None or tensor.is_meta:
                    continue
                at_once = 0 < tensor.numel() <= (sys.maxsize if tensor.is_cuda else LONG)
                if entry.is_norm and tensor.dtype in NORM_IN_ONE and tensor.layout is torch.strided and at_once:
                    batch.append((entry, tensor))
                else:
                    row.write_now(entry, tensor)
            except Exception as error:
                bad[entry.site] = (entry, error)
        try:
            if batch:
                _write_norms(row, batch)
        except (RuntimeError, TypeError):  # one of them cannot be read: the others can
            for entry, tensor in batch:
                try:
                    row.write_now(entry, tensor)
                except Exception as error:
                    bad[entry.site] = (entry, error)
        if bad:
            self.leave_out(bad)


def _write_norms(row: Row, batch: Sequence[tuple[Entry, Tensor]]) -> None:
    row.grow()
    norms = torch._foreach_norm([tensor for _, tensor in batch], 2, dtype=torch.float32)
    torch._foreach_copy_([row.views[entry.start] for entry, _ in batch], norms)
    for entry, tensor in batch:
        row.numel[entry.index] = tensor.numel()

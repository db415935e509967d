"""The guard: a look at the gradients just before an update, and what is done where they are not finite.

The flags in a frame tell for free, a moment later, which watched site went non-finite first (`diagnose`). The guard is
for those who want the op and the line: it keeps the step's batches and random state, and when a gradient is NaN or
infinite it runs the step again on the side (`replay`), with every op recorded (`search`), before the weights are
spoilt. It may then leave the update out and save the batch. It reads one flag from the device at each step; nothing
else here does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from gradlab.arguments import FLAG, PATH, check_fields, either, named_fields
from gradlab.autograd_engine import is_in_backward
from gradlab.distributed import own_rank, world_size
from gradlab.finding import Finding
from gradlab.hooks.call_hooks import Hook
from gradlab.hooks.interpreter import is_batched, must_not_record, outside_modes, own_ops
from gradlab.hooks.leaf_hooks import LeafHooks
from gradlab.nonfinite.replay import RandomState, replay_origin
from gradlab.nonfinite.search import Origin
from gradlab.sites.leaves import leaves
from gradlab.values import Value

_MOST_BATCHES = 8


@named_fields
@dataclass(frozen=True, eq=False, repr=False)
class NonFinite(Value):
    """What to do before an update whose gradients are not all finite: `watch(..., nonfinite=NonFinite(skip=True))`."""

    _: KW_ONLY
    skip: bool = False
    """Leave out the update: the optimizer finds no gradients and changes neither weights nor its state."""
    explain: bool = True
    """Run the step again on the side, once for each run of bad steps, and name the op, the line and its inputs."""
    save: bool | str | Path = False
    """Save the batch, the random state and the origin to `nonfinite-step<n>.pt`, in this folder or the log folder.
    With several ranks each saves its own, to `nonfinite-step<n>-rank<r>.pt`."""

    def __post_init__(self) -> None:
        check_fields(self, "NonFinite", {"skip": FLAG, "explain": FLAG, "save": either(FLAG, PATH)})


class _Batch:
    """One forward of a step: what went in, and the gradients that came back to what went out."""

    __slots__ = ("args", "gradients", "kwargs", "random_state")

    def __init__(self, args: Any, kwargs: Any, random_state: RandomState) -> None:
        self.args, self.kwargs, self.random_state = args, kwargs, random_state
        self.gradients: dict[str, Tensor] = {}

    def keep(self, suffix: str) -> Callable[[Tensor], None]:
        """A hook that keeps the gradient of an output; of several, their sum."""

        def hook(gradient: Tensor) -> None:
            if not must_not_record() and not is_batched(gradient):
                with own_ops():
                    before = self.gradients.get(suffix)
                    gradient = gradient.detach()
                    self.gradients[suffix] = gradient if before is None else before + gradient

        return hook


class _Before(Hook):
    __slots__ = ("guard",)

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module is self.guard.model:
            self.guard.forward_begins(args, kwargs)


class _After(Hook):
    __slots__ = ("guard",)

    def __init__(self, guard: Guard) -> None:
        self.guard = guard

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if module is self.guard.model:
            self.guard.forward_ended(output)


class Guard:
    """Guards the updates of one model."""

    def __init__(self, model: nn.Module, options: NonFinite, folder: Path | None) -> None:
        self.model = model
        self.options = options
        self.folder = folder if options.save is True else Path(options.save) if options.save else None
        self._batches: list[_Batch] = []
        self._held_back: list[tuple[Tensor, Tensor]] = []
        self._was_bad = False
        self._leaf_hooks = LeafHooks()
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Start keeping batches."""
        if self.options.explain or self.options.save:
            self._handles = [
                self.model.register_forward_pre_hook(_Before(self), with_kwargs=True),
                self.model.register_forward_hook(_After(self)),
            ]

    def close(self) -> None:
        """Let go of the model and of all batches."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._leaf_hooks.remove()
        self._batches.clear()

    def forward_begins(self, args: Any, kwargs: Any) -> None:
        """Keep what goes into a forward with gradients, and the random state before it."""
        if torch.is_grad_enabled() and not must_not_record() and not is_in_backward():
            del self._batches[:-_MOST_BATCHES]
            with own_ops():
                state = RandomState.now(self.model)
            self._batches.append(_Batch(args, kwargs, state))

    def forward_ended(self, output: Any) -> None:
        """Keep the gradients of the outputs when they come."""
        if torch.is_grad_enabled() and not must_not_record() and not is_in_backward() and self._batches:
            with outside_modes():
                for suffix, tensor in leaves(output):
                    if tensor.requires_grad:
                        self._leaf_hooks.register(tensor, self._batches[-1].keep(suffix))

    def look(self, parameters: Iterable[Tensor], step: int) -> Finding | None:
        """Just before an update: what was found, where a gradient of these parameters is not finite.

        Cost: one norm over all gradients, and one host read.
        """
        with outside_modes():
            return self._look([p for p in parameters if p.grad is not None], step)

    def _look(self, own: list[Tensor], step: int) -> Finding | None:
        with own_ops():
            is_good = not own or all_finite([p.grad for p in own if p.grad is not None])
        if is_good:
            self._was_bad = False
            return None
        if self.options.skip:
            self._held_back = [(p, p.grad) for p in own if p.grad is not None]
            for p in own:
                p.grad = None
        if self._was_bad:
            return None
        self._was_bad = True
        origin = self._explain() if self.options.explain else None
        saved = self._save(step, origin) if self.folder is not None else None
        return _finding(step, origin, self._why_not(), self.options.skip, saved)

    def _why_not(self) -> str:
        """What to say where there is no origin."""
        if not self.options.explain:
            return ""
        if not any(batch.gradients for batch in self._batches):
            return "; the model was not called as a whole in that step, so that it cannot be run again"
        return "; run again on the side, the step gave no op that made it so"

    def updated(self) -> None:
        """The optimizer has been called: gradients that were held back are there again."""
        with outside_modes():
            for p, grad in self._held_back:
                p.grad = grad
        self._held_back = []

    def step_ended(self) -> None:
        """The batches of the step are done with."""
        self._batches.clear()
        self._leaf_hooks.remove()

    def _explain(self) -> Origin | None:
        """The origin in the first batch of the step that has one."""
        first = None
        for batch in self._batches:
            if batch.gradients and (first is None or world_size() > 1):  # every rank replays what the others replay
                origin = replay_origin(self.model, partial(self._again, batch), random_state=batch.random_state)
                first = first or origin
        return first

    def _again(self, batch: _Batch) -> None:
        """The forward and the backward of a batch, from the gradients that the loss gave to the outputs."""
        outputs = dict(leaves(self.model(*batch.args, **batch.kwargs)))
        pairs = [(outputs[s], g) for s, g in batch.gradients.items() if s in outputs and outputs[s].requires_grad]
        torch.autograd.backward([output for output, _ in pairs], [gradient for _, gradient in pairs])

    def _save(self, step: int, origin: Origin | None) -> Path:
        assert self.folder is not None
        of_rank = f"-rank{own_rank()}" if world_size() > 1 else ""
        path = self.folder / f"nonfinite-step{step}{of_rank}.pt"
        self.folder.mkdir(parents=True, exist_ok=True)

        def on_host(tensor: Tensor) -> Tensor:
            return tensor.detach().cpu()

        batches = [
            {
                "args": tree_map_only(Tensor, on_host, batch.args),
                "kwargs": tree_map_only(Tensor, on_host, batch.kwargs),
                "output_gradients": tree_map_only(Tensor, on_host, batch.gradients),
                "torch_rng_state": batch.random_state.torch_cpu,
            }
            for batch in self._batches
        ]
        torch.save({"step": step, "origin": origin.sentence() if origin else "", "batches": batches}, path)
        return path


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether all numbers of some tensors are finite, on all ranks where they are sharded. One host read a device."""
    by_device: dict[torch.device, list[Tensor]] = {}
    is_sharded = False
    for tensor in tensors:
        if hasattr(tensor, "to_local"):
            tensor, is_sharded = tensor.to_local(), True
        tensor = tensor.coalesce().values() if tensor.layout is torch.sparse_coo else tensor
        if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex()):
            by_device.setdefault(tensor.device, []).append(tensor.detach())
    return all([_are_finite(group, is_sharded) for group in by_device.values()])


def _are_finite(group: list[Tensor], is_sharded: bool) -> bool:
    # A norm is finite only if the tensor is. Where squares overflow though nothing is infinite, a second look decides.
    bad = ~torch.stack([norm.double() for norm in torch._foreach_norm(group)]).isfinite().all()
    if is_sharded:
        bad = bad.to(torch.int32)
        torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
    if not bool(bad):
        return True
    return not is_sharded and all(bool(tensor.isfinite().all()) for tensor in group)


def _finding(step: int, origin: Origin | None, why_not: str, skipped: bool, saved: Path | None) -> Finding:
    if origin is None:
        message = f"a gradient is not finite at step {step}{why_not}."
    elif origin.source == "a tensor from outside the step":
        message = (
            f"the gradient that the loss gives to the model's output holds {origin.kind} at step {step}, while all "
            f"that the model computed is finite: look into the loss."
        )
    else:
        message = origin.sentence()
    if skipped:
        message += " The update was left out."
    if saved is not None:
        message += f" The batch is in {saved.name}."
    return Finding(
        code="GL703",
        name="nonfinite-origin",
        first_step=step,
        sites=(origin.module,) if origin is not None and origin.module else (),
        message=message,
        evidence={t.name or f"input {n}": t.max for n, t in enumerate(origin.inputs)} if origin is not None else {},
        remedy=_advice(origin),
        severity="error",
    )


def _advice(origin: Origin | None) -> str:
    for name in () if origin is None else (origin.node.lower(), origin.op):
        for word, advice in _ADVICE.items():
            if word in name:
                return advice
    return "Lower the learning rate, clip gradients, or keep the inputs of that op away from where it has no value."


_ADVICE = {
    "log": "Keep its input above zero: log(x + eps), log1p, or log_softmax of the logits.",
    "div": "Keep the divisor away from zero: x / (y + eps), or y.clamp(min=eps).",
    "sqrt": "The gradient of sqrt is infinite at zero: sqrt(x + eps).",
    "pow": "A power below one has an infinite gradient at zero, and none below: clamp the base.",
    "exp": "It overflows above 88 in float32 and above 11 in float16: subtract the maximum first.",
    "softmax": "A row whose scores are all -inf has no softmax: leave at least one position unmasked.",
    "norm": "The gradient of a norm is NaN at zero: add a small number inside.",
}

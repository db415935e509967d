"""Where a non-finite number came from: the exact op of one training step, forward or backward.

`searching(model)` records every aten op of a step and names the first that made NaN or infinity out of finite numbers
(the producer), as against those that only passed it on. An infinity that goes no further, as in a masked attention
score, is no alarm: an origin is what reached the loss or the gradient of a parameter.

Not here: a step that is run again to be searched (`replay`); the flags that tell, nearly for free and on every step,
that something went wrong at all (`diagnose`).

What holds where:
- On CUDA the backward runs on threads of the autograd engine, which carries the dispatch modes of the thread that
  called `backward` over to them (`at::ThreadLocalState`): the ops are seen there too. Sequence numbers are counted by
  each thread, so that the module of an op in a reentrantly checkpointed block may then be named wrongly.
- Compiled graphs run eagerly during the search. Memory that is written without an op (by a raw Triton kernel, say) is
  taken to be as it was read before. Quantised tensors and those of the older, strided nested kind are not read.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradlab.errors import TapError
from gradlab.nonfinite.dataflow import Dataflow, Event, Kind, Place, Read, Root, StepPhase, TensorStats, plain_tensors
from gradlab.nonfinite.dispatch import DispatchLog, NameInputs
from gradlab.sites.names import parameter_names, unwrapped


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a NaN or an infinity began: an op, or a tensor that held it before any op of the step."""

    kind: Kind
    """`nan` or `inf`."""
    phase: StepPhase
    """`forward`, `backward` (gradients), or `update` (what comes after, such as the optimizer)."""
    op: str = ""
    """The aten op, as `aten.div.Tensor`; "" where a tensor came in with it."""
    node: str = ""
    """In the backward, the autograd node that ran the op, as `SqrtBackward0`."""
    module: str = ""
    """The module that called the op, or for which the backward ran: `encoder.0`, `encoder.0#2` in its second call."""
    place: str = ""
    """`file:line` of the user's call; in the backward, of the forward call that is being differentiated."""
    source: str = ""
    """Of a tensor that came in with it, the name: `fc1.weight`, `input`, or what is known of it."""
    inputs: tuple[TensorStats, ...] = ()
    """The floating-point tensors that the op read; of a source, the tensor itself."""
    output: TensorStats | None = None
    """The tensor that the op wrote."""
    deliberate: bool = False
    """Whether an infinity was asked for, as in `masked_fill(mask, -inf)`."""

    def sentence(self) -> str:
        """The finding in one sentence."""
        if self.source:
            (held,) = self.inputs
            return f"{self.source} ({_described(held)}) holds {self.kind} when the step first reads it{self._where()}."
        by = f"{self.op} of {self.node}" if self.node else self.op
        if self.output is None:
            return (
                f"memory from {by} is used while nothing has been written to it, and holds {self.kind}{self._where()}."
            )
        given = "; ".join((f"{t.name} " if t.name else "") + _described(t) for t in self.inputs) or "no tensors"
        bad = f"{self.output.nonfinite} of {self.output.numel}"
        return f"{by} in the {self.phase} makes {self.kind} in {bad} values out of {given}{self._where()}."

    def _where(self) -> str:
        return (f", in module {self.module}" if self.module else "") + (f", at {self.place}" if self.place else "")


def _described(stats: TensorStats) -> str:
    text = f"{stats.dtype}{list(stats.shape)} in [{stats.min:.4g}, {stats.max:.4g}]"
    counts = [f"{n} {word}" for n, word in ((stats.zeros, "zero"), (stats.nonfinite, "not finite")) if n]
    return text + (f" with {' and '.join(counts)} of {stats.numel}" if counts else "")


class Search:
    """The ops of one step; its origin can be asked for once the `searching` block has ended."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.dataflow = Dataflow()
        self._watched: list[Tensor] = []
        self._results: list[Read] | None = None

    def watch(self, result: Tensor) -> None:
        """Count another tensor among the results. The loss is one by itself, unless its gradient is given by hand."""
        self._watched.append(result.detach())

    def origin(self) -> Origin | None:
        """The first cause of what is not finite in the loss, the parameters and their gradients; None if all is finite.

        Raises:
            TapError: inside the `searching` block.
        """
        events, roots = self.dataflow.reached(self._ended())
        causes = [root for root in roots if not root.deliberate]
        if not causes:
            # Nothing but infinities that were asked for: whoever made NaN of them is to blame.
            causes = [
                self.dataflow.root(number) for number in events if self.dataflow.makes_nan_of_infinities(number)
            ] or roots
        return self._origin_at(min(causes, key=_order)) if causes else None

    def transients(self) -> list[Origin]:
        """Where non-finite values began that reached no result, in the order of execution.

        Raises:
            TapError: inside the `searching` block.
        """
        _, roots = self.dataflow.reached(self._ended())
        reached = {_identity(root) for root in roots}
        return [self._origin_at(root) for root in self.dataflow.roots() if _identity(root) not in reached]

    def _ended(self) -> list[Read]:
        if self._results is None:
            raise TapError(
                "the searched step is still under way; ask for its origin after the `with searching(...)` block."
            )
        return self._results

    def _end(self) -> None:
        """Read the results, and bring all to the host."""
        parameters = parameter_names(self.model)
        gradients = [p.grad for p in parameters.values() if p.grad is not None]
        with torch.no_grad():
            plain = plain_tensors((self._watched, gradients, list(parameters.values())))
            self._results = [read for read in map(self.dataflow.read, plain) if read is not None]
            self.dataflow.to_host()
        self._watched.clear()

    def _origin_at(self, root: Root) -> Origin:
        stats, events = self.dataflow.stats, self.dataflow.events
        event = events[root.event] if root.event < len(events) else Event("", Place("update"), [], False)
        place = event.place
        if root.source is not None:
            held = stats[root.source.reading]
            return Origin(
                kind=root.kind,
                phase=place.phase,
                module=place.module,
                place=place.line,
                source=held.name or "a tensor from outside the step",
                inputs=(held,),
                deliberate=root.deliberate,
            )
        worst = self.dataflow.worst(event)
        return Origin(
            kind=root.kind,
            phase=place.phase,
            op=event.op,
            node=place.node,
            module=place.module,
            place=place.line,
            inputs=tuple(stats[read.reading] for read in event.inputs),
            output=worst,
            deliberate=root.deliberate,
        )


def _identity(root: Root) -> tuple[int, int]:
    return (-1, root.source.reading) if root.source is not None else (root.event, -1)


def _order(root: Root) -> tuple[int, bool]:
    """Execution order; a tensor that an op reads is older than the op."""
    return root.event, root.source is None


@contextmanager
def searching(model: nn.Module) -> Iterator[Search]:
    """While open, records what every op of this thread, and of the backward that it starts, reads and writes.

    Args:
        model: the model, wrapped (DDP, compile) or not; gives modules, parameters and inputs their names.
    Yields:
        A `Search`, whose `origin()` is known after the block.
    Cost: a CPU step takes 2 times as long (transformer of width 256; detect_anomaly 1.5 times) to 6 times where it only
    launches ops (width 16; detect_anomaly 4 times). Some hundred bytes an op, the largest tensor once more (16 MB of it
    at most), and one host read a device, at the end.
    Numbers, gradients and random state are those of a step without it. An exception in the block passes through, and
    what was seen until then can still be asked for.
    """
    search = Search(model)
    log = DispatchLog(search.dataflow, model, search.watch)
    core = unwrapped(model)
    for name, tensor in (*parameter_names(model).items(), *core.named_buffers()):
        search.dataflow.name(tensor, name)
    with ExitStack() as stack:
        stack.callback(search._end)
        stack.callback(
            core.register_forward_pre_hook(NameInputs(search.dataflow), with_kwargs=True, prepend=True).remove
        )
        log.modules.install(stack)
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(log)
        yield search

"""The facts of one training, gathered at the edges of its steps and put together for the diagnosis at each look.

Belongs here: which backwards and steps are looked at, and what is kept between looks: names, numbers, weak references.
Does not: how anything is read (`loss_graph`, `readings`, `layer_inputs`, ...), or what follows (`diagnose`).
"""

from __future__ import annotations

import math
import weakref
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlab.autograd_engine import is_in_backward
from gradlab.diagnose.context import (
    Context,
    EmbeddingFacts,
    History,
    LossGraph,
    LossSeries,
    MaskFacts,
    NonfiniteFacts,
    TargetFacts,
)
from gradlab.distributed import world_size
from gradlab.facts import optimizer_facts, parameter_facts
from gradlab.facts.called_modules import CalledModules
from gradlab.facts.distributions import Distributions
from gradlab.facts.graph_parts import PartsReading
from gradlab.facts.held_graphs import HeldGraphs
from gradlab.facts.layer_inputs import GraphReading
from gradlab.facts.loaded_parameters import loaded_among
from gradlab.facts.loss_graph import ReadGraph, is_scalar, reaches_any, read_graph, roots_of, signature_of
from gradlab.facts.loss_terms import terms_of
from gradlab.facts.module_facts import ModuleModes, with_suspects
from gradlab.facts.movement import Movement
from gradlab.facts.numbers import Numbers
from gradlab.facts.optimizer_facts import WatchedOptimizer, living_optimizers
from gradlab.facts.parameter_facts import Leaf, foreign_leaves, owners_of
from gradlab.facts.readings import ParameterReading, Parameters
from gradlab.facts.shared_steps import SharedSteps
from gradlab.facts.value_flow import ValueFlow
from gradlab.hooks import backward_calls
from gradlab.hooks.interpreter import must_not_record, own_ops
from gradlab.optimizers import parameter_ids
from gradlab.sites.names import module_names

_DENSE_UNTIL, _DENSE = 200, 10
"""Up to this step every so many steps are looked at; later ten steps in each doubling of the step."""
_EARLY = (0, 1, 2, 5)
_BACKWARDS = (3, 10, 20, 50, 100, 200, 400)
"""Without an optimizer step, at so many backwards there is a look."""
_MOST_SIGNATURES = 8
_MOST_OTHERS = 8
_MOST_LOSSES = 2000
_MODES_UNTIL = 60
_MASKS_UNTIL = 30
_ARRIVALS_UNTIL = 60
_MOST_SCANS = 4
_ACTIVATIONS = {"Softmax": (nn.Softmax, nn.Softmax2d), "LogSoftmax": (nn.LogSoftmax,), "Sigmoid": (nn.Sigmoid,)}
_MOST_SEARCHES = 6
"""So often it is looked for everywhere whose a parameter is that the model does not have."""
_SILENT_FROM = 10
"""A parameter that has had no gradient in so many steps is looked for in the forward."""


def is_look(step: int) -> bool:
    """Whether a step is looked at."""
    if step < _DENSE_UNTIL:
        return step in _EARLY or step % _DENSE == 0
    return step % (2 * _DENSE << (step // _DENSE_UNTIL).bit_length() - 1) == 0


def _name_of_made(shape: tuple[int, ...]) -> str:
    """By which the distribution of a parameter is kept that no module has."""
    return f"(made in the forward) {shape}"


class _Losses:
    """The values of the losses of one signature; those of the last steps as tensors, until the next look."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.waiting: list[tuple[int, Tensor]] = []
        self.steps: deque[int] = deque(maxlen=_MOST_LOSSES)
        self.values: deque[float] = deque(maxlen=_MOST_LOSSES)


class _Look:
    """A look whose numbers are on their way, all of them in one transfer."""

    def __init__(
        self, step: int, numbers: Numbers, reading: ParameterReading | None, graphs: list[GraphReading]
    ) -> None:
        self.step = step
        self.numbers = numbers
        self.reading = reading
        self.graphs = graphs
        self.loss_steps: dict[str, list[int]] = {}


class Facts:
    """Gathers the facts of one model's training.

    Args:
        model: the model, wrapped or not.
        parameters: gives its parameters by name, as they are now.
        counted: gives the optimizers whose steps are counted.
        step: gives the number of the step under way.
        on_look: gets the context of each look.
        on_failure: gets the error where gathering fails, after which nothing is gathered any more.
    Cost: 0.2 to 0.4 milliseconds a step in the first 60 steps, and at a look 17 milliseconds for 149 small parameters,
    85 for a transformer of 10 million numbers, a third of them before the backward (one thread of a CPU).
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Parameters,
        *,
        counted: Callable[[], tuple[Any, ...]],
        step: Callable[[], int],
        on_look: Callable[[Context], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._counted = counted
        self._step = step
        self._on_look = on_look
        self._on_failure = on_failure
        self._is_on = False
        self._first_step = 0
        self._num_backwards = 0
        self._num_steps = 0
        self._names: dict[int, str] = {}
        self._ours: frozenset[int] = frozenset()
        """The ids of the model's parameters."""
        self._others: Counter[str] = Counter()
        """How many graphs of a signature were read that were not the model's."""
        self._hides = False
        """Whether a graph has parts that are made in the backward only (reentrant checkpointing)."""
        self._of: Mapping[str, nn.Parameter] | None = None
        """The parameters that `_names` was made of."""
        self._owners: dict[int, tuple[str, str]] = {}
        self._foreign: dict[int, Leaf] = {}
        self._foreign_refs: dict[int, weakref.ref[Any]] = {}
        self._nobodys: set[int] = set()
        self._num_searches = 0
        self._made_anew: dict[tuple[int, ...], tuple[int, weakref.ref[Any]]] = {}
        """By shape, how many parameters of nobody were reached so far, and the last one."""
        self._was_frozen: set[int] = set()
        self._reached: set[int] = set()
        self._arrived: set[int] = set()
        self._versions: dict[int, int] = {}
        self._called = CalledModules()
        self._movement = Movement()
        self._shared = SharedSteps()
        self._values = ValueFlow()
        self._graphs: dict[str, LossGraph] = {}
        self._held = HeldGraphs(model)
        self._losses: dict[str, _Losses] = {}
        self._targets: deque[tuple[TargetFacts, ...]] = deque(maxlen=20)
        self._optimizers: dict[int, WatchedOptimizer] = {}
        self._living: list[weakref.ref[Any]] = []
        self._num_scans = 0
        self._distributions = Distributions()
        self._modes: ModuleModes | None = None
        self._batch_norm_samples: dict[str, int] = {}
        self._batch_norms: dict[str, tuple[int, float]] = {}
        self._masks: tuple[MaskFacts, ...] | None = None
        self._rates: list[tuple[int, float]] = []
        self._readings, self._samples, self._inputs = History(), History(), History()
        self._numbers = Numbers()
        """Those of the look under way."""
        self._attentions, self._embeddings = History(), History()
        self._ids: tuple[EmbeddingFacts, ...] = ()
        self._nonfinite: NonfiniteFacts | None = None
        self._has_alarmed = False
        self._rows = History()
        self._reading: ParameterReading | None = None
        self._graph_readings: list[GraphReading] = []
        self._read_in_step: Counter[tuple[str, frozenset[int]]] = Counter()
        self._shares_forward = False
        """Whether two losses of the step came from one forward, or gradients were reset between them."""
        self._last_gradient: tuple[weakref.ref[Tensor], int] | None = None
        """One gradient and its version, after the last backward of this step."""
        self._accumulation: int | None = None
        self._pending: tuple[str, Tensor | None, frozenset[int] | None] | None = None
        self._looks: deque[_Look] = deque()
        self._steps_in_backward = False

    # Beginning and end.

    def attach(self) -> None:
        """Begin to listen."""
        self._is_on = True
        self._first_step = self._step()
        backward_calls.listen(self)
        self._held.attach()

    def detach(self) -> None:
        """Listen no more."""
        self._is_on = False
        backward_calls.ignore(self)
        self._held.detach()
        self._called.close()
        self._values.remove()

    def _fail(self, error: BaseException) -> None:
        self.detach()
        self._reading, self._pending = None, None
        self._looks.clear()
        self._on_failure(error)

    # Backwards.

    def before_backward(self, tensors: Any) -> None:
        """A backward is about to begin, of this model or another."""
        self._pending = None
        if must_not_record() or is_in_backward():
            return
        try:
            with own_ops():
                self._values.backward_begins([tensors] if isinstance(tensors, Tensor) else list(tensors))
                self._look_at_loss(tensors)
        except Exception as error:
            self._fail(error)

    def _look_at_loss(self, tensors: Any) -> None:
        for one in self._optimizers.values():
            one.before_backward()
        roots = roots_of(tensors)
        loss = tensors if isinstance(tensors, Tensor) else tensors[0] if isinstance(tensors, list | tuple) else None
        if not roots:
            if is_scalar(loss) and loss is not None and loss.requires_grad:
                self._note_graph("", LossGraph(root="", is_leaf=True))
            return
        signature = signature_of(roots[0])
        known = self._graphs.get(signature)
        if known is not None and known.is_of_no_parameter and reaches_any(roots[0], self._ours):
            signature, known = f"{signature} of parameters", None  # a loss that begins alike, of the model
        if known is not None and known.is_of_no_parameter:
            self._graphs[signature] = replace(known, num_backwards=known.num_backwards + 1)
            if not is_look(self._step()):
                return
        graph = None
        is_alarm = self._is_alarm(loss)
        if is_alarm or self._wants_graph(signature):
            graph = read_graph(roots)
            self._note_leaves(graph)
            if self._is_of_no_parameter(graph, loss):
                num = known.num_backwards if known is not None else 1
                none = LossGraph(root=graph.root, is_of_no_parameter=True, num_backwards=num)
                self._graphs[signature] = none
                return
        if not self._is_ours(signature, roots[0], graph):
            return
        value = loss.detach().clone() if is_scalar(loss) and loss is not None else None
        self._pending = signature, value, frozenset(graph.leaves) if graph is not None else None
        self._held.mark_loss(roots[0], self._step())
        if graph is not None:
            self._note_graph(signature, self._facts_of_graph(graph, roots[0]))
            if self._step() in (1, 2):
                self._note_forward(graph)
            if is_look(self._step()) or is_alarm:
                self._graph_readings.append(self._read(graph, is_alarm=is_alarm))
                self._has_alarmed |= is_alarm

    def _is_ours(self, signature: str, root: Any, graph: ReadGraph | None) -> bool:
        """Whether a backward reaches the model. One that reentrant checkpointing hides is known by its like."""
        self._known()
        if graph is not None:
            self._hides |= "CheckpointFunction" in graph.functions
            is_ours = self._hides or not self._ours.isdisjoint(graph.leaves)
            self._others[signature] += not is_ours
            return is_ours
        reaches = reaches_any(root, self._ours)
        return bool(reaches) or (signature in self._graphs and (reaches is None or self._hides))

    def _note_gradient(self) -> None:
        """Note one gradient, by which is known whether the next backward of the step adds to it."""
        gradient = next((p.grad for p in self._known().values() if p.grad is not None), None)
        self._last_gradient = None if gradient is None else (weakref.ref(gradient), gradient._version)

    def _note_forward(self, graph: ReadGraph) -> None:
        """Note whether another loss of this step came from the same forward: its nodes are marked.

        Or whether gradients were reset since, as in a closure that an optimizer calls several times.
        """
        if self._last_gradient is not None:
            reference, version = self._last_gradient
            gradient = reference()
            is_kept = gradient is not None and gradient._version == version
            self._shares_forward |= not is_kept or all(p.grad is not gradient for p in self._known().values())
        for _, _, node in graph.layers:
            self._shares_forward |= "gradlab_forward" in node.metadata
            node.metadata["gradlab_forward"] = True

    def _read(self, graph: ReadGraph, *, is_alarm: bool) -> GraphReading:
        """Begin to read its numbers."""
        return GraphReading(
            graph,
            self._names,
            len(self._graph_readings),
            self._numbers,
            step=self._step(),
            is_alarm=is_alarm,
            reads_masks=self._num_backwards <= _MASKS_UNTIL,
        )

    def _is_alarm(self, loss: Tensor | None) -> bool:
        """Whether this is the first loss that is not finite, as far as that is known without a wait: on a CPU."""
        if self._has_alarmed or type(loss) is not Tensor or not loss.is_cpu or not is_scalar(loss):
            return False
        return loss.dtype in (torch.float32, torch.float64) and not math.isfinite(loss.detach().numpy().reshape(())[()])

    def _wants_graph(self, signature: str) -> bool:
        step = self._step()
        if signature not in self._graphs:
            return len(self._graphs) < _MOST_SIGNATURES and self._others[signature] < _MOST_OTHERS
        return (is_look(step) and (step in (1, 2) or not self._graph_readings)) or self._num_backwards in _BACKWARDS

    def _is_of_no_parameter(self, graph: ReadGraph, loss: Any) -> bool:
        """Whether a loss comes from plain tensors alone, none of which an optimizer has."""
        if not is_scalar(loss) or not graph.is_whole or graph.is_opaque or not graph.leaves:
            return False
        if any(isinstance(one, nn.Parameter) for one in graph.leaves.values()):
            return False
        owned = {
            id(p) for one in self._counted() for group in getattr(one, "param_groups", ()) for p in group["params"]
        }
        return not owned & graph.leaves.keys()

    def _note_graph(self, signature: str, graph: LossGraph) -> None:
        before = self._graphs.get(signature)
        if before is not None:
            graph = replace(
                graph, num_backwards=before.num_backwards + graph.is_leaf, reached=graph.reached | before.reached
            )
        elif graph.is_leaf:
            graph = replace(graph, num_backwards=1)
        self._graphs[signature] = graph

    def _facts_of_graph(self, graph: ReadGraph, root: Any) -> LossGraph:
        activations = [*(one for _, one in graph.loss_activations), *filter(None, [graph.softmax_of_one])]
        kinds = tuple(kind for activation in activations for kind in _ACTIVATIONS[activation])
        before = self._modules_of(graph.before_activation)
        return LossGraph(
            root=graph.root,
            chain=graph.chain,
            factor=graph.factor,
            reduction=graph.reduction,
            loss_activations=graph.loss_activations,
            activation_modules=_activations_after(before, self._model, kinds) if kinds else (),
            before_activation=before,
            terms=tuple(terms_of(root)),
            softmax_of_one=graph.softmax_of_one,
            reached=frozenset(self._names[key] for key in graph.leaves if key in self._names),
            cut=frozenset(self._names[key] for key in graph.cut if key in self._names),
            cut_by=graph.cut_by,
            before_cut=self._modules_of(graph.before_cut),
            functions=dict(graph.functions),
            num_parameters=len(self._ours & graph.leaves.keys()),
            num_nodes=graph.num_nodes,
            is_whole=graph.is_whole,
            is_opaque=graph.is_opaque,
        )

    def _modules_of(self, leaves: Iterable[int]) -> tuple[str, ...]:
        """The modules that own some parameters, by name, each once."""
        return tuple(dict.fromkeys(self._owners[key][0] for key in leaves if key in self._owners))

    def _known(self) -> Mapping[str, nn.Parameter]:
        """The model's parameters, with the names of all that is known renewed where they are others than before."""
        now = self._parameters()
        if now is not self._of:
            if self._of is not None and [*map(id, now.values())] != [*map(id, self._of.values())]:
                self._forget_past()
            self._of = now
            self._owners = owners_of(self._model)
            self._names = {id(p): name for name, p in now.items()}
            self._ours = frozenset(self._names)
            for key, leaf in list(self._foreign.items()):
                if key in self._names:
                    del self._foreign[key]
                else:
                    self._names[key] = leaf.name
            for p in now.values():
                self._versions.setdefault(id(p), p._version)
        return now

    def _forget_past(self) -> None:
        """The model has other parameters by now: what was measured before is no past of theirs."""
        self._losses.clear()
        self._rates.clear()
        self._targets.clear()
        for history in (self._readings, self._samples, self._inputs, self._attentions, self._embeddings, self._rows):
            history.clear()

    def _note_leaves(self, graph: ReadGraph) -> None:
        """Note which leaves are reached; of those that are not the model's, find out whose they are."""
        self._known()
        if self._ours.isdisjoint(graph.leaves):
            return
        self._reached |= graph.leaves.keys()
        left = {
            key: one
            for key, one in graph.leaves.items()
            if key not in self._names and key not in self._nobodys and one.dtype.is_floating_point
        }
        if left:
            has_parameter = any(isinstance(one, nn.Parameter) for one in left.values())
            everywhere = has_parameter and self._num_searches < _MOST_SEARCHES
            self._num_searches += everywhere
            found = foreign_leaves(self._model, left.values(), everywhere=everywhere)
            self._note_foreign({key: (left[key], leaf) for key, leaf in found.items()})
            self._note_nobodys({key: one for key, one in left.items() if key not in found})

    def _note_foreign(self, found: Mapping[int, tuple[Tensor, Leaf]]) -> None:
        """Note leaves that others have, but not attributes that are another tensor each time: an input, a state."""
        names = {leaf.name: key for key, leaf in self._foreign.items()}
        for key, (one, leaf) in found.items():
            if leaf.is_plain and leaf.name in names:
                self._nobodys |= {key, names[leaf.name]}
                self._foreign.pop(names[leaf.name], None)
                continue
            self._foreign[key], self._names[key] = leaf, leaf.name
            self._foreign_refs[key] = weakref.ref(one)
            self._versions.setdefault(key, one._version)

    def _note_nobodys(self, leaves: Mapping[int, Tensor]) -> None:
        """Note which leaves belong to nobody; of parameters, how often there is another one of the same shape."""
        self._nobodys |= leaves.keys()
        made = {tuple(one.shape): one for one in leaves.values() if isinstance(one, nn.Parameter)}
        for shape, one in made.items():
            count, last = self._made_anew.get(shape, (0, None))
            if last is None or last() is not one:
                self._made_anew[shape] = count + 1, weakref.ref(one)
                self._distributions.look({_name_of_made(shape): one}, self._numbers)

    def after_backward(self) -> None:
        """The backward has ended."""
        if not self._is_on or self._pending is None or is_in_backward():
            return
        try:
            with own_ops():
                self._backward_ended()
        except Exception as error:
            self._fail(error)

    def _backward_ended(self) -> None:
        self._num_backwards += 1
        self._known()
        step = self._step()
        if self._modes is None:
            self._modes = ModuleModes(self._model, self._numbers)
        self._modes.backward_ended(step, is_look=self._num_backwards <= _MODES_UNTIL or is_look(step))
        for one in self._optimizers.values():
            one.after_backward()
        if self._pending is not None:
            (signature, value, leaves), self._pending = self._pending, None
            if signature in self._graphs:
                known = self._graphs[signature]
                self._graphs[signature] = replace(known, num_backwards=known.num_backwards + 1)
            if value is not None:
                losses = self._losses.setdefault(signature, _Losses(signature.partition(" ")[0]))
                losses.waiting.append((step, value))
            if leaves is not None:
                self._read_in_step[signature, leaves] += 1
                self._note_gradient()
        if is_look(step):
            if self._reading is None or self._reading.step != step:
                self._reading = ParameterReading(self._known(), step, self._numbers)
            self._reading.half |= frozenset().union(*(one.half for one in self._graph_readings))
            self._reading.backward_ended()
        if self._num_steps == 0:
            self._note_arrivals()
            if self._num_backwards in _BACKWARDS:
                self._send_look(step, None)
            self.deliver()

    # Steps.

    def update_begins(self, optimizer: Any) -> None:
        """An optimizer's `step` has been entered."""
        self._values.remove()
        if self._is_on and self._reading is not None:
            self._guarded(self._reading.update_begins)

    def before_update(self, optimizer: Any, *, is_scaled: bool) -> None:
        """The gradients are complete: clipped, and scaled by a GradScaler where `is_scaled`."""
        if self._is_on:
            self._guarded(lambda: self._before_update(optimizer, is_scaled))

    def _before_update(self, optimizer: Any, is_scaled: bool) -> None:
        self._known()
        self._note_arrivals()
        known = self._optimizers.get(id(optimizer))
        if known is None or known.optimizer is not optimizer:
            known = self._optimizers[id(optimizer)] = WatchedOptimizer(optimizer)
        known.before_update()
        self._shared.before_update(optimizer, is_look=is_look(self._step()))
        if self._reading is not None:
            self._reading.update_begins()
            self._reading.before_update()

    def after_update(self, optimizer: Any) -> None:
        """An optimizer has stepped."""
        if self._is_on:
            self._guarded(lambda: self._after_update(optimizer))
            self._begin_pass()

    def _after_update(self, optimizer: Any) -> None:
        known = self._optimizers.get(id(optimizer))
        if known is not None:
            known.after_update(self._step())
        self._shared.after_update(optimizer, self._numbers)
        if self._reading is not None:
            self._reading.after_update()

    def _begin_pass(self) -> None:
        """Between an update and the backward that follows, values of parameters are followed on some steps."""
        if self._is_on and self._num_steps > 0 and self._values.wants_pass(has_silent=self._num_steps >= _SILENT_FROM):
            silent = self._num_steps >= _SILENT_FROM and any(
                p.requires_grad and id(p) not in self._arrived for p in self._known().values()
            )
            if self._values.wants_pass(has_silent=silent):
                foreign = [p for ref in self._foreign_refs.values() if (p := ref()) is not None]
                self._values.begin([*self._known().values(), *foreign], has_silent=silent)

    def in_backward(self) -> None:
        """An optimizer steps while the backward goes on: gradients are gone when it has ended."""
        self._steps_in_backward = True

    def step_ended(self, step: int) -> None:
        """A step has ended."""
        if self._is_on:
            self._guarded(lambda: self._step_ended(step))

    def _step_ended(self, step: int) -> None:
        self._num_steps += 1
        self._note_rates(step)
        if self._read_in_step and step in (1, 2):
            ours = [count for count in self._read_in_step.values()]
            self._accumulation = ours[0] if len(ours) == 1 and not self._shares_forward else None
        self._read_in_step.clear()
        self._shares_forward, self._last_gradient = False, None
        if is_look(step) or any(one.is_alarm for one in self._graph_readings):
            reading, self._reading = self._reading, None
            self._send_look(step, reading if reading is not None and reading.step == step else None)
        self.deliver()

    def _note_rates(self, step: int) -> None:
        rates = [
            float(group["lr"])
            for one in self._counted()
            for group in getattr(one, "param_groups", ())
            if isinstance(group.get("lr"), int | float)
        ]
        if rates and (not self._rates or self._rates[-1][1] != max(rates)):
            self._rates.append((step, max(rates)))

    def _note_arrivals(self) -> None:
        """Note whose gradients are there now: at first on every step, later at looks."""
        known = self._known()
        is_due = self._num_steps < _ARRIVALS_UNTIL or is_look(self._step())
        if is_due and len(self._arrived) < len(known) + len(self._foreign):
            for p in known.values():
                if id(p) not in self._arrived and p.is_leaf and (p.grad is not None or self._steps_in_backward):
                    self._arrived.add(id(p))
            for key, ref in self._foreign_refs.items():
                one = ref()
                if key not in self._arrived and one is not None and one.grad is not None:
                    self._arrived.add(key)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            with own_ops():
                action()
        except Exception as error:
            self._fail(error)

    # Looks.

    def _send_look(self, step: int, reading: ParameterReading | None) -> None:
        graphs, self._graph_readings = self._graph_readings, []
        numbers, self._numbers = self._numbers, Numbers()
        look = _Look(step, numbers, reading, graphs)
        if reading is not None:
            reading.step_ended()
        for signature, losses in self._losses.items():
            if losses.waiting:
                look.loss_steps[signature] = [at for at, _ in losses.waiting]
                numbers.add(("loss", signature), torch.stack([value.reshape(()) for _, value in losses.waiting]))
                losses.waiting = []
        self._read_origins(numbers)
        numbers.send()
        self._looks.append(look)

    def _read_origins(self, numbers: Numbers) -> None:
        """Read what parameters are that no optimizer moves: frozen ones, and those that none has."""
        known = self._known()
        frozen = {name: p for name, p in known.items() if not p.requires_grad}
        self._was_frozen |= {id(p) for p in frozen.values()}
        random = self._distributions.random()
        self._called.ask(self._model, {self._owners[id(p)][0] for name, p in frozen.items() if random.get(name)})
        owned = parameter_ids(self._counted()) if self._num_steps else set()
        reached = [(id(p), name, p) for name, p in known.items() if p.requires_grad and id(p) in self._reached]
        for key, ref in self._foreign_refs.items():
            if key in self._foreign and (one := ref()) is not None:
                reached.append((key, self._names[key], one))
        left = {key: (name, p) for key, name, p in reached if key not in owned}
        self._distributions.look(frozen | dict(left.values()), numbers)
        self._movement.look({key: p for key, (_, p) in left.items()}, numbers)

    def deliver(self, *, wait: bool = False) -> None:
        """Hand out the looks whose numbers have arrived."""
        while self._looks and (wait or self._looks[0].numbers.done()):
            look = self._looks.popleft()
            self._take(look)
            self._on_look(self._context(look.step, is_end=False))

    def end(self) -> None:
        """Training has ended: hand out what is left, then the last look."""
        if not self._is_on:
            return
        try:
            with own_ops():
                if any(one.waiting for one in self._losses.values()):
                    self._send_look(max(self._step() - 1, 0), None)
                self.deliver(wait=True)
            if self._num_backwards or self._graphs:
                self._on_look(self._context(self._step() - 1, is_end=True))
        except Exception as error:
            self._fail(error)

    def _take(self, look: _Look) -> None:
        values = look.numbers.values()
        for signature, steps in look.loss_steps.items():
            if signature not in self._losses:
                continue  # of the model as it was before
            self._losses[signature].steps.extend(steps)
            self._losses[signature].values.extend(values["loss", signature].tolist())
        self._distributions.take(values)
        self._movement.take(values)
        self._shared.take(values)
        if self._modes is not None:
            self._modes.take(values)
        if look.reading is not None:
            self._readings.add(look.step, look.reading.sites, look.reading.numbers())
            self._samples.add(look.step, look.reading.sampled_sites, look.reading.samples())
            self._rows.add(look.step, look.reading.sites, look.reading.rows())
        if look.graphs:
            largest = max(look.graphs, key=lambda one: len(one.sites))
            if largest.sites:
                self._inputs.add(look.step, tuple(largest.sites), largest.inputs())
            for one in look.graphs:
                self._take_parts(look.step, one.parts)
                if one.is_alarm:
                    self._nonfinite = with_suspects(one.nonfinite(tuple(self._known())), self._model)
                self._batch_norm_samples |= one.batch_norm_samples
                self._batch_norms |= one.batch_norms()
            self._take_masks(look.graphs)
            if targets := tuple(target for one in look.graphs for target in one.targets()):
                self._targets.append(targets)

    def _take_parts(self, step: int, parts: PartsReading) -> None:
        if parts.attentions:
            self._attentions.add(step, tuple(parts.attentions), parts.attention_numbers())
        if parts.embeddings:
            self._embeddings.add(step, tuple(parts.embeddings), parts.embedding_numbers())
        if parts.ids:
            self._ids = parts.ids_facts()

    def _take_masks(self, graphs: Iterable[GraphReading]) -> None:
        """Keep the dropouts of the graph that has most of them."""
        for one in graphs:
            masks = one.masks()
            if masks is not None and (self._masks is None or len(masks) > len(self._masks)):
                self._masks = masks

    def _context(self, step: int, *, is_end: bool) -> Context:
        known = self._known()
        optimizers = self._all_optimizers(is_end=is_end)
        having: dict[int, tuple[int, ...]] = {}
        for place, (one, _, _) in enumerate(optimizers):
            for group in one.param_groups:
                for p in group.get("params", ()):
                    having[id(p)] = (*having.get(id(p), ()), place)
        return Context(
            step=step if self._num_steps else -1,
            num_backwards=self._num_backwards,
            is_end=is_end,
            parameters=parameter_facts.facts_of(
                known,
                self._owners,
                self._foreign,
                optimizers=having,
                reached=self._reached,
                arrived=self._arrived,
                versions=self._versions,
                moved=self._movement.moved(),
                loaded=loaded_among(known.values()),
                frozen=self._was_frozen,
                distributions=self._distributions.known(),
                random=self._distributions.random(),
                called=self._called.known,
                flow=self._values.flow,
                is_flow_told=self._values.is_told,
                leaves=self._foreign_refs,
            ),
            modules=self._modes.facts(self._batch_norm_samples, self._batch_norms) if self._modes is not None else (),
            masks=self._masks,
            optimizers=optimizer_facts.facts_of(optimizers, self._names),
            shared_updates=self._shared.facts([one for one, _, _ in optimizers], self._names),
            made_anew={
                shape: count
                for shape, (count, _) in self._made_anew.items()
                if self._distributions.known().get(_name_of_made(shape))
            },
            graphs=tuple(self._graphs.values()),
            retained_graphs=self._held.num_held(step),
            retained_steps=self._held.num_steps_held(step),
            accumulation=self._accumulation,
            gradients_rescaled=any(one.was_written_to for one in self._optimizers.values()),
            targets=tuple(self._targets),
            readings=self._readings,
            samples=self._samples,
            rows=self._rows,
            inputs=self._inputs,
            attentions=self._attentions,
            embeddings=self._embeddings,
            ids=self._ids,
            nonfinite=self._nonfinite,
            losses=tuple(
                LossSeries(root=one.root, steps=np.array(one.steps, np.int64), values=np.array(one.values))
                for one in self._losses.values()
            ),
            learning_rates=np.array(self._rates, np.float64).reshape(-1, 2),
            world_size=world_size(),
        )

    def _all_optimizers(self, *, is_end: bool) -> list[tuple[Any, WatchedOptimizer | None, bool]]:
        """Those that are counted, that have stepped, and that live, as far as these were looked for."""
        counted = [one for one in self._counted() if hasattr(one, "param_groups")]
        found = {id(one): one for one in counted}
        for watched in self._optimizers.values():
            if watched.optimizer is not None and hasattr(watched.optimizer, "param_groups"):
                found.setdefault(id(watched.optimizer), watched.optimizer)
        if self._wants_scan(list(found.values()), is_end=is_end):
            self._living = [weakref.ref(one) for one in living_optimizers()]
        for ref in self._living:
            if (one := ref()) is not None:
                found.setdefault(id(one), one)
        ids = set(map(id, counted))
        return [(one, self._watched(one), id(one) in ids) for one in found.values()]

    def _watched(self, optimizer: Any) -> WatchedOptimizer | None:
        known = self._optimizers.get(id(optimizer))
        return known if known is not None and known.optimizer is optimizer else None

    def _wants_scan(self, known: list[Any], *, is_end: bool) -> bool:
        """Whether to look for further optimizers: a parameter that is reached is in none of those that are known."""
        if self._num_scans >= _MOST_SCANS or (self._num_steps < 3 and not is_end and self._num_backwards < 10):
            return False
        owned = {id(p) for one in known for group in one.param_groups for p in group.get("params", ())}
        trained = {id(p) for p in self._known().values() if p.requires_grad} | set(self._foreign)
        wants = bool((trained & self._reached) - owned) or not known
        self._num_scans += wants
        return wants


def _activations_after(before: Sequence[str], model: nn.Module, kinds: tuple[type[nn.Module], ...]) -> tuple[str, ...]:
    """The modules of some kinds that apply an activation to the output of a layer, by name.

    Those that follow the layer in the model; or, where none does, those beside it or beside a module that has it.
    """
    following, beside, last = [], [], ""
    for module, name in module_names(model).items():
        if module._parameters:
            last = name
        elif isinstance(module, kinds):
            owner = name.rpartition(".")[0]
            if not before or any(one.startswith(f"{owner}." if owner else "") for one in before):
                beside.append(name)
                following += [name] * (last in before)
    return tuple(following or beside)

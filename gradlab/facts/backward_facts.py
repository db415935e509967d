"""The facts of the first backwards of a training, each read just before its backward begins.

Belongs here: which backwards are looked at. Does not: what is read of a graph (`loss_graph`), or what follows from it
(`diagnose.rules`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from gradlab.autograd_engine import is_in_backward
from gradlab.diagnose.context import LossGraph
from gradlab.facts.loss_graph import read_loss_graph
from gradlab.hooks import backward_calls
from gradlab.hooks.interpreter import must_not_record
from gradlab.sites.names import module_names

_READ_AT = (1, 3, 9, 27)
"""Which backwards are read, those of other models in between counted too: the first may be of a pre-training."""
_MOST_MISSES = 100
"""After so many backwards in a row that reach nothing of the model, no further one is looked at."""
_MODULES = {"Softmax": (nn.Softmax, nn.Softmax2d), "Sigmoid": (nn.Sigmoid,)}


class BackwardFacts:
    """Reads the graphs of some losses of one model.

    Args:
        model: the model, wrapped or not.
        parameters: gives its parameters by name, as they are now.
        on_loss: gets each graph that reaches the model.
        on_failure: gets the error where reading fails, after which nothing is read any more.
    Cost: 1 microsecond a backward for the first 27, nothing afterwards; four times about 1.5 microseconds a node of the
    graph, which is half a millisecond for a transformer of 10 M parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Callable[[], Mapping[str, nn.Parameter]],
        on_loss: Callable[[LossGraph], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self._model = model
        self._parameters = parameters
        self._on_loss = on_loss
        self._on_failure = on_failure
        self._count = 0
        """How many backwards there were that may be of this model."""
        self._misses = 0

    def attach(self) -> None:
        """Begin to listen."""
        backward_calls.listen(self._before_backward)

    def detach(self) -> None:
        """Listen no more."""
        backward_calls.ignore(self._before_backward)

    def _with_modules(self, graph: LossGraph) -> LossGraph:
        """With the modules that may apply the activations."""
        kinds = tuple(kind for _, activation in graph.loss_activations for kind in _MODULES[activation])
        found = [site for module, site in module_names(self._model).items() if isinstance(module, kinds)]
        return replace(graph, activation_modules=tuple(found))

    def _before_backward(self, tensors: Any) -> None:
        if must_not_record() or is_in_backward():
            return
        self._count += 1
        if self._count not in _READ_AT:
            if self._count > _READ_AT[-1]:
                self.detach()
            return
        try:
            graph = read_loss_graph(tensors, set(map(id, self._parameters().values())))
            if graph is None:  # of another model: the next backward is looked at in the place of this one
                self._count -= 1
                self._misses += 1
                if self._misses > _MOST_MISSES:
                    self.detach()
                return
            self._misses = 0
            self._on_loss(self._with_modules(graph))
        except Exception as error:
            self.detach()
            self._on_failure(error)
